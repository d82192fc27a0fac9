// Queued invalidation (VT-d 6.5.2).
#include <algorithm>
#include <utility>
#include <variant>

#include "iommu_core/base/errors.h"
#include "iommu_core/iq/vtd_unit_state.h"

namespace viommu {

using vtd::Iqei;

void VtdUnit::State::EnableQueue() {
  SetGsts(vtd::gcmd::Qie::kMask, true);
  last_was_wait = false;
}

void VtdUnit::State::DisableQueue() {
  // QEMU refuses unless the queue is empty and ended in a wait.
  if (options.qemu_quirks && (registers.Get64(vtd::kIqh) != tail || !last_was_wait)) return;
  if (running || !batch.raw.empty()) {
    disable_when_idle = true;
    return;
  }
  TurnQueueOff();
}

void VtdUnit::State::TurnQueueOff() {
  SetGsts(vtd::gcmd::Qie::kMask, false);
  registers.Set64(vtd::kIqh, 0);  // 11.4.8.1: head is 0 while QIES is clear
}

void VtdUnit::State::OnTailWritten() {
  const uint64_t written = registers.Get64(vtd::kIqt);
  if (queue_enabled()) {
    ++doorbells;
    if (options.qemu_quirks && wide_queue() && !IsAligned(written, descriptor_bytes())) {
      QueueError(Iqei::kTailMisaligned);  // QEMU keeps the tail it had
      return;
    }
  }
  tail = written;
  Run();
}

absl::Status VtdUnit::State::RunQueue() {
  constexpr uint64_t kNowhere = ~uint64_t{0};
  uint64_t stopped_at = kNowhere;  // head at the last error, if nothing was done since
  while (queue_enabled()) {
    Iqei error = Iqei::kNone;
    if (batch.raw.empty()) {
      if (queue_stopped || registers.Get64(vtd::kIqh) == tail) break;
      error = CheckQueue();
      if (error == Iqei::kNone) FetchBatch();
    }
    if (error == Iqei::kNone) {
      auto consumed = ExecuteBatch();
      if (!consumed.ok()) return consumed.status();
      error = consumed->error;
      if (consumed->consumed != 0) {
        stopped_at = kNowhere;
      } else if (error == Iqei::kNone) {
        return absl::InternalError("the backend did nothing and gave no reason");
      }
    }
    if (error == Iqei::kNone) continue;
    QueueError(error);
    // A fault_event that clears IQE resumes the queue, but not for ever on the same descriptor.
    const uint64_t head = registers.Get64(vtd::kIqh);
    if (!queue_stopped && stopped_at == head) {
      return errors::QueueError(static_cast<uint32_t>(error));
    }
    stopped_at = head;
  }
  if (std::exchange(disable_when_idle, false)) TurnQueueOff();
  return absl::OkStatus();
}

absl::StatusOr<UnitBackend::Outcome> VtdUnit::State::ExecuteBatch() {
  UnitBackend::Outcome outcome;
  if (!batch.raw.empty()) {
    auto executed = backend.Execute(batch.raw, batch.decoded);
    if (!executed.ok()) return executed.status();
    outcome = *executed;
  }
  const Batch done = std::exchange(batch, {});
  const size_t size = std::min<size_t>(outcome.consumed, done.raw.size());
  for (uint32_t i = 0; i < size; ++i) {
    const auto* wait = std::get_if<vtd::InvalidationWait>(&done.decoded[i]);
    last_was_wait = wait != nullptr;
    if (wait != nullptr && !CompleteWait(*wait)) {
      return UnitBackend::Outcome{i, Iqei::kReservedField};
    }
    AdvanceHead();
  }
  outcome.consumed = static_cast<uint32_t>(size);
  if (outcome.error == Iqei::kNone && size == done.raw.size()) outcome.error = done.stop;
  return outcome;
}

Iqei VtdUnit::State::CheckQueue() const {
  if (tail >= ring_bytes()) return Iqei::kBadTail;
  if (!IsAligned(tail, descriptor_bytes())) return Iqei::kTailMisaligned;
  if (options.qemu_quirks) return Iqei::kNone;
  // Only legacy mode (TTM 0) is implemented.
  if (translation_table_mode != 0) return Iqei::kBadTtm;
  if (wide_queue() && vtd::ecap::Smts::Get(options.caps.ecap) == 0) return Iqei::kBadWidth;
  return Iqei::kNone;
}

void VtdUnit::State::FetchBatch() {
  const PhysAddr ring(registers.Get64(vtd::kIqa) & BitMask(options.haw_bits - 1, kPageShift));
  uint64_t at = registers.Get64(vtd::kIqh);
  // Ends: head and tail are both multiples of the step, below the ring's size.
  while (at != tail && batch.stop == Iqei::kNone) {
    batch.stop = FetchOne(ring + at);
    at = (at + descriptor_bytes()) % ring_bytes();
  }
}

Iqei VtdUnit::State::FetchOne(PhysAddr address) {
  // Each word is read once; what is checked is what is executed.
  const bool wide = wide_queue();
  const auto qw0 = memory.Read64(address);
  const auto qw1 = memory.Read64(address + 8);
  const auto qw2 = wide ? memory.Read64(address + 16) : 0;
  const auto qw3 = wide ? memory.Read64(address + 24) : 0;
  if (!qw0 || !qw1 || !qw2 || !qw3) return Iqei::kFetchError;
  const vtd::RawDescriptor raw{*qw0, *qw1, *qw2, *qw3};
  const vtd::DecodeResult result = vtd::Decode(raw, options.caps, wide, {options.qemu_quirks});
  if (result.error != Iqei::kNone) return result.error;
  if (const auto* wait = std::get_if<vtd::InvalidationWait>(&result.descriptor)) {
    if (options.qemu_quirks && !wait->status_write && !wait->interrupt && !wait->fence) {
      return Iqei::kReservedField;
    }
    // 6.5.2.8 leaves a status address that is not memory undefined. It is treated as a bad field,
    // and looked for here so that nothing behind the wait is executed.
    if (wait->status_write && !memory.Read32(wait->status_address)) return Iqei::kReservedField;
  }
  batch.raw.push_back(raw);
  batch.decoded.push_back(result.descriptor);
  return Iqei::kNone;
}

void VtdUnit::State::AdvanceHead() {
  registers.Set64(vtd::kIqh, (registers.Get64(vtd::kIqh) + descriptor_bytes()) % ring_bytes());
}

bool VtdUnit::State::CompleteWait(const vtd::InvalidationWait& wait) {
  if (wait.status_write && !memory.Write32(wait.status_address, wait.status_data)) return false;
  if (wait.interrupt) RaiseCompletion();
  return true;
}

void VtdUnit::State::QueueError(Iqei error) {
  queue_stopped = true;
  if (!options.qemu_quirks) {
    registers.Set64(vtd::kIqercd, vtd::iqercd::Iqei::Set(registers.Get64(vtd::kIqercd),
                                                         static_cast<uint64_t>(error)));
  }
  RaiseFaultStatus(vtd::fsts::Iqe::kMask);
}

}  // namespace viommu
