#include "iommu_core/dma/flush_queue.h"

#include <utility>

#include "iommu_core/dma/tick_timer.h"

namespace viommu {

FlushQueue::FlushQueue(FlushQueueShape shape, uint32_t cpus, uint32_t hz, FlushFn flush,
                       ReleaseFn release)
    : shape_(shape),
      hz_(hz),
      mask_(shape.slots - 1),
      flush_(std::move(flush)),
      release_(std::move(release)),
      rings_(shape.per_cpu ? cpus : 1) {}

absl::Status FlushQueue::Flush(FlushReason reason) {
  ++started_;
  absl::Status status = flush_(reason);
  if (!status.ok()) {
    // Not finished: nothing stamped before it may be released by it.
    --started_;
    return status;
  }
  ++finished_;
  return absl::OkStatus();
}

void FlushQueue::Reclaim(Ring& ring, uint32_t cpu) {
  while (ring.head != ring.tail) {
    Slot& slot = ring.slots[ring.head];
    // Releasable only when a flush that started after it was queued has finished.
    if (slot.counter >= finished_) break;
    release_(std::move(slot.entry), cpu);
    slot = Slot{};
    ring.head = (ring.head + 1) & mask_;
    --entries_;
  }
}

void FlushQueue::Arm(uint64_t now_ns, uint32_t cpu) {
  // Armed only when off, never pushed back: a ring that fills often still sees the timer.
  if (timer_ns_) return;
  timer_ns_ =
      deadline_ns_ != 0 ? now_ns + deadline_ns_ : TimerFiresAtNs(now_ns, shape_.timeout_ms, hz_);
  timer_cpu_ = cpu;
}

std::optional<uint64_t> FlushQueue::OldestQueuedNs() const {
  std::optional<uint64_t> oldest;
  for (const Ring& ring : rings_) {
    for (uint32_t i = ring.head; i != ring.tail; i = (i + 1) & mask_) {
      const Slot& slot = ring.slots[i];
      if (slot.counter < finished_) continue;
      // A ring is in order of time.
      if (!oldest || slot.queued_ns < *oldest) oldest = slot.queued_ns;
      break;
    }
  }
  return oldest;
}

absl::Status FlushQueue::Add(FlushEntry entry, uint32_t cpu, uint64_t now_ns) {
  Ring& ring = rings_[shape_.per_cpu ? cpu % rings_.size() : 0];
  if (ring.slots.empty()) ring.slots.resize(shape_.slots);
  // Somebody else's flush may have covered what is here.
  Reclaim(ring, cpu);
  if (Full(ring)) {
    if (absl::Status status = Flush(FlushReason::kFull); !status.ok()) return status;
    Reclaim(ring, cpu);
  }
  ring.slots[ring.tail] = {std::move(entry), started_, now_ns};
  ring.tail = (ring.tail + 1) & mask_;
  ++entries_;
  Arm(now_ns, cpu);
  return absl::OkStatus();
}

absl::Status FlushQueue::OnTimer(uint64_t now_ns) {
  const uint32_t cpu = timer_cpu_;  // where it fired, whoever arms it next
  timer_ns_.reset();
  if (deadline_ns_ != 0) {
    const std::optional<uint64_t> oldest = OldestQueuedNs();
    if (!oldest) {
      for (Ring& ring : rings_) Reclaim(ring, cpu);
      return absl::OkStatus();
    }
    if (*oldest + deadline_ns_ > now_ns) {
      Arm(*oldest, cpu);
      return absl::OkStatus();
    }
  }
  if (absl::Status status = Flush(FlushReason::kTimeout); !status.ok()) {
    Arm(now_ns, cpu);
    return status;
  }
  for (Ring& ring : rings_) Reclaim(ring, cpu);
  return absl::OkStatus();
}

absl::Status FlushQueue::FlushAll(uint32_t cpu) {
  if (entries_ == 0) return absl::OkStatus();
  if (absl::Status status = Flush(FlushReason::kSync); !status.ok()) return status;
  for (Ring& ring : rings_) Reclaim(ring, cpu);
  return absl::OkStatus();
}

std::vector<FlushEntry> FlushQueue::TakeAll() {
  std::vector<FlushEntry> out;
  for (Ring& ring : rings_) {
    for (; ring.head != ring.tail; ring.head = (ring.head + 1) & mask_) {
      out.push_back(std::move(ring.slots[ring.head].entry));
      ring.slots[ring.head] = Slot{};
    }
  }
  entries_ = 0;
  timer_ns_.reset();
  return out;
}

std::vector<IovaRange> FlushQueue::UnflushedRanges() const {
  std::vector<IovaRange> out;
  for (const Ring& ring : rings_) {
    for (uint32_t i = ring.head; i != ring.tail; i = (i + 1) & mask_) {
      const Slot& slot = ring.slots[i];
      if (slot.counter >= finished_) out.push_back(slot.entry.range);
    }
  }
  return out;
}

}  // namespace viommu
