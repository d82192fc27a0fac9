// Paging-structure caches (VT-d 6.2.4): which table a prefix of the input address leads to. Emptied
// by the scopes of 6.5.2.3 unless the invalidation hint says that only leaves changed; sizes and
// hash are model choices.
#ifndef VIOMMU_IOMMU_CORE_HW_PAGING_STRUCTURE_CACHE_H_
#define VIOMMU_IOMMU_CORE_HW_PAGING_STRUCTURE_CACHE_H_

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>

#include "iommu_core/base/types.h"
#include "iommu_core/vtd/second_stage_pte.h"

namespace viommu {

// Direct-mapped, one array a level. Not thread-safe.
class PagingStructureCache {
 public:
  // A table whose walk may start there: `level` is the table's own, `access` the AND of R and W of
  // the entries above it.
  struct Entry {
    PhysAddr table;
    int level = 0;
    Access access;
  };

  // The lowest cached table on the way to `iova`, at most at `max_level`.
  std::optional<Entry> Find(DomainId did, Iova iova, int max_level) const {
    for (int level = 1; level <= max_level && level <= kLevels; ++level) {
      const Line& line = lines_[static_cast<size_t>(level - 1)][IndexOf(iova, level)];
      if (line.valid && line.domain_id == did && line.prefix == PrefixOf(iova, level)) {
        return Entry{line.table, level, line.access};
      }
    }
    return std::nullopt;
  }
  void Insert(DomainId did, Iova iova, const Entry& entry) {
    if (entry.level > kLevels) return;
    lines_[static_cast<size_t>(entry.level - 1)][IndexOf(iova, entry.level)] = {
        true, did, PrefixOf(iova, entry.level), entry.table, entry.access};
  }

  void InvalidateAll() { lines_ = {}; }
  void InvalidateDomain(DomainId did) {
    for (auto& level : lines_) {
      for (Line& line : level) {
        if (line.domain_id == did) line.valid = false;
      }
    }
  }
  void InvalidateRange(DomainId did, IovaRange range) {
    if (range.empty()) return;
    for (int level = 1; level <= kLevels; ++level) {
      const uint64_t first = PrefixOf(range.first, level);
      const uint64_t last = PrefixOf(range.end - 1, level);
      // Each line may hold a prefix of the range; a prefix has one line only.
      const uint64_t lines = std::min<uint64_t>(last - first + 1, kLines);
      for (uint64_t i = 0; i < lines; ++i) {
        Line& line = lines_[static_cast<size_t>(level - 1)][(first + i) % kLines];
        if (line.domain_id == did && first <= line.prefix && line.prefix <= last) {
          line.valid = false;
        }
      }
    }
  }

 private:
  static constexpr int kLevels = 3;  // tables below the root of a 4-level tree
  static constexpr size_t kLines = 32;

  struct Line {
    bool valid = false;
    DomainId domain_id;
    uint64_t prefix = 0;
    PhysAddr table;
    Access access;
  };
  // A table at `level` spans what one entry at the level above does.
  static uint64_t PrefixOf(Iova iova, int level) {
    return iova.value() >> vtd::LevelShift(level + 1);
  }
  static size_t IndexOf(Iova iova, int level) { return PrefixOf(iova, level) % kLines; }

  std::array<std::array<Line, kLines>, kLevels> lines_;
};

}  // namespace viommu

#endif  // VIOMMU_IOMMU_CORE_HW_PAGING_STRUCTURE_CACHE_H_
