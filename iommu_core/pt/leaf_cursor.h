// One vCPU's way to the leaf table that it used last.
#ifndef VIOMMU_IOMMU_CORE_PT_LEAF_CURSOR_H_
#define VIOMMU_IOMMU_CORE_PT_LEAF_CURSOR_H_

#include <cstdint>
#include <optional>

#include "iommu_core/base/types.h"
#include "iommu_core/mem/dirty_log.h"
#include "iommu_core/pt/second_stage_table.h"
#include "iommu_core/vtd/second_stage_pte.h"

namespace viommu {

// Sets and clears single 4K pages with one store each, without a lock and without a walk while it
// stays in one span of 2 MiB. Its thread owns the IOVAs it is given, as dma_map does: nobody else
// maps, unmaps or splits there meanwhile. A leaf table is unlinked only by an unmap of its whole
// span, and an IOVA of that span is handed out again only after that unmap; so a cursor that is
// asked for it sees the new count of unlinks and does not use the old table.
class LeafCursor {
 public:
  // `table` and `marks` outlive the cursor; null: no log is kept. The caller publishes the marks.
  LeafCursor(const SecondStageTable& table, DirtyMarks* marks) : table_(&table), marks_(marks) {}

  // Maps one page. False, and nothing is done: no leaf table there yet, not in place, or the page
  // is mapped already; Map of the table does it, or says why not.
  bool Set(Iova iova, PhysAddr page, Access access) {
    if (!Seek(iova)) return false;
    uint64_t* entry = leaf_ + vtd::LevelIndex(iova, 1);
    if (vtd::SecondStagePte{__atomic_load_n(entry, __ATOMIC_RELAXED)}.present()) return false;
    Store(entry, vtd::SecondStagePte::Leaf(page, 1, access).raw);
    return true;
  }

  // Unmaps one page and returns the entry that stood there; nullopt, and nothing is done, as above
  // or where nothing is mapped.
  std::optional<vtd::SecondStagePte> Clear(Iova iova) {
    if (!Seek(iova)) return std::nullopt;
    uint64_t* entry = leaf_ + vtd::LevelIndex(iova, 1);
    const vtd::SecondStagePte old{__atomic_load_n(entry, __ATOMIC_RELAXED)};
    if (!old.present()) return std::nullopt;
    Store(entry, 0);
    return old;
  }

 private:
  bool Seek(Iova iova) {
    const uint64_t span = iova.value() >> vtd::LevelShift(2);
    return (span == span_ && unlinks_ == table_->unlinks()) || Find(iova, span);
  }
  bool Find(Iova iova, uint64_t span);
  void Store(uint64_t* entry, uint64_t raw) {
    // Release: the page's own content was written before a device may reach it.
    __atomic_store_n(entry, raw, __ATOMIC_RELEASE);
    if (marks_ != nullptr) {
      marks_->Add(leaf_at_ + sizeof(uint64_t) * static_cast<uint64_t>(entry - leaf_));
    }
  }

  const SecondStageTable* table_;
  DirtyMarks* marks_;
  uint64_t span_ = ~uint64_t{0};  // iova >> 21
  uint64_t unlinks_ = 0;
  uint64_t* leaf_ = nullptr;
  PhysAddr leaf_at_;
};

}  // namespace viommu

#endif  // VIOMMU_IOMMU_CORE_PT_LEAF_CURSOR_H_
