// Timed waits by the steady clock. Abseil's follow the wall clock: when that is set back by an
// hour, they take an hour longer, and with them flush timers and the end of abandoned sessions.
#ifndef VIOMMU_SVC_COMMON_STEADY_WAIT_H_
#define VIOMMU_SVC_COMMON_STEADY_WAIT_H_

#include <chrono>
#include <condition_variable>
#include <mutex>

#include "absl/base/thread_annotations.h"

namespace viommu {

// Ends a thread that does something now and then.
class StopSignal {
 public:
  void Stop() {
    {
      std::lock_guard lock(mu_);
      stopped_ = true;
    }
    changed_.notify_all();
  }
  bool stopped() {
    std::lock_guard lock(mu_);
    return stopped_;
  }
  // Waits for `time`; true: Stop was called, before or meanwhile.
  bool WaitFor(std::chrono::nanoseconds time) {
    std::unique_lock lock(mu_);
    return changed_.wait_until(lock, std::chrono::steady_clock::now() + time,
                               [this] { return stopped_; });
  }

 private:
  std::mutex mu_;
  std::condition_variable changed_;
  bool stopped_ = false;
};

// A mutex whose holder can wait, for a bounded time, until what it guards has changed.
class ABSL_LOCKABLE SteadyMutex {
 public:
  void Lock() ABSL_EXCLUSIVE_LOCK_FUNCTION() { mu_.lock(); }
  // Those who wait look again.
  void Unlock() ABSL_UNLOCK_FUNCTION() {
    const bool wake = waiting_ != 0;
    mu_.unlock();
    if (wake) changed_.notify_all();
  }
  // Until `condition()`, evaluated by this thread under the mutex, or until `deadline`; returns its
  // last value.
  template <typename Condition>
  bool AwaitUntil(std::chrono::steady_clock::time_point deadline, Condition condition)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(this) {
    std::unique_lock lock(mu_, std::adopt_lock);
    ++waiting_;
    const bool came_true = changed_.wait_until(lock, deadline, condition);
    --waiting_;
    lock.release();
    return came_true;
  }

 private:
  std::mutex mu_;
  std::condition_variable changed_;
  int waiting_ = 0;  // guarded by mu_
};

class ABSL_SCOPED_LOCKABLE SteadyLock {
 public:
  explicit SteadyLock(SteadyMutex* mu) ABSL_EXCLUSIVE_LOCK_FUNCTION(mu) : mu_(mu) { mu_->Lock(); }
  ~SteadyLock() ABSL_UNLOCK_FUNCTION() { mu_->Unlock(); }
  SteadyLock(const SteadyLock&) = delete;
  SteadyLock& operator=(const SteadyLock&) = delete;

 private:
  SteadyMutex* const mu_;
};

}  // namespace viommu

#endif  // VIOMMU_SVC_COMMON_STEADY_WAIT_H_
