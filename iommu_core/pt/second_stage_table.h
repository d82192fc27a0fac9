// Builds and edits second-stage tables in real VT-d format: the guest's in guest memory, the
// hypervisor's in host memory.
#ifndef VIOMMU_IOMMU_CORE_PT_SECOND_STAGE_TABLE_H_
#define VIOMMU_IOMMU_CORE_PT_SECOND_STAGE_TABLE_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "iommu_core/base/types.h"
#include "iommu_core/mem/physical_memory.h"
#include "iommu_core/vtd/capability.h"
#include "iommu_core/vtd/second_stage_pte.h"

namespace viommu {

struct UnmapResult {
  uint64_t unmapped_bytes = 0;
  // Tables that the range covered whole, already unlinked. Free them only after the invalidation
  // that covers the range has completed.
  std::vector<PhysAddr> freed_tables;
};

struct MapResult {
  // Empty tables that a large leaf replaced. They, too, are free only after an invalidation, and
  // the caches that held their pointers need one before the new leaf's own (Linux fixed this as
  // "force to flush iotlb before creating superpage").
  std::vector<PhysAddr> replaced_tables;
  // The span of each large leaf that replaced tables, in order.
  std::vector<IovaRange> replaced_ranges;
};

// One table tree. Not thread-safe against itself; hardware may walk it at any time, so an entry is
// always published by a single 8-byte store and a new table is complete before it is linked. Beside
// it, cursors of other threads may set and clear single pages in ranges that are theirs alone.
class SecondStageTable {
 public:
  // `levels` 3 or 4. Fails when no frame is free.
  static absl::StatusOr<std::unique_ptr<SecondStageTable>> Create(PhysicalMemory& memory,
                                                                  FrameAllocator& frames,
                                                                  int levels,
                                                                  vtd::Capabilities caps);
  // Frees every table page. The caller has made sure no device can still walk it.
  ~SecondStageTable();
  SecondStageTable(const SecondStageTable&) = delete;
  SecondStageTable& operator=(const SecondStageTable&) = delete;

  // Maps [iova, iova + size_bytes) to [address, ...) with the largest leaves that alignment and
  // capability allow (Linux pt_compute_best_pgsize). All of it or nothing: AlreadyExists if a page
  // of it is mapped, ResourceExhausted if frames run out.
  absl::StatusOr<MapResult> Map(Iova iova, PhysAddr address, uint64_t size_bytes, Access access);

  // Clears every leaf in the range; pages not mapped are skipped. A large leaf that is only partly
  // covered is split first (one store replaces it, the rest of it never goes missing).
  absl::StatusOr<UnmapResult> Unmap(IovaRange range);

  // Replaces the leaf entry of [iova, iova + LevelSize(level)) by one store. NotFound if no leaf of
  // that level stands there.
  absl::Status Replace(Iova iova, int level, vtd::SecondStagePte leaf);

  // The entry that ends the walk of `iova`, and its level; raw 0 where nothing is mapped.
  struct Entry {
    vtd::SecondStagePte pte;
    int level = 0;
  };
  Entry Find(Iova iova) const;

  // Called with the table page's address before each entry store (dirty log); may be empty.
  void set_write_hook(absl::AnyInvocable<void(PhysAddr slot)> hook) { hook_ = std::move(hook); }

  PhysAddr root() const { return root_; }
  int levels() const { return levels_; }
  int width_bits() const { return vtd::WidthOfLevels(levels_); }
  uint64_t table_pages() const { return table_pages_; }
  // Counts up whenever a table is unlinked: who remembers where a leaf table lies (LeafCursor)
  // looks it up again then.
  uint64_t unlinks() const { return unlinks_.load(std::memory_order_acquire); }
  // The leaf table on the way to `iova`; nullopt where there is none. Any thread.
  std::optional<PhysAddr> LeafTableOf(Iova iova) const;
  const PhysicalMemory& memory() const { return memory_; }
  // Returns frames listed in an UnmapResult or MapResult once it is safe.
  void FreeTables(const std::vector<PhysAddr>& tables);

 private:
  static constexpr int kMaxLevels = 5;

  SecondStageTable(PhysicalMemory& memory, FrameAllocator& frames, int levels,
                   vtd::Capabilities caps, PhysAddr root);
  uint64_t Load(PhysAddr slot) const { return memory_.Read64(slot).value_or(0); }
  void Store(PhysAddr slot, uint64_t raw);
  int BestLevel(Iova iova, PhysAddr address, uint64_t size_bytes) const;
  // The table at `level` that holds `iova`, made on the way if missing.
  absl::StatusOr<PhysAddr> TableFor(Iova iova, int level);
  absl::Status Split(PhysAddr slot, int level);
  bool SubtreeEmpty(PhysAddr table, int level) const;
  void CollectTables(PhysAddr table, int level, std::vector<PhysAddr>& out);
  void ForgetCursors() {
    cached_span_ = ~uint64_t{0};
    unlinks_.fetch_add(1, std::memory_order_release);
  }
  uint64_t UnmapIn(PhysAddr table, int level, Iova table_first, IovaRange range,
                   std::vector<PhysAddr>& freed);

  PhysicalMemory& memory_;
  FrameAllocator& frames_;
  const int levels_;
  const vtd::Capabilities caps_;
  const PhysAddr root_;
  uint64_t table_pages_ = 1;
  std::atomic<uint64_t> unlinks_{0};
  absl::AnyInvocable<void(PhysAddr slot)> hook_;
  // The last leaf table used: consecutive maps and unmaps of small ranges hit it.
  uint64_t cached_span_ = ~uint64_t{0};  // iova >> 21
  PhysAddr cached_leaf_table_;
};

}  // namespace viommu

#endif  // VIOMMU_IOMMU_CORE_PT_SECOND_STAGE_TABLE_H_
