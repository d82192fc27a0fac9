// The threads that serve invalidation streams. One leads: it takes events from the completion queue
// and carries each out itself, so that a short request crosses no other thread. A leader whose
// request turns out to be long, or would block, steps aside: another thread leads from then on, and
// long walks take turns on a bounded number of slots. So a session waits for at most kLeadTime of
// each other session's request, whatever those do.
#ifndef VIOMMU_HYPERVISOR_SVC_STREAM_THREADS_H_
#define VIOMMU_HYPERVISOR_SVC_STREAM_THREADS_H_

#include <atomic>
#include <chrono>
#include <cstdint>
#include <deque>
#include <functional>
#include <list>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"

namespace viommu {

// A session's work as others may watch it while it goes on.
struct WorkMeter {
  std::atomic<uint64_t> slices{0};         // boundaries between slices of work
  std::atomic<uint64_t> turns_waited{0};   // times its walk waited for others' turns
  std::atomic<uint64_t> work_wall_ns{0};   // spent on its requests, waits for turns included
  std::atomic<int64_t> busy_since_ns{-1};  // steady clock; -1: nothing is carried out

  // How long the request that is carried out has taken so far; 0: none is.
  uint64_t BusyWallNs() const {
    const int64_t since = busy_since_ns.load(std::memory_order_relaxed);
    const int64_t now =
        std::chrono::nanoseconds(std::chrono::steady_clock::now().time_since_epoch()).count();
    return since < 0 || now <= since ? 0 : static_cast<uint64_t>(now - since);
  }
};

class StreamThreads {
 public:
  // How long a request may hold the leader.
  static constexpr std::chrono::microseconds kLeadTime{100};
  // How long a walk keeps its slot while another one waits.
  static constexpr std::chrono::milliseconds kTurn{1};

  struct Limits {
    uint32_t max_threads = 0;  // at least 2
    uint32_t walk_slots = 1;
  };

  // `serve_one` waits for one event and carries it out, on the leader's thread; false: there will
  // be no more.
  StreamThreads(Limits limits, std::function<bool()> serve_one);
  ~StreamThreads();

  void Start() ABSL_LOCKS_EXCLUDED(mu_);
  // After `serve_one` has begun to return false: ends all threads.
  void Join() ABSL_LOCKS_EXCLUDED(mu_);

  // Whether the calling thread leads.
  static bool Leads() { return current().leading; }
  // The calling thread is about to block or to do something long: another one leads from here on.
  // Elsewhere than on a leading thread: nothing.
  static void StepAside();
  // The same, and what follows is work: waits for a slot.
  static void BeginLong();
  // Between two slices of work. May step aside, and may wait for others' turns.
  static void Yield();

  // Before a wait for a mutex: steps aside and gives the slot back, since whoever holds the mutex
  // may wait for a slot.
  static void BeforeWait();

  // A request begins, and Yield counts for `meter`; null: it is over.
  static void SetMeter(WorkMeter* meter);
  // Since the last SetMeter of this thread.
  static std::chrono::nanoseconds Elapsed();

  uint32_t threads() const ABSL_LOCKS_EXCLUDED(mu_);

 private:
  using Time = std::chrono::steady_clock::time_point;

  // One thread's place in all this.
  struct Current {
    StreamThreads* pool = nullptr;  // null: not a stream thread
    WorkMeter* meter = nullptr;
    Time since;       // start of the event
    Time turn_since;  // with a slot: start of the turn
    bool leading = false;
    bool has_slot = false;
    bool long_cpu_slice = false;  // asked of the kernel
  };
  struct Waiter {
    absl::CondVar granted;
    bool has_slot = false;
  };

  void Run() ABSL_LOCKS_EXCLUDED(mu_);
  // False: this thread ends.
  bool BecomeLeader() ABSL_LOCKS_EXCLUDED(mu_);
  void GiveUpLead() ABSL_LOCKS_EXCLUDED(mu_);
  void AddThread() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void TakeSlot() ABSL_LOCKS_EXCLUDED(mu_);
  void PassTurn() ABSL_LOCKS_EXCLUDED(mu_);
  void WaitForSlot() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void ReleaseSlot() ABSL_LOCKS_EXCLUDED(mu_);

  static Current& current();

  const Limits limits_;
  const std::function<bool()> serve_one_;

  mutable absl::Mutex mu_;
  absl::CondVar may_lead_;
  bool has_leader_ ABSL_GUARDED_BY(mu_) = false;
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;  // there are no more events
  bool joining_ ABSL_GUARDED_BY(mu_) = false;   // no thread leaves the lists any more
  uint32_t idle_ ABSL_GUARDED_BY(mu_) = 0;
  std::list<std::thread> threads_ ABSL_GUARDED_BY(mu_);
  std::list<std::thread> retired_ ABSL_GUARDED_BY(mu_);  // ended, to be joined
  uint32_t free_slots_ ABSL_GUARDED_BY(mu_);
  std::deque<Waiter*> waiting_ ABSL_GUARDED_BY(mu_);  // for a slot, first come first served
};

// Holds a mutex that another thread may hold for the length of a walk.
class ABSL_SCOPED_LOCKABLE PatientLock {
 public:
  explicit PatientLock(absl::Mutex* mu) ABSL_EXCLUSIVE_LOCK_FUNCTION(mu) : mu_(mu) {
    if (mu_->TryLock()) return;
    StreamThreads::BeforeWait();
    mu_->Lock();
  }
  ~PatientLock() ABSL_UNLOCK_FUNCTION() { mu_->Unlock(); }
  PatientLock(const PatientLock&) = delete;
  PatientLock& operator=(const PatientLock&) = delete;

 private:
  absl::Mutex* const mu_;
};

}  // namespace viommu

#endif  // VIOMMU_HYPERVISOR_SVC_STREAM_THREADS_H_
