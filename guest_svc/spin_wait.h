// Whether to poll for an answer before sleeping until it comes.
#ifndef VIOMMU_GUEST_SVC_SPIN_WAIT_H_
#define VIOMMU_GUEST_SVC_SPIN_WAIT_H_

#include <algorithm>
#include <chrono>
#include <cstdint>

namespace viommu {

inline constexpr std::chrono::microseconds kDefaultWaitSpin{100};

// A vCPU that waits for its invalidation polls the wait descriptor's status (qi_submit_sync), so an
// answer that comes soon wakes nobody. Where answers come late, polling only takes CPU time from
// whoever makes them: after a wait that polled in vain the next one does not, after the second the
// next three, and so on up to 63. Each that did not poll in vain takes back one such step, no more:
// where many guests share few CPUs, one answer now and then is in time by luck.
class SpinWait {
 public:
  using Time = std::chrono::steady_clock::time_point;

  // `longest`: of one wait; 0: never polls.
  explicit SpinWait(std::chrono::microseconds longest) : longest_(longest) {}

  // A wait begins: until when it may poll.
  Time Begin(Time now) {
    if (skip_ == 0) return now + longest_;
    --skip_;
    return now;
  }
  // It polled, and that was enough or was not.
  void End(bool in_time) {
    if (!in_time) {
      failures_ = std::min(failures_ + 1, kMaxFailures);
    } else if (failures_ > 0) {
      --failures_;
    }
    skip_ = (uint32_t{1} << failures_) - 1;
  }

 private:
  static constexpr uint32_t kMaxFailures = 6;

  const std::chrono::microseconds longest_;
  uint32_t failures_ = 0;  // more than successes, of late
  uint32_t skip_ = 0;      // waits that will not poll
};

}  // namespace viommu

#endif  // VIOMMU_GUEST_SVC_SPIN_WAIT_H_
