// The physical unit's second-stage tables of one shadow, in modelled host memory.
#ifndef VIOMMU_IOMMU_CORE_SHADOW_SHADOW_TABLE_H_
#define VIOMMU_IOMMU_CORE_SHADOW_SHADOW_TABLE_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "iommu_core/base/types.h"
#include "iommu_core/mem/host_memory.h"
#include "iommu_core/shadow/host_map.h"
#include "iommu_core/vtd/second_stage_pte.h"

namespace viommu {

// The table pages of all shadows of one session, with their cap.
class TablePool {
 public:
  TablePool(HostMemory& memory, uint64_t max_pages) : memory_(memory), max_pages_(max_pages) {}

  // A zeroed page, or LimitReached.
  absl::StatusOr<PhysAddr> Allocate();
  void Free(PhysAddr table);
  uint64_t pages() const { return pages_; }
  HostMemory& memory() { return memory_; }

  // Entries of `table` that are not zero.
  uint16_t& used(PhysAddr table) { return used_[table.value() >> kPageShift]; }

  // Called after each store to an entry of a table (tests).
  std::function<void()> store_observer;

 private:
  HostMemory& memory_;
  const uint64_t max_pages_;
  uint64_t pages_ = 0;
  std::vector<uint16_t> used_;  // by frame number
};

// Four levels whatever the guest uses, so that a guest's change of width is a change of mappings
// only. A changed entry is replaced by one store. Table pages that were unlinked stay as they are
// until ReleaseUnlinked, since the unit's paging-structure caches may hold them. Not thread-safe.
class ShadowTable {
 public:
  static constexpr int kLevels = 4;
  static constexpr IovaRange kAll{Iova(0), Iova(uint64_t{1} << 48)};

  // `pool` and `map` outlive the table.
  static absl::StatusOr<std::unique_ptr<ShadowTable>> Create(TablePool& pool, const HostMap& map);
  ~ShadowTable();
  ShadowTable(const ShadowTable&) = delete;
  ShadowTable& operator=(const ShadowTable&) = delete;

  // Maps the pages of `range` to guest_pa onwards, with host superpages where the guest's leaf and
  // the host's granule allow. Pages that are mapped so already are not touched: a superpage is
  // split by linking a table that holds the same pages, and merged by one store over the pointer.
  // Adds the leaf entries set, cleared or replaced to `changed`. ResourceExhausted: the cap on
  // table pages; part of the range may be set.
  absl::Status Set(IovaRange range, GuestPhys guest_pa, Access access, uint64_t& changed);
  // Maps one page where nothing is mapped, if its leaf table is the one used last. False: not done.
  bool SetFreshPage(Iova iova, GuestPhys guest_pa, Access access) {
    if (iova.value() >> vtd::LevelShift(2) != cached_span_) return false;
    const int index = vtd::LevelIndex(iova, 1);
    if (pool_.memory().Entries(cached_table_)[index] != 0) return false;
    Store(cached_table_, index,
          vtd::SecondStagePte::Leaf(ToPhys(map_.ToHost(guest_pa)), 1, access).raw);
    ++live_pages_;
    return true;
  }
  // Unmaps the pages of `range`. A superpage that it cuts is split; where no table page is left for
  // that, the whole superpage goes.
  void Clear(IovaRange range, uint64_t& changed);

  // Where one page leads, as the physical unit would find it.
  struct Page {
    HostPhys host;
    Access access;
  };
  std::optional<Page> Lookup(Iova iova) const;

  // Frees what was unlinked, after the physical unit's caches were told.
  void ReleaseUnlinked();

  PhysAddr root() const { return root_; }
  uint64_t live_pages() const { return live_pages_; }

 private:
  struct Target {
    uint64_t first;
    uint64_t end;
    uint64_t guest_pa_minus_iova;
    Access access;
  };

  ShadowTable(TablePool& pool, const HostMap& map, PhysAddr root);
  absl::Status SetIn(PhysAddr table, int level, uint64_t table_first, const Target& target,
                     uint64_t& changed);
  void ClearIn(PhysAddr table, int level, uint64_t table_first, IovaRange range, uint64_t& changed);
  // A table that maps what `leaf` at `level` maps; not linked yet.
  absl::StatusOr<PhysAddr> SplitTable(uint64_t leaf, int level);
  void Store(PhysAddr table, int index, uint64_t raw) {
    uint64_t* slot = pool_.memory().Entries(table) + index;
    const uint64_t old = __atomic_load_n(slot, __ATOMIC_RELAXED);
    uint16_t& used = pool_.used(table);
    used = static_cast<uint16_t>(used + (raw != 0) - (old != 0));
    __atomic_store_n(slot, raw, __ATOMIC_RELEASE);
    if (pool_.store_observer) pool_.store_observer();
  }
  // Leaf entries and 4K pages in a table and below.
  std::pair<uint64_t, uint64_t> CountBelow(PhysAddr table, int level) const;
  void Unlink(PhysAddr table, int level);
  void FreeTree(PhysAddr table, int level);

  TablePool& pool_;
  const HostMap& map_;
  const int max_leaf_level_;
  const PhysAddr root_;
  uint64_t live_pages_ = 0;
  std::vector<std::pair<PhysAddr, int>> unlinked_;
  // The leaf table used last, by iova >> 21.
  uint64_t cached_span_ = ~uint64_t{0};
  PhysAddr cached_table_;
};

}  // namespace viommu

#endif  // VIOMMU_IOMMU_CORE_SHADOW_SHADOW_TABLE_H_
