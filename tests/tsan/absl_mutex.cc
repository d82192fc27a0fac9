// Tells ThreadSanitizer about absl::Mutex. Debian's Abseil is a shared library built without
// instrumentation and waits on futexes by itself, so the sanitizer would see every access under
// such a lock as a race. These definitions take the place of the library's (for gRPC's calls as
// well, by the dynamic linker's order), call it, and name the order that it establishes.
#include <sanitizer/tsan_interface.h>

#include <utility>

#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "absl/time/time.h"
#include "tests/tsan/next_definition.h"

extern "C" {
// Conditions are evaluated inside the library by whichever thread unlocks: not a race, and past the
// point at which its release is recorded.
void AnnotateIgnoreReadsBegin(const char* file, int line);
void AnnotateIgnoreReadsEnd(const char* file, int line);
}

namespace {

// Debian's inline namespace is part of every name.
#define VIOMMU_ABSL_NAME(rest) "_ZN4absl7debian3" rest
#define VIOMMU_ABSL_CONST_NAME(rest) "_ZNK4absl7debian3" rest

template <typename Fn, typename... Args>
auto Call(Fn* real, Args&&... args) {
  struct Ignore {
    Ignore() { AnnotateIgnoreReadsBegin(__FILE__, __LINE__); }
    ~Ignore() { AnnotateIgnoreReadsEnd(__FILE__, __LINE__); }
  } ignore;
  return real(std::forward<Args>(args)...);
}

}  // namespace

#define VIOMMU_REAL(type, name) \
  using Fn = type;              \
  static Fn* const real = viommu::NextDefinition<Fn>(name)

namespace absl {
ABSL_NAMESPACE_BEGIN

void Mutex::Lock() {
  VIOMMU_REAL(void(Mutex*), VIOMMU_ABSL_NAME("5Mutex4LockEv"));
  Call(real, this);
  __tsan_acquire(this);
}

void Mutex::Unlock() {
  VIOMMU_REAL(void(Mutex*), VIOMMU_ABSL_NAME("5Mutex6UnlockEv"));
  __tsan_release(this);
  Call(real, this);
}

bool Mutex::TryLock() {
  VIOMMU_REAL(bool(Mutex*), VIOMMU_ABSL_NAME("5Mutex7TryLockEv"));
  const bool locked = Call(real, this);
  if (locked) __tsan_acquire(this);
  return locked;
}

void Mutex::ReaderLock() {
  VIOMMU_REAL(void(Mutex*), VIOMMU_ABSL_NAME("5Mutex10ReaderLockEv"));
  Call(real, this);
  __tsan_acquire(this);
}

void Mutex::ReaderUnlock() {
  VIOMMU_REAL(void(Mutex*), VIOMMU_ABSL_NAME("5Mutex12ReaderUnlockEv"));
  __tsan_release(this);
  Call(real, this);
}

void Mutex::Await(const Condition& cond) {
  VIOMMU_REAL(void(Mutex*, const Condition&), VIOMMU_ABSL_NAME("5Mutex5AwaitERKNS0_9ConditionE"));
  __tsan_release(this);
  Call(real, this, cond);
  __tsan_acquire(this);
}

bool Mutex::AwaitWithTimeout(const Condition& cond, absl::Duration timeout) {
  VIOMMU_REAL(bool(Mutex*, const Condition&, absl::Duration),
              VIOMMU_ABSL_NAME("5Mutex16AwaitWithTimeoutERKNS0_9ConditionENS0_8DurationE"));
  __tsan_release(this);
  const bool met = Call(real, this, cond, timeout);
  __tsan_acquire(this);
  return met;
}

bool Mutex::AwaitWithDeadline(const Condition& cond, absl::Time deadline) {
  VIOMMU_REAL(bool(Mutex*, const Condition&, absl::Time),
              VIOMMU_ABSL_NAME("5Mutex17AwaitWithDeadlineERKNS0_9ConditionENS0_4TimeE"));
  __tsan_release(this);
  const bool met = Call(real, this, cond, deadline);
  __tsan_acquire(this);
  return met;
}

void Mutex::LockWhen(const Condition& cond) {
  VIOMMU_REAL(void(Mutex*, const Condition&),
              VIOMMU_ABSL_NAME("5Mutex8LockWhenERKNS0_9ConditionE"));
  Call(real, this, cond);
  __tsan_acquire(this);
}

bool Mutex::LockWhenWithTimeout(const Condition& cond, absl::Duration timeout) {
  VIOMMU_REAL(bool(Mutex*, const Condition&, absl::Duration),
              VIOMMU_ABSL_NAME("5Mutex19LockWhenWithTimeoutERKNS0_9ConditionENS0_8DurationE"));
  const bool met = Call(real, this, cond, timeout);
  __tsan_acquire(this);
  return met;
}

void CondVar::Wait(Mutex* mu) {
  VIOMMU_REAL(void(CondVar*, Mutex*), VIOMMU_ABSL_NAME("7CondVar4WaitEPNS0_5MutexE"));
  __tsan_release(mu);
  Call(real, this, mu);
  __tsan_acquire(mu);
}

bool CondVar::WaitWithTimeout(Mutex* mu, absl::Duration timeout) {
  VIOMMU_REAL(bool(CondVar*, Mutex*, absl::Duration),
              VIOMMU_ABSL_NAME("7CondVar15WaitWithTimeoutEPNS0_5MutexENS0_8DurationE"));
  __tsan_release(mu);
  const bool timed_out = Call(real, this, mu, timeout);
  __tsan_acquire(mu);
  return timed_out;
}

bool CondVar::WaitWithDeadline(Mutex* mu, absl::Time deadline) {
  VIOMMU_REAL(bool(CondVar*, Mutex*, absl::Time),
              VIOMMU_ABSL_NAME("7CondVar16WaitWithDeadlineEPNS0_5MutexENS0_4TimeE"));
  __tsan_release(mu);
  const bool timed_out = Call(real, this, mu, deadline);
  __tsan_acquire(mu);
  return timed_out;
}

void Notification::Notify() {
  VIOMMU_REAL(void(Notification*), VIOMMU_ABSL_NAME("12Notification6NotifyEv"));
  __tsan_release(this);
  Call(real, this);
}

void Notification::WaitForNotification() const {
  VIOMMU_REAL(void(const Notification*),
              VIOMMU_ABSL_CONST_NAME("12Notification19WaitForNotificationEv"));
  Call(real, this);
  __tsan_acquire(const_cast<Notification*>(this));
}

bool Notification::WaitForNotificationWithTimeout(absl::Duration timeout) const {
  VIOMMU_REAL(
      bool(const Notification*, absl::Duration),
      VIOMMU_ABSL_CONST_NAME("12Notification30WaitForNotificationWithTimeoutENS0_8DurationE"));
  const bool notified = Call(real, this, timeout);
  if (notified) __tsan_acquire(const_cast<Notification*>(this));
  return notified;
}

ABSL_NAMESPACE_END
}  // namespace absl
