#include "hypervisor_svc/stream_threads.h"

#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <utility>

#include "absl/time/time.h"

namespace viommu {
namespace {

// One to lead, one to take over without being made first.
constexpr uint32_t kMinThreads = 2;
// A thread beyond those that had nothing to do for this long ends.
constexpr absl::Duration kIdleTime = absl::Seconds(5);
// What a walk asks of the kernel's scheduler (Linux 6.12 and later; others don't know it): longer
// turns on the CPU, further apart, so that a thread which wakes for little work runs at once.
constexpr uint64_t kWalkCpuSliceNs = 100'000'000;

// sched_setattr(2); glibc 2.36 declares neither the structure nor the call.
struct SchedAttr {
  uint32_t size = sizeof(SchedAttr);
  uint32_t policy = 0;
  uint64_t flags = 0;
  int32_t nice = 0;
  uint32_t priority = 0;
  uint64_t runtime_ns = 0;  // SCHED_OTHER: the slice; 0: the kernel's own
  uint64_t deadline_ns = 0;
  uint64_t period_ns = 0;
};

void AskForCpuSlice(uint64_t slice_ns) {
  SchedAttr attr;
  if (syscall(SYS_sched_getattr, 0, &attr, sizeof(attr), 0) != 0 || attr.policy != SCHED_OTHER) {
    return;
  }
  attr.runtime_ns = slice_ns;
  syscall(SYS_sched_setattr, 0, &attr, 0);
}

}  // namespace

StreamThreads::Current& StreamThreads::current() {
  thread_local Current current;
  return current;
}

StreamThreads::StreamThreads(Limits limits, std::function<bool()> serve_one)
    : limits_(limits), serve_one_(std::move(serve_one)), free_slots_(limits.walk_slots) {}

StreamThreads::~StreamThreads() { Join(); }

void StreamThreads::Start() {
  absl::MutexLock lock(&mu_);
  for (uint32_t i = 0; i < kMinThreads; ++i) AddThread();
}

void StreamThreads::Join() {
  std::list<std::thread> ended;
  while (true) {
    {
      absl::MutexLock lock(&mu_);
      joining_ = true;
      ended.splice(ended.end(), retired_);
      ended.splice(ended.end(), threads_);
    }
    if (ended.empty()) return;
    for (std::thread& thread : ended) thread.join();
    ended.clear();
  }
}

void StreamThreads::AddThread() {
  threads_.emplace_back();
  const auto self = std::prev(threads_.end());
  *self = std::thread([this, self] {
    Run();
    absl::MutexLock lock(&mu_);
    if (!joining_) retired_.splice(retired_.end(), threads_, self);
  });
}

uint32_t StreamThreads::threads() const {
  absl::MutexLock lock(&mu_);
  return static_cast<uint32_t>(threads_.size());
}

void StreamThreads::Run() {
  Current& me = current();
  me.pool = this;
  while (BecomeLeader()) {
    me.leading = true;
    if (std::exchange(me.long_cpu_slice, false)) AskForCpuSlice(0);
    while (me.leading) {
      const bool more = serve_one_();
      me.meter = nullptr;
      if (me.has_slot) ReleaseSlot();
      if (more) continue;
      absl::MutexLock lock(&mu_);
      stopping_ = true;
      has_leader_ = false;
      may_lead_.SignalAll();
      return;
    }
  }
}

bool StreamThreads::BecomeLeader() {
  std::list<std::thread> ended;
  {
    absl::MutexLock lock(&mu_);
    ++idle_;
    bool leave = stopping_;
    while (has_leader_ && !leave) {
      const bool timed_out = may_lead_.WaitWithTimeout(&mu_, kIdleTime);
      leave = stopping_ || (timed_out && has_leader_ && threads_.size() > kMinThreads && idle_ > 1);
    }
    --idle_;
    if (leave) return false;
    has_leader_ = true;
    ended.swap(retired_);
  }
  for (std::thread& thread : ended) thread.join();
  return true;
}

void StreamThreads::GiveUpLead() {
  current().leading = false;
  absl::MutexLock lock(&mu_);
  has_leader_ = false;
  if (idle_ == 0 && !stopping_ && threads_.size() < limits_.max_threads) {
    AddThread();
  } else {
    may_lead_.Signal();
  }
}

void StreamThreads::WaitForSlot() {
  Waiter self;
  waiting_.push_back(&self);
  while (!self.has_slot) self.granted.Wait(&mu_);
}

void StreamThreads::TakeSlot() {
  Current& me = current();
  {
    absl::MutexLock lock(&mu_);
    if (free_slots_ > 0) {
      --free_slots_;
    } else {
      if (me.meter != nullptr) me.meter->turns_waited.fetch_add(1, std::memory_order_relaxed);
      WaitForSlot();
    }
  }
  me.has_slot = true;
  me.turn_since = std::chrono::steady_clock::now();
  if (!std::exchange(me.long_cpu_slice, true)) AskForCpuSlice(kWalkCpuSliceNs);
}

void StreamThreads::PassTurn() {
  Current& me = current();
  {
    absl::MutexLock lock(&mu_);
    if (!waiting_.empty()) {
      if (me.meter != nullptr) me.meter->turns_waited.fetch_add(1, std::memory_order_relaxed);
      Waiter* const next = waiting_.front();
      waiting_.pop_front();
      next->has_slot = true;
      next->granted.Signal();
      WaitForSlot();
    }
  }
  me.turn_since = std::chrono::steady_clock::now();
}

void StreamThreads::ReleaseSlot() {
  current().has_slot = false;
  absl::MutexLock lock(&mu_);
  if (waiting_.empty()) {
    ++free_slots_;
    return;
  }
  Waiter* const next = waiting_.front();
  waiting_.pop_front();
  next->has_slot = true;
  next->granted.Signal();
}

void StreamThreads::StepAside() {
  const Current& me = current();
  if (me.leading) me.pool->GiveUpLead();
}

void StreamThreads::BeforeWait() {
  StepAside();
  const Current& me = current();
  if (me.has_slot) me.pool->ReleaseSlot();
}

void StreamThreads::BeginLong() {
  const Current& me = current();
  if (me.meter != nullptr) me.meter->slices.fetch_add(1, std::memory_order_relaxed);
  if (me.pool == nullptr || me.has_slot) return;
  StepAside();
  me.pool->TakeSlot();
}

void StreamThreads::Yield() {
  Current& me = current();
  if (me.meter != nullptr) me.meter->slices.fetch_add(1, std::memory_order_relaxed);
  if (me.pool == nullptr) return;
  const Time now = std::chrono::steady_clock::now();
  if (me.has_slot) {
    if (now - me.turn_since >= kTurn) me.pool->PassTurn();
  } else if (now - me.since >= kLeadTime) {
    BeginLong();
  }
}

void StreamThreads::SetMeter(WorkMeter* meter) {
  Current& me = current();
  me.meter = meter;
  if (meter != nullptr) me.since = std::chrono::steady_clock::now();
}

std::chrono::nanoseconds StreamThreads::Elapsed() {
  return std::chrono::steady_clock::now() - current().since;
}

}  // namespace viommu
