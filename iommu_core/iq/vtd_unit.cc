#include "iommu_core/iq/vtd_unit.h"

#include <algorithm>
#include <utility>

#include "iommu_core/iq/vtd_unit_state.h"

namespace viommu {
namespace {

using vtd::gcmd::Cfi;
using vtd::gcmd::Ire;
using vtd::gcmd::Qie;
using vtd::gcmd::Sirtp;
using vtd::gcmd::Srtp;
using vtd::gcmd::Te;

// 11.4.1: architecture version 1.0.
constexpr uint32_t kVersion = 0x10;
constexpr uint32_t kFixedRegistersEnd = 0xc0;
constexpr uint32_t kEventMasked = static_cast<uint32_t>(vtd::event_control::Im::kMask);
// 11.4.8.1, 11.4.8.2: head and tail, bits 18:4.
constexpr uint64_t kQueueOffset = BitMask(18, 4);

namespace pmen {
using Prs = Bit<0>;
using Epm = Bit<31>;
}  // namespace pmen

// QEMU has one fault recording register, whatever CAP.NFR says.
uint32_t FaultRecords(const VtdUnitOptions& options) {
  return options.qemu_quirks ? 1 : static_cast<uint32_t>(options.caps.fault_records());
}

uint32_t FileSize(const VtdUnitOptions& options) {
  return std::max({kFixedRegistersEnd, options.caps.iotlb_offset() + 16,
                   options.caps.fault_record_offset() + 16 * FaultRecords(options)});
}

}  // namespace

VtdUnit::State::State(VtdUnitOptions options_in, PhysicalMemory& memory_in, UnitBackend& backend_in)
    : options(std::move(options_in)),
      memory(memory_in),
      backend(backend_in),
      registers(FileSize(options)),
      iotlb_offset(options.caps.iotlb_offset()),
      fault_records(FaultRecords(options)) {
  DefineRegisters();
}

void VtdUnit::State::DefineRegisters() {
  const uint64_t cap = options.caps.cap;
  const uint64_t ecap = options.caps.ecap;
  const uint64_t address = BitMask(63, kPageShift);
  const uint64_t event_address = BitMask(31, 2);

  registers.Define32(vtd::kVer, kVersion, {});
  registers.Define64(vtd::kCap, cap, {});
  registers.Define64(vtd::kEcap, ecap, {});
  registers.Define32(vtd::kGcmd, 0, {.rw = BitMask(31, 0), .write_only = BitMask(31, 0)});
  registers.Define32(vtd::kGsts, 0, {});
  registers.Define64(vtd::kRtaddr, 0, {.rw = address | vtd::rtaddr::Ttm::kMask});
  registers.Define64(vtd::kCcmd, 0,
                     {.rw = vtd::ccmd::Did::kMask | vtd::ccmd::Sid::kMask | vtd::ccmd::Fm::kMask |
                            vtd::ccmd::Cirg::kMask | vtd::ccmd::Icc::kMask,
                      .write_only = vtd::ccmd::Sid::kMask | vtd::ccmd::Fm::kMask});
  registers.Define32(vtd::kFsts, 0,
                     {.rw1c = vtd::fsts::Pfo::kMask | vtd::fsts::Iqe::kMask |
                              vtd::fsts::Ice::kMask | vtd::fsts::Ite::kMask});
  registers.Define32(vtd::kFectl, kEventMasked, {.rw = kEventMasked});
  registers.Define32(vtd::kFedata, 0, {.rw = BitMask(31, 0)});
  registers.Define32(vtd::kFeaddr, 0, {.rw = event_address});
  registers.Define32(vtd::kFeuaddr, 0, {.rw = BitMask(31, 0)});
  if (vtd::cap::Plmr::Get(cap) != 0 || vtd::cap::Phmr::Get(cap) != 0) {
    registers.Define32(vtd::kPmen, 0, {.rw = pmen::Epm::kMask});
  }
  if (options.caps.queued_invalidation()) {
    uint64_t iqa = address | vtd::iqa::Qs::kMask | vtd::iqa::Dw::kMask;
    // QEMU has no DW bit without scalable mode; here a wide queue then ends in IQEI 5.
    if (options.qemu_quirks && vtd::ecap::Smts::Get(ecap) == 0) iqa &= ~vtd::iqa::Dw::kMask;
    registers.Define64(vtd::kIqh, 0, {});
    registers.Define64(vtd::kIqt, 0, {.rw = kQueueOffset});
    registers.Define64(vtd::kIqa, 0, {.rw = iqa});
    registers.Define32(vtd::kIcs, 0, {.rw1c = vtd::ics::Iwc::kMask});
    registers.Define32(vtd::kIectl, kEventMasked, {.rw = kEventMasked});
    registers.Define32(vtd::kIedata, 0, {.rw = BitMask(31, 0)});
    registers.Define32(vtd::kIeaddr, 0, {.rw = event_address});
    registers.Define32(vtd::kIeuaddr, 0, {.rw = BitMask(31, 0)});
    registers.Define64(vtd::kIqercd, 0, {});
  }
  if (vtd::ecap::Ir::Get(ecap) != 0) {
    registers.Define64(vtd::kIrta, 0, {.rw = address | BitMask(11, 11) | BitMask(3, 0)});
  }
  const uint64_t iva = address | vtd::iva::Am::kMask | vtd::iva::Ih::kMask;
  registers.Define64(iotlb_offset, 0, {.rw = iva, .write_only = iva});
  registers.Define64(iotlb_offset + 8, 0,
                     {.rw = vtd::iotlb::Did::kMask | vtd::iotlb::Dw::kMask | vtd::iotlb::Dr::kMask |
                            vtd::iotlb::Iirg::kMask | vtd::iotlb::Ivt::kMask});
  for (uint32_t i = 0; i < fault_records; ++i) {
    registers.Define64(record_offset(i), 0, {});
    registers.Define64(record_offset(i) + 8, 0, {.rw1c = vtd::FaultRecord::F::kMask});
  }
}

bool VtdUnit::State::Locked(uint32_t offset) const {
  const uint32_t reg = offset & ~7u;
  if (reg == vtd::kIqa) return queue_enabled();
  if (reg == vtd::kCcmd) return pending_context_command;
  if (reg == iotlb_offset || reg == iotlb_offset + 8) return pending_iotlb_command;
  return false;
}

void VtdUnit::State::OnWritten(uint32_t offset) {
  if (offset == iotlb_offset + 12) return OnIotlbCommand();
  if (InFaultRecords(offset)) return OnFaultRecordWritten();
  switch (offset) {
    case vtd::kGcmd:
      return OnGlobalCommand();
    case vtd::kCcmd + 4:
      return OnContextCommand();
    case vtd::kFsts:
      return OnFaultStatusWritten();
    case vtd::kFectl:
      return OnEventControlWritten(vtd::kFectl, options.fault_event);
    case vtd::kPmen: {
      const uint32_t value = registers.Get32(vtd::kPmen);
      registers.Set32(vtd::kPmen,
                      static_cast<uint32_t>(pmen::Prs::Set(value, pmen::Epm::Get(value))));
      return;
    }
    case vtd::kIqt:
      return OnTailWritten();
    case vtd::kIcs:
      return OnCompletionStatusWritten();
    case vtd::kIectl:
      return OnEventControlWritten(vtd::kIectl, options.invalidation_event);
    default:
      return;
  }
}

void VtdUnit::State::OnGlobalCommand() {
  const uint32_t command = registers.Get32(vtd::kGcmd);
  UnitRegisters wanted = pending_registers.value_or(latched);
  bool changed = false;
  if (Srtp::Get(command) != 0) {  // one-shot
    const uint64_t rtaddr = registers.Get64(vtd::kRtaddr);
    wanted.root_table = PhysAddr(rtaddr & BitMask(options.haw_bits - 1, kPageShift));
    translation_table_mode = vtd::rtaddr::Ttm::Get(rtaddr);
    SetGsts(Srtp::kMask, false);
    pending_root = true;
    changed = true;
  }
  const bool enable = Te::Get(command) != 0;
  if (enable != wanted.translation_enabled) {
    wanted.translation_enabled = enable;
    changed = true;
  }
  if (changed) pending_registers = wanted;

  if (vtd::ecap::Ir::Get(options.caps.ecap) != 0) {
    if (Sirtp::Get(command) != 0) SetGsts(Sirtp::kMask, true);
    SetGsts(Ire::kMask, Ire::Get(command) != 0);
    SetGsts(Cfi::kMask, Cfi::Get(command) != 0);
  }
  // WBF completes at once: nothing here buffers writes, so GSTS.WBFS is never seen set.
  if (options.caps.queued_invalidation()) {
    if (Qie::Get(command) == 0) {
      if (queue_enabled()) DisableQueue();
    } else {
      disable_when_idle = false;
      if (!queue_enabled()) EnableQueue();
    }
  }
  Run();
}

void VtdUnit::State::Run() {
  if (running) return;
  running = true;
  status = [this] {
    if (absl::Status pushed = PushRegisters(); !pushed.ok()) return pushed;
    if (pending_context_command) {
      if (absl::Status done = RunContextCommand(); !done.ok()) return done;
    }
    if (pending_iotlb_command) {
      if (absl::Status done = RunIotlbCommand(); !done.ok()) return done;
    }
    return RunQueue();
  }();
  running = false;
}

absl::Status VtdUnit::State::PushRegisters() {
  if (!pending_registers) return absl::OkStatus();
  const UnitRegisters wanted = *pending_registers;
  if (absl::Status pushed = backend.RegistersChanged(wanted); !pushed.ok()) return pushed;
  pending_registers.reset();
  latched = wanted;
  // 11.4.4: the status bits tell that the command took effect.
  if (std::exchange(pending_root, false)) SetGsts(Srtp::kMask, true);
  SetGsts(Te::kMask, wanted.translation_enabled);
  return absl::OkStatus();
}

void VtdUnit::State::SetGsts(uint64_t bit, bool on) {
  const uint32_t value = registers.Get32(vtd::kGsts);
  registers.Set32(vtd::kGsts, static_cast<uint32_t>(on ? value | bit : value & ~bit));
}

VtdUnit::VtdUnit(VtdUnitOptions options, PhysicalMemory& memory, UnitBackend& backend)
    : state_(std::make_unique<State>(std::move(options), memory, backend)) {}

VtdUnit::~VtdUnit() = default;

uint32_t VtdUnit::Read32(uint32_t offset) { return state_->registers.SoftwareRead32(offset); }

uint64_t VtdUnit::Read64(uint32_t offset) {
  return Read32(offset) | static_cast<uint64_t>(Read32(offset + 4)) << 32;
}

void VtdUnit::Write32(uint32_t offset, uint32_t value) {
  if (state_->Locked(offset)) return;
  if (state_->registers.SoftwareWrite32(offset, value)) state_->OnWritten(offset);
}

void VtdUnit::Write64(uint32_t offset, uint64_t value) {
  // Both halves are in place before either has its effect.
  const uint32_t high = offset + 4;
  const bool low_written = !state_->Locked(offset) &&
                           state_->registers.SoftwareWrite32(offset, static_cast<uint32_t>(value));
  const bool high_written = !state_->Locked(high) && state_->registers.SoftwareWrite32(
                                                         high, static_cast<uint32_t>(value >> 32));
  if (low_written) state_->OnWritten(offset);
  if (high_written) state_->OnWritten(high);
}

void VtdUnit::RecordFault(const vtd::FaultRecord& record) { state_->Record(record); }

absl::Status VtdUnit::Resume() {
  state_->Run();
  return state_->status;
}

absl::Status VtdUnit::last_status() const { return state_->status; }
const UnitRegisters& VtdUnit::latched() const { return state_->latched; }
const vtd::Capabilities& VtdUnit::caps() const { return state_->options.caps; }
uint64_t VtdUnit::doorbells() const { return state_->doorbells; }

}  // namespace viommu
