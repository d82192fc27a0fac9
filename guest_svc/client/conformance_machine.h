// The machine that every recorded case assumes, with our unit in it: 6 GiB of guest memory around
// the PCI hole, registers as QEMU presents them, DMA through a Translator or, for the shadow cases,
// descriptors into a hypervisor session.
#ifndef VIOMMU_GUEST_SVC_CLIENT_CONFORMANCE_MACHINE_H_
#define VIOMMU_GUEST_SVC_CLIENT_CONFORMANCE_MACHINE_H_

#include <memory>
#include <optional>
#include <vector>

#include "guest_svc/client/conformance_case.h"
#include "iommu_core/hw/translator.h"
#include "iommu_core/iq/vtd_unit.h"
#include "iommu_core/mem/sparse_memory.h"
#include "iommu_core/pt/walker.h"

namespace viommu::conformance {

// Guest memory is [0, 2G) and [4G, this).
inline constexpr uint64_t kMachineRamEnd = 0x200000000;

WalkRules MachineRules(int address_width);
SparseMemory MachineMemory();

class Machine {
 public:
  // `backend` null: the machine translates by itself (Dma works). Not null: outlives the machine.
  Machine(int address_width, bool qemu_quirks, SparseMemory& memory, UnitBackend* backend);

  // Carries the step out and says what software and the device see: the fields that
  // `step.accepted` look at are filled.
  Observation Run(const Step& step);

  VtdUnit& unit() { return unit_; }

 private:
  Observation RunDma(const Step& step);
  void WriteRegister(uint32_t offset, uint64_t size_bytes, uint64_t value);
  std::optional<RecordedFault> ReadFaultRecord();
  void ClearFaultRecord();

  SparseMemory& memory_;
  Translator translator_;
  VtdUnit unit_;
};

}  // namespace viommu::conformance

#endif  // VIOMMU_GUEST_SVC_CLIENT_CONFORMANCE_MACHINE_H_
