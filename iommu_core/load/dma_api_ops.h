// From a recorded stream of table operations back to the driver's calls: which IOVA a buffer gets
// is the allocator's choice, and that choice depends on the policy.
#ifndef VIOMMU_IOMMU_CORE_LOAD_DMA_API_OPS_H_
#define VIOMMU_IOMMU_CORE_LOAD_DMA_API_OPS_H_

#include <cstdint>
#include <vector>

#include "iommu_core/load/load_op.h"

namespace viommu {

struct DmaApiOps {
  std::vector<LoadOp> ops;
  // Domains whose unmaps do not pair with whole lists (VFIO, direct maps): they keep their recorded
  // IOVAs.
  uint32_t recorded_domains = 0;
};

// A trace recorded under one policy replayed under another must not reuse an IOVA at the recorded
// moment: under a lazy policy the kernel would not have given it out yet. So every list that is
// unmapped whole becomes one dma_map / dma_unmap pair with `choose_iova` and a `tag`. List limits
// are corrected by the unmaps where the recording's times misled (two lists joined, one list cut).
DmaApiOps ToDmaApiOps(std::vector<LoadOp> ops);

}  // namespace viommu

#endif  // VIOMMU_IOMMU_CORE_LOAD_DMA_API_OPS_H_
