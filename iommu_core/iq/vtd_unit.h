// One VT-d remapping unit as software sees it: the register file, the queued-invalidation fetch,
// fault recording and event delivery (VT-d 5.10, chapters 6, 7 and 11). The guest's virtual unit
// and the hypervisor's physical unit are both this class; they differ in the backend that carries
// out what the unit accepted.
#ifndef VIOMMU_IOMMU_CORE_IQ_VTD_UNIT_H_
#define VIOMMU_IOMMU_CORE_IQ_VTD_UNIT_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "iommu_core/base/types.h"
#include "iommu_core/iq/invalidation_sink.h"
#include "iommu_core/mem/physical_memory.h"
#include "iommu_core/vtd/capability.h"
#include "iommu_core/vtd/fault.h"
#include "iommu_core/vtd/inv_descriptor.h"
#include "iommu_core/vtd/registers.h"

namespace viommu {

// Carries out what a unit accepted.
class UnitBackend {
 public:
  virtual ~UnitBackend() = default;

  struct Outcome {
    uint32_t consumed = 0;               // descriptors done, in order
    vtd::Iqei error = vtd::Iqei::kNone;  // not kNone: descriptor [consumed] was refused
  };
  // Descriptors in ring order, already decoded and verified, waits included (their status words and
  // interrupts are the unit's own business, after this returns). An error status: nothing is known
  // to be done; the unit keeps its head and offers the same descriptors again on Resume().
  virtual absl::StatusOr<Outcome> Execute(std::span<const vtd::RawDescriptor> raw,
                                          std::span<const vtd::Descriptor> decoded) = 0;
  // GCMD.SRTP latched a root table, or GCMD.TE changed.
  virtual absl::Status RegistersChanged(const UnitRegisters& registers) = 0;
};

struct VtdUnitOptions {
  // ECAP.IRO and CAP.FRO place their registers behind the fixed ones (0xc0 and above).
  vtd::Capabilities caps;
  int haw_bits = 48;
  // Reproduce QEMU's departures from the specification (README.md lists each).
  bool qemu_quirks = false;
  // FECTL, IECTL: a message would be sent. They may use the unit's registers.
  std::function<void()> fault_event;
  std::function<void()> invalidation_event;
};

// Not thread-safe: the holder of the queue lock drives it.
class VtdUnit final : public RegisterPort {
 public:
  // `memory` and `backend` outlive the unit.
  VtdUnit(VtdUnitOptions options, PhysicalMemory& memory, UnitBackend& backend);
  ~VtdUnit() override;

  uint32_t Read32(uint32_t offset) override;
  uint64_t Read64(uint32_t offset) override;
  // A write to IQT is the doorbell: every descriptor up to the tail is executed before it returns.
  void Write32(uint32_t offset, uint32_t value) override;
  void Write64(uint32_t offset, uint64_t value) override;

  // 7.2: records a fault (the caller has applied FPD): overflow, compression, pending, event.
  void RecordFault(const vtd::FaultRecord& record);
  // Goes on after the backend reported an error status; OK once head = tail or IQE is set.
  absl::Status Resume();
  // Status of the last attempt to carry out descriptors; OK if head = tail or IQE is set.
  absl::Status last_status() const;

  const UnitRegisters& latched() const;
  const vtd::Capabilities& caps() const;
  // IQT writes while the queue was enabled, since construction.
  uint64_t doorbells() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace viommu

#endif  // VIOMMU_IOMMU_CORE_IQ_VTD_UNIT_H_
