#include "guest_svc/client/conformance_machine.h"

#include <algorithm>

#include "iommu_core/base/bits.h"
#include "iommu_core/vtd/fault.h"
#include "iommu_core/vtd/registers.h"

namespace viommu::conformance {
namespace {

constexpr uint64_t kDescriptorBytes = 16;

VtdUnitOptions UnitOptions(int address_width, bool qemu_quirks) {
  VtdUnitOptions options;
  options.caps = MachineRules(address_width).caps;
  options.haw_bits = address_width;
  options.qemu_quirks = qemu_quirks;
  return options;
}

TranslatorOptions Translation(int address_width, bool qemu_quirks) {
  TranslatorOptions options;
  options.rules = MachineRules(address_width);
  options.qemu_quirks = qemu_quirks;
  return options;
}

}  // namespace

WalkRules MachineRules(int address_width) {
  WalkRules rules;
  rules.caps = vtd::QemuCapabilities(address_width, /*caching_mode=*/true);
  rules.haw_bits = address_width;
  return rules;
}

SparseMemory MachineMemory() {
  return SparseMemory(
      {{PhysAddr(0), PhysAddr(0x80000000)}, {PhysAddr(0x100000000), PhysAddr(kMachineRamEnd)}});
}

Machine::Machine(int address_width, bool qemu_quirks, SparseMemory& memory, UnitBackend* backend)
    : memory_(memory),
      translator_(Translation(address_width, qemu_quirks), memory),
      unit_(UnitOptions(address_width, qemu_quirks), memory,
            backend == nullptr ? translator_ : *backend) {}

void Machine::WriteRegister(uint32_t offset, uint64_t size_bytes, uint64_t value) {
  if (size_bytes == 4) {
    unit_.Write32(offset, static_cast<uint32_t>(value));
  } else {
    unit_.Write64(offset, value);
  }
}

std::optional<RecordedFault> Machine::ReadFaultRecord() {
  using Record = vtd::FaultRecord;
  const uint32_t offset = unit_.caps().fault_record_offset();
  const uint64_t hi = unit_.Read64(offset + 8);
  if (Record::F::Get(hi) == 0) return std::nullopt;
  return RecordedFault{Record::Reason::Get(hi), Iova(AlignDown(unit_.Read64(offset), kPageSize)),
                       Record::T::Get(hi) != 0,
                       SourceId(static_cast<uint16_t>(Record::Sid::Get(hi)))};
}

void Machine::ClearFaultRecord() {
  unit_.Write64(unit_.caps().fault_record_offset() + 8, vtd::FaultRecord::F::Make(1));
}

Observation Machine::RunDma(const Step& step) {
  Observation out;
  out.segments.emplace();
  uint64_t left = step.size_bytes;
  for (Iova iova = step.iova; left > 0;) {
    const uint64_t size = std::min(left, kPageSize - (iova.value() & kPageMask));
    const TranslateOutcome done =
        translator_.Translate(step.source_id, iova, step.write ? kWriteOnly : kReadOnly);
    Segment segment{iova, size, std::nullopt};
    if (done.reason == vtd::FaultReason::kNone) {
      segment.address = done.address;
    } else if (done.record) {
      unit_.RecordFault({.source_id = step.source_id,
                         .page = Iova(AlignDown(iova.value(), kPageSize)),
                         .reason = done.reason,
                         .read = !step.write});
    }
    out.segments->push_back(segment);
    iova += size;
    left -= size;
  }
  out.fault = ReadFaultRecord();
  out.fsts = unit_.Read32(vtd::kFsts);
  if (!step.keep) {
    ClearFaultRecord();
    if (vtd::fsts::Pfo::Get(*out.fsts) != 0) unit_.Write32(vtd::kFsts, vtd::fsts::Pfo::kMask);
  }
  return out;
}

Observation Machine::Run(const Step& step) {
  Observation out;
  switch (step.op) {
    case Op::kMem:
      for (const auto& [address, value] : step.stores) memory_.Write64(address, value);
      break;
    case Op::kRegWrite:
      WriteRegister(step.offset, step.size_bytes, step.value);
      break;
    case Op::kRegRead:
      out.value = step.size_bytes == 4 ? unit_.Read32(step.offset) : unit_.Read64(step.offset);
      break;
    case Op::kQueue:
      // A ring outside memory takes no store; the unit finds out when it fetches.
      for (size_t i = 0; i < step.descriptors.size(); ++i) {
        const PhysAddr slot =
            step.queue_base + kDescriptorBytes * ((step.first_entry + i) % step.entries);
        memory_.Write64(slot, step.descriptors[i].qw0);
        memory_.Write64(slot + 8, step.descriptors[i].qw1);
      }
      unit_.Write64(vtd::kIqt, step.tail);
      break;
    case Op::kDma:
      return RunDma(step);
    case Op::kClearFaults:
      ClearFaultRecord();
      unit_.Write32(vtd::kFsts, vtd::fsts::Pfo::kMask);
      break;
    case Op::kClearRecord:
      ClearFaultRecord();
      break;
    case Op::kShadowBase:
      break;
  }
  out.gsts = unit_.Read32(vtd::kGsts);
  out.iqh = unit_.Read64(vtd::kIqh);
  out.fsts = unit_.Read32(vtd::kFsts);
  for (const Observation& accepted : step.accepted) {
    for (const auto& [address, value] : accepted.words) {
      out.words.emplace_back(address, memory_.Read32(address).value_or(0));
    }
  }
  return out;
}

}  // namespace viommu::conformance
