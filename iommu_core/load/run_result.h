// What one run of one load under one policy and strategy cost: the counts of a `compare` row.
#ifndef VIOMMU_IOMMU_CORE_LOAD_RUN_RESULT_H_
#define VIOMMU_IOMMU_CORE_LOAD_RUN_RESULT_H_

#include <cstdint>

#include "iommu_core/base/cost_model.h"
#include "iommu_core/base/sync_cost.h"

namespace viommu {

// Totals over the measured part (the resident live set is built before it). Times without `wall`
// are on the virtual clock.
struct RunResult {
  uint64_t maps = 0;
  uint64_t unmaps = 0;
  uint64_t pages_mapped = 0;
  uint64_t pages_unmapped = 0;
  uint64_t map_updates = 0;  // table updates of the guest: one a segment of a list
  uint64_t unmap_updates = 0;
  uint64_t exits = 0;  // doorbells: trapped submissions
  uint64_t descriptors_iotlb_page = 0;
  uint64_t descriptors_iotlb_domain = 0;
  uint64_t descriptors_iotlb_global = 0;
  uint64_t descriptors_context = 0;
  uint64_t descriptors_device_tlb = 0;
  uint64_t descriptors_wait = 0;
  uint64_t flushes_full = 0;  // flush-queue flushes by reason
  uint64_t flushes_timeout = 0;
  uint64_t flushes_sync = 0;
  SyncCost sync;
  uint64_t pinned_pages_max = 0;
  uint64_t refused_pages = 0;     // maps refused by a limit and still waiting at the end
  double stale_page_seconds = 0;  // sum over unmapped pages of (revoked - unmapped)
  double stale_age_max_seconds = 0;
  uint64_t stale_dma_hits = 0;  // device touches after unmap returned that still succeeded
  uint64_t reused_while_stale_pages = 0;
  ModelledCost modelled;  // priced counts, all vCPUs
  double modelled_ns_total = 0;
  double virtual_seconds = 0;  // from first to last operation
  double wall_seconds = 0;
  double wall_ns_per_unmap_p50 = 0;
  double wall_ns_per_unmap_p99 = 0;
  uint64_t failed_ops = 0;  // operations that reported an error
};

}  // namespace viommu

#endif  // VIOMMU_IOMMU_CORE_LOAD_RUN_RESULT_H_
