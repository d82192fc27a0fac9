// Context cache (VT-d 6.2.1). Only valid entries are cached; size and hash are model choices.
#ifndef VIOMMU_IOMMU_CORE_HW_CONTEXT_CACHE_H_
#define VIOMMU_IOMMU_CORE_HW_CONTEXT_CACHE_H_

#include <array>
#include <cstddef>
#include <cstdint>

#include "iommu_core/base/types.h"
#include "iommu_core/vtd/root_context.h"

namespace viommu {

// Direct-mapped by source id. Not thread-safe.
class ContextCache {
 public:
  // nullptr: not cached. The pointer is good until the next call that changes the cache.
  const vtd::ContextEntry* Find(SourceId sid) const {
    const Line& line = lines_[IndexOf(sid)];
    return line.valid && line.source_id == sid ? &line.entry : nullptr;
  }
  void Insert(SourceId sid, const vtd::ContextEntry& entry) {
    lines_[IndexOf(sid)] = {true, sid, entry};
  }

  void InvalidateAll() { lines_ = {}; }
  void InvalidateDomain(DomainId did) {
    for (Line& line : lines_) {
      if (line.entry.domain_id() == did) line.valid = false;
    }
  }
  // 6.5.2.1 FM: 1 leaves bit 2 of the source id out of the compare, 2 bits 2:1, 3 bits 2:0.
  void InvalidateDevice(SourceId sid, int function_mask) {
    static constexpr std::array<uint16_t, 4> kMasked = {0, 4, 6, 7};
    const uint16_t masked = kMasked[static_cast<size_t>(function_mask & 3)];
    for (Line& line : lines_) {
      if (((line.source_id.value() ^ sid.value()) & ~masked) == 0) line.valid = false;
    }
  }

 private:
  static constexpr size_t kLines = 256;

  struct Line {
    bool valid = false;
    SourceId source_id;
    vtd::ContextEntry entry;
  };
  static size_t IndexOf(SourceId sid) { return (sid.value() ^ (sid.value() >> 8)) % kLines; }

  std::array<Line, kLines> lines_;
};

}  // namespace viommu

#endif  // VIOMMU_IOMMU_CORE_HW_CONTEXT_CACHE_H_
