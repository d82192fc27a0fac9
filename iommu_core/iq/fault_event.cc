// Fault recording (VT-d 7.2) and event messages (7.3, 6.5.2.8).
#include <utility>

#include "iommu_core/iq/vtd_unit_state.h"

namespace viommu {
namespace {

using vtd::fsts::Iqe;
using vtd::fsts::Pfo;
using vtd::fsts::Ppf;
using EventMask = vtd::event_control::Im;
using EventPending = vtd::event_control::Ip;

// 7.3: the status bits that make the fault event.
constexpr uint32_t kFaultConditions = static_cast<uint32_t>(
    Pfo::kMask | Ppf::kMask | Iqe::kMask | vtd::fsts::Ice::kMask | vtd::fsts::Ite::kMask);

}  // namespace

void VtdUnit::State::Record(const vtd::FaultRecord& record) {
  // 7.2.1: after an overflow nothing is recorded until software has cleared PFO.
  if ((registers.Get32(vtd::kFsts) & Pfo::kMask) != 0) return;
  if (SourcePending(record.source_id)) return;
  const uint32_t offset = record_offset(next_record);
  if (vtd::FaultRecord::F::Get(registers.Get64(offset + 8)) != 0) {
    registers.Set32(vtd::kFsts, registers.Get32(vtd::kFsts) | static_cast<uint32_t>(Pfo::kMask));
    return;
  }
  registers.Set64(offset, record.lo());
  registers.Set64(offset + 8, record.hi());
  const uint32_t index = std::exchange(next_record, (next_record + 1) % fault_records);
  const uint32_t fsts = registers.Get32(vtd::kFsts);
  if ((fsts & Ppf::kMask) != 0) return;
  registers.Set32(vtd::kFsts, static_cast<uint32_t>(vtd::fsts::Fri::Set(fsts, index)));
  RaiseFaultStatus(static_cast<uint32_t>(Ppf::kMask));
}

bool VtdUnit::State::SourcePending(SourceId sid) const {
  for (uint32_t i = 0; i < fault_records; ++i) {
    const uint64_t hi = registers.Get64(record_offset(i) + 8);
    if (vtd::FaultRecord::F::Get(hi) != 0 && vtd::FaultRecord::Sid::Get(hi) == sid.value()) {
      return true;
    }
  }
  return false;
}

void VtdUnit::State::OnFaultStatusWritten() {
  ClearEventIfServiced();
  if (!queue_stopped || (registers.Get32(vtd::kFsts) & Iqe::kMask) != 0) return;
  queue_stopped = false;
  registers.Set64(vtd::kIqercd, vtd::iqercd::Iqei::Set(registers.Get64(vtd::kIqercd), 0));
  // 6.5.2.10: fetching goes on. QEMU waits for the next tail write.
  if (!options.qemu_quirks) Run();
}

void VtdUnit::State::OnFaultRecordWritten() {
  for (uint32_t i = 0; i < fault_records; ++i) {
    if (vtd::FaultRecord::F::Get(registers.Get64(record_offset(i) + 8)) != 0) return;
  }
  // 11.4.7.1: PPF is the OR of the F fields.
  registers.Set32(vtd::kFsts, registers.Get32(vtd::kFsts) & ~static_cast<uint32_t>(Ppf::kMask));
  ClearEventIfServiced();
}

void VtdUnit::State::OnCompletionStatusWritten() {
  if ((registers.Get32(vtd::kIcs) & vtd::ics::Iwc::kMask) != 0) return;
  registers.Set32(vtd::kIectl,
                  registers.Get32(vtd::kIectl) & ~static_cast<uint32_t>(EventPending::kMask));
}

void VtdUnit::State::OnEventControlWritten(uint32_t control, const std::function<void()>& message) {
  const uint32_t value = registers.Get32(control);
  if ((value & EventMask::kMask) != 0 || (value & EventPending::kMask) == 0) return;
  registers.Set32(control, value & ~static_cast<uint32_t>(EventPending::kMask));
  if (message) message();
}

void VtdUnit::State::RaiseFaultStatus(uint32_t bits) {
  const uint32_t before = registers.Get32(vtd::kFsts);
  registers.Set32(vtd::kFsts, before | bits);
  if ((before & kFaultConditions) == 0) Signal(vtd::kFectl, options.fault_event);
}

void VtdUnit::State::RaiseCompletion() {
  const uint32_t before = registers.Get32(vtd::kIcs);
  registers.Set32(vtd::kIcs, before | static_cast<uint32_t>(vtd::ics::Iwc::kMask));
  if ((before & vtd::ics::Iwc::kMask) == 0) Signal(vtd::kIectl, options.invalidation_event);
}

void VtdUnit::State::Signal(uint32_t control, const std::function<void()>& message) {
  const uint32_t value = registers.Get32(control);
  if ((value & EventMask::kMask) != 0) {
    registers.Set32(control, value | static_cast<uint32_t>(EventPending::kMask));
    return;
  }
  if (message) message();
}

void VtdUnit::State::ClearEventIfServiced() {
  if ((registers.Get32(vtd::kFsts) & kFaultConditions) != 0) return;
  registers.Set32(vtd::kFectl,
                  registers.Get32(vtd::kFectl) & ~static_cast<uint32_t>(EventPending::kMask));
}

}  // namespace viommu
