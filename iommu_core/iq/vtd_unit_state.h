// The parts of VtdUnit, private to this folder: registers in vtd_unit.cc, the invalidation queue in
// invalidation_queue.cc, register-based invalidation in register_invalidation.cc, faults and events
// in fault_event.cc.
#ifndef VIOMMU_IOMMU_CORE_IQ_VTD_UNIT_STATE_H_
#define VIOMMU_IOMMU_CORE_IQ_VTD_UNIT_STATE_H_

#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

#include "iommu_core/iq/register_file.h"
#include "iommu_core/iq/vtd_unit.h"

namespace viommu {

struct VtdUnit::State {
  State(VtdUnitOptions options_in, PhysicalMemory& memory_in, UnitBackend& backend_in);

  // vtd_unit.cc
  void DefineRegisters();
  // Software may not change this word now (11.4.8.3, 6.5.1): the write is ignored.
  bool Locked(uint32_t offset) const;
  // Side effects of software having written the word at `offset`.
  void OnWritten(uint32_t offset);
  void OnGlobalCommand();
  // Everything that waits for the backend, in the order a driver may rely on: registers, then
  // register-based invalidations, then the queue. Sets `status`.
  void Run();
  absl::Status PushRegisters();
  void SetGsts(uint64_t bit, bool on);
  bool gsts(uint64_t bit) const { return (registers.Get32(vtd::kGsts) & bit) != 0; }
  bool queue_enabled() const { return gsts(vtd::gcmd::Qie::kMask); }

  // invalidation_queue.cc
  void EnableQueue();
  void DisableQueue();
  void TurnQueueOff();
  void OnTailWritten();
  absl::Status RunQueue();
  // Offers `batch`, completes the waits of what was done and moves the head. Error status: `batch`
  // stays as it is.
  absl::StatusOr<UnitBackend::Outcome> ExecuteBatch();
  // 11.4.8.3
  bool wide_queue() const { return vtd::iqa::Dw::Get(registers.Get64(vtd::kIqa)) != 0; }
  uint64_t descriptor_bytes() const { return wide_queue() ? 32 : 16; }
  // 6.5.2: 2^(QS+8) descriptors of 16 bytes or 2^(QS+7) of 32: 4 KiB << QS either way.
  uint64_t ring_bytes() const { return kPageSize << vtd::iqa::Qs::Get(registers.Get64(vtd::kIqa)); }
  // What keeps the queue as a whole from being fetched (6.5.2.10).
  vtd::Iqei CheckQueue() const;
  // Reads and checks what lies between head and tail; the good prefix goes into `batch`.
  void FetchBatch();
  vtd::Iqei FetchOne(PhysAddr address);
  void AdvanceHead();
  // 6.5.2.8: false if the status word could not be written.
  bool CompleteWait(const vtd::InvalidationWait& wait);
  void QueueError(vtd::Iqei error);

  // register_invalidation.cc
  // Software set ICC or IVT: remembers the command, or answers it if the queue is on.
  void OnContextCommand();
  void OnIotlbCommand();
  absl::Status RunContextCommand();
  absl::Status RunIotlbCommand();
  // The granularity carried out; kReserved: an incorrect request, ignored.
  absl::StatusOr<vtd::Granularity> ExecuteOne(const vtd::Descriptor& descriptor,
                                              vtd::Granularity granularity);

  // fault_event.cc
  void Record(const vtd::FaultRecord& record);
  bool SourcePending(SourceId sid) const;
  uint32_t record_offset(uint32_t index) const {
    return options.caps.fault_record_offset() + 16 * index;
  }
  bool InFaultRecords(uint32_t offset) const {
    return offset >= record_offset(0) && offset < record_offset(fault_records);
  }
  void OnFaultStatusWritten();
  void OnFaultRecordWritten();
  void OnCompletionStatusWritten();
  void OnEventControlWritten(uint32_t control, const std::function<void()>& message);
  // Sets `bits` of FSTS; an interrupt condition if no status bit was set before (7.3).
  void RaiseFaultStatus(uint32_t bits);
  void RaiseCompletion();
  void Signal(uint32_t control, const std::function<void()>& message);
  void ClearEventIfServiced();

  VtdUnitOptions options;
  PhysicalMemory& memory;
  UnitBackend& backend;
  RegisterFile registers;
  const uint32_t iotlb_offset;  // IVA; IOTLB_REG is 8 above
  const uint32_t fault_records;

  UnitRegisters latched;                // acknowledged by the backend
  uint64_t translation_table_mode = 0;  // RTADDR.TTM as latched
  uint64_t doorbells = 0;

  absl::Status status;   // of the last Run()
  bool running = false;  // a callback may write registers: that must not start a second Run()
  std::optional<UnitRegisters> pending_registers;
  bool pending_root = false;  // SRTP is part of them
  bool pending_context_command = false;
  bool pending_iotlb_command = false;
  // What was fetched and offered to the backend. Kept while the backend's status is an error, so
  // that it is offered again exactly as it was checked, whatever the ring holds by then.
  struct Batch {
    std::vector<vtd::RawDescriptor> raw;
    std::vector<vtd::Descriptor> decoded;  // same size
    vtd::Iqei stop = vtd::Iqei::kNone;     // why fetching ended before the tail, if it did
  };
  Batch batch;

  uint64_t tail = 0;               // IQT.QT as accepted
  bool queue_stopped = false;      // by IQE
  bool disable_when_idle = false;  // QIE was cleared while `batch` was outstanding
  bool last_was_wait = false;      // the last descriptor consumed since QIE was set
  uint32_t next_record = 0;        // 7.2.1: the record that the next fault goes into
};

}  // namespace viommu

#endif  // VIOMMU_IOMMU_CORE_IQ_VTD_UNIT_STATE_H_
