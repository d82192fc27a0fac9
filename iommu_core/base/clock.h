// Where code that keeps time reads it, so that a run can be driven by a trace's own timestamps.
#ifndef VIOMMU_IOMMU_CORE_BASE_CLOCK_H_
#define VIOMMU_IOMMU_CORE_BASE_CLOCK_H_

#include <chrono>
#include <cstdint>

namespace viommu {

// Nanoseconds since an arbitrary start. Never goes back.
class Clock {
 public:
  virtual ~Clock() = default;
  virtual uint64_t NowNs() const = 0;
  // True: time passes only as the model says, so modelled latencies belong on this clock. False:
  // real time, which modelled time is never added to.
  virtual bool modelled() const = 0;
};

// The machine's monotonic clock.
class WallClock final : public Clock {
 public:
  uint64_t NowNs() const override {
    return static_cast<uint64_t>(std::chrono::duration_cast<std::chrono::nanoseconds>(
                                     std::chrono::steady_clock::now().time_since_epoch())
                                     .count());
  }
  bool modelled() const override { return false; }
};

// Moves only when told to. One thread drives it.
class VirtualClock final : public Clock {
 public:
  uint64_t NowNs() const override { return now_ns_; }
  bool modelled() const override { return true; }
  // A time in the past is ignored: the clock never goes back.
  void AdvanceTo(uint64_t now_ns) {
    if (now_ns > now_ns_) now_ns_ = now_ns;
  }

 private:
  uint64_t now_ns_ = 0;
};

}  // namespace viommu

#endif  // VIOMMU_IOMMU_CORE_BASE_CLOCK_H_
