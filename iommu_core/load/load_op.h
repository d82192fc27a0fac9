// One operation of a load: what a driver or the IOMMU core did, with the time and CPU it was done
// at. Traces parse into these; synthetic loads produce them; the runner executes them.
#ifndef VIOMMU_IOMMU_CORE_LOAD_LOAD_OP_H_
#define VIOMMU_IOMMU_CORE_LOAD_LOAD_OP_H_

#include <cstdint>

#include "iommu_core/base/types.h"

namespace viommu {

struct LoadOp {
  enum class Kind : uint8_t {
    kMap,  // iova (recorded) or chosen by the allocator when `choose_iova`
    kUnmap,
    kAttach,      // source_id to domain
    kDetach,      // source_id from domain
    kDomainFree,  // domain ends with all its mappings
    kMakeLazy,    // DMA-FQ was written to the type of the domain's group: it defers from now on
  };
  Kind kind = Kind::kMap;
  // map, unmap: the next one of this CPU belongs to the same list and one invalidation serves both
  bool list_continues = false;
  bool choose_iova = false;
  bool device_tlb = false;  // attach: the device has a device-TLB (ATS)
  Access access = kReadWrite;
  uint16_t cpu = 0;
  SourceId source_id;
  uint32_t domain = 0;   // dense index, 0 upwards
  uint64_t time_ns = 0;  // of the trace's clock
  Iova iova;
  GuestPhys guest_pa;
  uint64_t size_bytes = 0;
  // With `choose_iova`: names the mapping, so that the unmap finds the IOVA its map got.
  uint64_t tag = 0;
};

}  // namespace viommu

#endif  // VIOMMU_IOMMU_CORE_LOAD_LOAD_OP_H_
