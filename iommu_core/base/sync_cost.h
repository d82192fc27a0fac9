// What the hypervisor did for one invalidation, in exact counts. Never estimated, never a time:
// modelled time is these counts priced by a CostModel (cost_model.h).
#ifndef VIOMMU_IOMMU_CORE_BASE_SYNC_COST_H_
#define VIOMMU_IOMMU_CORE_BASE_SYNC_COST_H_

#include <cstdint>

namespace viommu {

struct SyncCost {
  uint64_t descriptors = 0;          // descriptors consumed, waits included
  uint64_t table_pages_read = 0;     // visits to a root, context or page-table page
  uint64_t ptes_read = 0;            // 8-byte guest entries looked at one by one (root/context too)
  uint64_t bytes_read = 0;           // all guest table bytes read, bulk compares included
  uint64_t leaves_visited = 0;       // present leaf entries looked up in the record of mappings
  uint64_t ptes_changed = 0;         // shadow leaf entries set, cleared or replaced
  uint64_t dma_maps = 0;             // DMA container map calls, failed ones included
  uint64_t dma_unmaps = 0;           // DMA container unmap calls
  uint64_t dma_map_failures = 0;     // of those maps, refused (entry limit, pin limit)
  uint64_t pages_pinned = 0;         // 4K pages pinned by those maps
  uint64_t pages_unpinned = 0;       // 4K pages released
  uint64_t iotlb_invalidations = 0;  // descriptors submitted to the physical IOMMU's own queue
  uint64_t shadow_mismatches = 0;    // pages on which shadow and reference walk differ
  uint64_t verified_pages = 0;       // pages the oracle compared
  // Remote guest memory only: what the synchronisation, not the oracle, copied from the guest.
  uint64_t remote_pages = 0;
  uint64_t remote_bytes = 0;
  uint64_t remote_round_trips = 0;  // waits for the guest's answer

  SyncCost& operator+=(const SyncCost& o) {
    descriptors += o.descriptors;
    table_pages_read += o.table_pages_read;
    ptes_read += o.ptes_read;
    bytes_read += o.bytes_read;
    leaves_visited += o.leaves_visited;
    ptes_changed += o.ptes_changed;
    dma_maps += o.dma_maps;
    dma_unmaps += o.dma_unmaps;
    dma_map_failures += o.dma_map_failures;
    pages_pinned += o.pages_pinned;
    pages_unpinned += o.pages_unpinned;
    iotlb_invalidations += o.iotlb_invalidations;
    shadow_mismatches += o.shadow_mismatches;
    verified_pages += o.verified_pages;
    remote_pages += o.remote_pages;
    remote_bytes += o.remote_bytes;
    remote_round_trips += o.remote_round_trips;
    return *this;
  }
  friend bool operator==(const SyncCost&, const SyncCost&) = default;
};

}  // namespace viommu

#endif  // VIOMMU_IOMMU_CORE_BASE_SYNC_COST_H_
