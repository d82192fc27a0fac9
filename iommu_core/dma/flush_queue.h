// Linux's IOVA flush queue (drivers/iommu/dma-iommu.c: queue_iova, fq_ring_free, fq_flush_iotlb,
// fq_flush_timeout): rings of unmapped ranges that wait for one flush of the whole domain.
#ifndef VIOMMU_IOMMU_CORE_DMA_FLUSH_QUEUE_H_
#define VIOMMU_IOMMU_CORE_DMA_FLUSH_QUEUE_H_

#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "iommu_core/base/types.h"

namespace viommu {

enum class FlushReason { kFull, kTimeout, kSync };

struct FlushQueueShape {
  uint32_t slots = 256;  // power of two; one stays empty
  uint32_t timeout_ms = 10;
  bool per_cpu = true;  // false: one ring for all CPUs (shadow_on_flush)
};
inline constexpr FlushQueueShape kPerCpuShape{256, 10, true};
inline constexpr FlushQueueShape kSingleShape{32768, 1000, false};

// What a ring slot holds.
struct FlushEntry {
  IovaRange range;
  bool allocated = false;              // its IOVA goes back to the allocator on release
  std::vector<PhysAddr> freed_tables;  // go back to the frame allocator on release
};

// The queue of one domain. Not thread-safe: the machine's lock covers it.
class FlushQueue {
 public:
  // Invalidates the whole domain and returns once that is done.
  using FlushFn = std::function<absl::Status(FlushReason)>;
  // The entry may be used again; `cpu` is the one that reclaims.
  using ReleaseFn = std::function<void(FlushEntry&& entry, uint32_t cpu)>;

  FlushQueue(FlushQueueShape shape, uint32_t cpus, uint32_t hz, FlushFn flush, ReleaseFn release);

  // From now on the timer is a high-resolution one: what is queued at t is flushed by
  // t + `deadline_ns`, neither on a tick nor while everything queued is younger.
  void set_deadline_ns(uint64_t deadline_ns) { deadline_ns_ = deadline_ns; }

  // Queues one unmapped range. A full ring is flushed first; if that flush fails, its status is
  // returned and the range is not queued.
  absl::Status Add(FlushEntry entry, uint32_t cpu, uint64_t now_ns);
  // When the timer fires next; nullopt while it is off.
  std::optional<uint64_t> timer_ns() const { return timer_ns_; }
  uint32_t timer_cpu() const { return timer_cpu_; }
  // fq_flush_timeout at `now_ns` >= *timer_ns(). On failure the timer is armed again.
  absl::Status OnTimer(uint64_t now_ns);
  // Flushes and releases everything.
  absl::Status FlushAll(uint32_t cpu);
  // Forgets everything without releasing IOVAs: the domain ends, its tables come back.
  std::vector<FlushEntry> TakeAll();

  uint64_t entries() const { return entries_; }
  // Every queued range that no finished flush covers yet, for policies that flush by range.
  std::vector<IovaRange> UnflushedRanges() const;

 private:
  struct Slot {
    FlushEntry entry;
    uint64_t counter = 0;  // flushes started when it was queued
    uint64_t queued_ns = 0;
  };
  struct Ring {
    std::vector<Slot> slots;
    uint32_t head = 0;
    uint32_t tail = 0;
  };

  bool Full(const Ring& ring) const { return ((ring.tail + 1) & mask_) == ring.head; }
  absl::Status Flush(FlushReason reason);
  void Reclaim(Ring& ring, uint32_t cpu);
  void Arm(uint64_t now_ns, uint32_t cpu);
  // Of what no finished flush covers.
  std::optional<uint64_t> OldestQueuedNs() const;

  const FlushQueueShape shape_;
  const uint32_t hz_;
  const uint32_t mask_;
  const FlushFn flush_;
  const ReleaseFn release_;
  std::vector<Ring> rings_;
  uint64_t started_ = 0;
  uint64_t finished_ = 0;
  uint64_t entries_ = 0;
  uint64_t deadline_ns_ = 0;  // 0: timeout_ms of the shape, by ticks
  std::optional<uint64_t> timer_ns_;
  uint32_t timer_cpu_ = 0;
};

}  // namespace viommu

#endif  // VIOMMU_IOMMU_CORE_DMA_FLUSH_QUEUE_H_
