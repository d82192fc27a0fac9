// The physical unit's second-stage tables of one shadow, in modelled host memory.
#ifndef VIOMMU_IOMMU_CORE_SHADOW_SHADOW_TABLE_H_
#define VIOMMU_IOMMU_CORE_SHADOW_SHADOW_TABLE_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "iommu_core/base/types.h"
#include "iommu_core/mem/host_memory.h"
#include "iommu_core/shadow/entry_line.h"
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
  // Stores to one table of 4K entries, counted together when it is closed.
  class LeafWriter {
   public:
    void Put(int index, uint64_t raw) {
      uint64_t* entry = entries_ + index;
      const uint64_t old = __atomic_load_n(entry, __ATOMIC_RELAXED);
      stores_ += static_cast<uint64_t>(raw != old);
      gain_ += static_cast<uint64_t>(raw != 0) - static_cast<uint64_t>(old != 0);
      __atomic_store_n(entry, raw, __ATOMIC_RELEASE);
      if (*observer_) (*observer_)();
    }
    // The entries of the line that starts at `first`. The caller knows how many of them are not so
    // already, and by how many more they are that are not zero.
    void PutLine(int first, const EntryLine& raw, uint64_t changed, uint64_t gain) {
      const auto put = [&](int i) {
        __atomic_store_n(entries_ + first + i, raw[static_cast<size_t>(i)], __ATOMIC_RELEASE);
      };
      if (*observer_) [[unlikely]] {
        for (int i = 0; i < kLineEntries; ++i) {
          put(i);
          (*observer_)();
        }
      } else {
#pragma GCC unroll 8
        for (int i = 0; i < kLineEntries; ++i) put(i);
      }
      stores_ += changed;
      gain_ += gain;
    }
    const uint64_t* entries() const { return entries_; }

   private:
    friend class ShadowTable;
    LeafWriter(PhysAddr table, uint64_t* entries, const std::function<void()>* observer)
        : table_(table), entries_(entries), observer_(observer) {}

    PhysAddr table_;
    uint64_t* entries_;
    const std::function<void()>* observer_;
    uint64_t stores_ = 0;
    uint64_t gain_ = 0;
  };
  // The table of 4K entries over the 2 MiB around `iova`. None: nothing, or a superpage, is there.
  // Nothing else may change the table before it is closed.
  std::optional<LeafWriter> OpenLeafTable(Iova iova);
  // Adds the entries that were not so already to `changed`. False: the table is empty now, and is
  // to be unlinked by Clear.
  bool Close(const LeafWriter& leaf, uint64_t& changed);
  // Links a table of 4K entries over the 2 MiB around `iova` if nothing is mapped there. `fill`
  // writes the 512 entries of a zeroed table and returns how many are not zero; none: nothing is
  // linked. False: something is mapped there, or no table page is left; `fill` may have been
  // called.
  bool LinkFreshTable(Iova iova, absl::FunctionRef<uint64_t(uint64_t* entries)> fill);
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
  bool LinkIn(PhysAddr table, int level, Iova iova, PhysAddr leaf_table);
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
  // The leaf table used last, by iova >> 21, and the table above the leaf tables, by iova >> 30.
  uint64_t cached_span_ = ~uint64_t{0};
  PhysAddr cached_table_;
  uint64_t cached_upper_span_ = ~uint64_t{0};
  PhysAddr cached_upper_;
};

}  // namespace viommu

#endif  // VIOMMU_IOMMU_CORE_SHADOW_SHADOW_TABLE_H_
