// When a guest's timer really fires: on a tick, and never early.
#ifndef VIOMMU_IOMMU_CORE_DMA_TICK_TIMER_H_
#define VIOMMU_IOMMU_CORE_DMA_TICK_TIMER_H_

#include <cstdint>

namespace viommu {

// The time at which a Linux timer armed at `now_ns` for `delay_ms` fires on a kernel of `hz` ticks
// a second (kernel/time/timer.c: msecs_to_jiffies rounds up, calc_index adds one bucket, and
// buckets are 1, 8, 64 ... ticks wide by distance). 10 ms at 250 Hz: 3 ticks away, fires on the one
// after.
constexpr uint64_t TimerFiresAtNs(uint64_t now_ns, uint64_t delay_ms, uint32_t hz) {
  constexpr int kBucketsPerLevel = 63;
  constexpr int kLevelBits = 3;
  constexpr int kLevels = 9;
  const uint64_t tick_ns = 1'000'000'000ull / hz;
  const uint64_t delay_ticks = (delay_ms * hz + 999) / 1000;
  const uint64_t expires = now_ns / tick_ns + delay_ticks;
  int level = 0;
  while (level < kLevels - 1 &&
         delay_ticks >= (uint64_t{kBucketsPerLevel} << (kLevelBits * level))) {
    ++level;
  }
  const int shift = kLevelBits * level;
  return (((expires >> shift) + 1) << shift) * tick_ns;
}

}  // namespace viommu

#endif  // VIOMMU_IOMMU_CORE_DMA_TICK_TIMER_H_
