// The lock of one CPU's magazines: almost always free, held for a few instructions.
#ifndef VIOMMU_IOMMU_CORE_IOVA_CPU_LOCK_H_
#define VIOMMU_IOMMU_CORE_IOVA_CPU_LOCK_H_

#include <atomic>
#include <thread>

#include "absl/base/thread_annotations.h"

namespace viommu {

// One exchange to take, one store to release: a third of an absl::Mutex pair (tests/bench). A
// thread that finds it held is one that uses another CPU's number, or a drain; after a short spin
// it yields.
class ABSL_LOCKABLE CpuLock {
 public:
  void Lock() ABSL_EXCLUSIVE_LOCK_FUNCTION() {
    while (held_.exchange(true, std::memory_order_acquire)) WaitUntilFree();
  }
  void Unlock() ABSL_UNLOCK_FUNCTION() { held_.store(false, std::memory_order_release); }

 private:
  void WaitUntilFree() const {
    constexpr int kSpins = 64;
    for (int i = 0; held_.load(std::memory_order_relaxed); ++i) {
      if (i >= kSpins) std::this_thread::yield();
    }
  }

  std::atomic<bool> held_{false};
};

class ABSL_SCOPED_LOCKABLE CpuLockHolder {
 public:
  explicit CpuLockHolder(CpuLock& lock) ABSL_EXCLUSIVE_LOCK_FUNCTION(lock) : lock_(lock) {
    lock_.Lock();
  }
  ~CpuLockHolder() ABSL_UNLOCK_FUNCTION() { lock_.Unlock(); }
  CpuLockHolder(const CpuLockHolder&) = delete;
  CpuLockHolder& operator=(const CpuLockHolder&) = delete;

 private:
  CpuLock& lock_;
};

}  // namespace viommu

#endif  // VIOMMU_IOMMU_CORE_IOVA_CPU_LOCK_H_
