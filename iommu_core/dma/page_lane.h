// What one vCPU needs to map and unmap single pages of one domain without meeting another vCPU.
#ifndef VIOMMU_IOMMU_CORE_DMA_PAGE_LANE_H_
#define VIOMMU_IOMMU_CORE_DMA_PAGE_LANE_H_

#include <cstdint>

#include "iommu_core/iova/iova_stash.h"
#include "iommu_core/mem/dirty_log.h"
#include "iommu_core/pt/leaf_cursor.h"
#include "iommu_core/vtd/inv_descriptor.h"

namespace viommu {

// IOVAs at hand and the way to the leaf table used last. One thread at a time; lanes of one domain
// share no cache line but those of the tables.
class alignas(64) PageLane {
 public:
  PageLane(IovaAllocator& iova_space, uint32_t vcpu, const SecondStageTable& table,
           DirtyMarks* marks)
      : iovas(iova_space, vcpu), entries(table, marks) {}

  IovaStash iovas;
  LeafCursor entries;
};

// The page-selective descriptor of one page, from that of page 0 of the same domain and hint.
inline vtd::RawDescriptor PageDescriptor(const vtd::RawDescriptor& of_page_0, Iova iova) {
  return {of_page_0.qw0, of_page_0.qw1 | iova.value(), 0, 0};
}

}  // namespace viommu

#endif  // VIOMMU_IOMMU_CORE_DMA_PAGE_LANE_H_
