#include "iommu_core/base/cost_model.h"

namespace viommu {

ModelledCost PriceSync(const CostModel& model, const SyncCost& cost) {
  ModelledCost price;
  price.exit_ns = model.submission_ns + static_cast<double>(cost.descriptors) * model.descriptor_ns;
  // Entries read one by one are 8 bytes each; what is left of bytes_read was read in bulk.
  const uint64_t one_by_one = cost.ptes_read * sizeof(uint64_t);
  const uint64_t bulk_bytes = cost.bytes_read > one_by_one ? cost.bytes_read - one_by_one : 0;
  price.walk_ns = static_cast<double>(cost.leaves_visited) * model.leaf_visit_ns +
                  static_cast<double>(cost.ptes_read) * model.pte_read_ns +
                  static_cast<double>(bulk_bytes) / 1024.0 * model.bulk_read_ns_per_kib +
                  static_cast<double>(cost.ptes_changed) * model.pte_change_ns;
  price.dma_ns = static_cast<double>(cost.dma_maps) * model.dma_map_ns +
                 static_cast<double>(cost.dma_unmaps) * model.dma_unmap_ns +
                 static_cast<double>(cost.pages_pinned) * model.pin_page_ns;
  price.hw_ns = static_cast<double>(cost.iotlb_invalidations) * model.hw_invalidation_ns;
  return price;
}

}  // namespace viommu
