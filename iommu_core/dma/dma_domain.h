// One IOMMU domain of the guest: its table, its IOVA space, its flush queue and the units that
// cache it. Data and bookkeeping; what is invalidated when is GuestMachine's business.
#ifndef VIOMMU_IOMMU_CORE_DMA_DMA_DOMAIN_H_
#define VIOMMU_IOMMU_CORE_DMA_DMA_DOMAIN_H_

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "iommu_core/base/types.h"
#include "iommu_core/dma/flush_chooser.h"
#include "iommu_core/dma/flush_queue.h"
#include "iommu_core/dma/page_lane.h"
#include "iommu_core/iova/iova_allocator.h"
#include "iommu_core/pt/second_stage_table.h"

namespace viommu {

// A unit that may cache this domain (Linux: cache tag), one per unit whatever the devices behind
// it.
struct DomainTag {
  DomainId did;
  uint32_t device_count = 0;
};

struct DomainDevice {
  uint32_t iommu = 0;
  bool device_tlb = false;
};

struct DmaDomain {
  uint32_t id = 0;
  std::unique_ptr<SecondStageTable> table;
  std::unique_ptr<IovaAllocator> iovas;
  std::vector<PageLane> lanes;         // by vCPU
  std::unique_ptr<FlushQueue> queue;   // lazy policies only, made at first use
  std::map<uint32_t, DomainTag> tags;  // by unit
  std::map<SourceId, DomainDevice> devices;
  absl::flat_hash_map<uint64_t, uint64_t> allocated;  // iova -> bytes, of Map
  bool pass_through = false;
  bool made_lazy = false;  // DMA-FQ was written to its group's type

  // `adaptive`: what its flushes cost, and how long they lately took from when their timer was due.
  FlushChooser chooser;
  double flush_latency_ns = 0;
};

}  // namespace viommu

#endif  // VIOMMU_IOMMU_CORE_DMA_DMA_DOMAIN_H_
