// Modelled time: exact counts priced by cited constants. The constants of a named preset live in
// deploy/presets/*.textproto with their source, range and certainty; this is their plain form.
#ifndef VIOMMU_IOMMU_CORE_BASE_COST_MODEL_H_
#define VIOMMU_IOMMU_CORE_BASE_COST_MODEL_H_

#include <cstdint>
#include <string>

#include "iommu_core/base/sync_cost.h"

namespace viommu {

// All in nanoseconds per event.
struct CostModel {
  std::string preset_name = "qemu-trap";
  double map_update_ns = 900;        // guest: one map call's table update
  double unmap_update_ns = 900;      // guest: one unmap call's table update
  double queue_build_ns = 930;       // guest: build descriptors, write the tail, see the status
  double submission_ns = 6700;       // one trapped submission (an exit and its dispatch)
  double descriptor_ns = 0;          // decode and dispatch of one descriptor beyond the exit
  double leaf_visit_ns = 100;        // per present leaf visited in a walk
  double pte_read_ns = 0;            // per further entry read one by one
  double bulk_read_ns_per_kib = 50;  // per KiB of table bytes compared in bulk
  double pte_change_ns = 0;          // per shadow entry changed
  double dma_map_ns = 4700;          // one container map call
  double dma_unmap_ns = 820;         // one container unmap call
  double pin_page_ns = 940;          // first pin of one 4K page
  double hw_invalidation_ns = 700;   // one physical invalidation
  double lock_spin_ns = 0;           // convoy term: per waiter, each hand-over of the queue lock
};

// The price of a submission, split by who causes it. Sum with total().
struct ModelledCost {
  double guest_ns = 0;  // table update and queue build
  double exit_ns = 0;   // trapped submissions
  double walk_ns = 0;   // reading guest tables
  double dma_ns = 0;    // container calls and pinning
  double hw_ns = 0;     // physical invalidations
  double wait_ns = 0;   // waiting for the queue lock

  double total() const { return guest_ns + exit_ns + walk_ns + dma_ns + hw_ns + wait_ns; }
  ModelledCost& operator+=(const ModelledCost& o) {
    guest_ns += o.guest_ns;
    exit_ns += o.exit_ns;
    walk_ns += o.walk_ns;
    dma_ns += o.dma_ns;
    hw_ns += o.hw_ns;
    wait_ns += o.wait_ns;
    return *this;
  }
  friend ModelledCost operator-(ModelledCost a, const ModelledCost& b) {
    a.guest_ns -= b.guest_ns;
    a.exit_ns -= b.exit_ns;
    a.walk_ns -= b.walk_ns;
    a.dma_ns -= b.dma_ns;
    a.hw_ns -= b.hw_ns;
    a.wait_ns -= b.wait_ns;
    return a;
  }
};

// Prices the hypervisor's part of one submission (exit, walk, container, hardware).
ModelledCost PriceSync(const CostModel& model, const SyncCost& cost);

}  // namespace viommu

#endif  // VIOMMU_IOMMU_CORE_BASE_COST_MODEL_H_
