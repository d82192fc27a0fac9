// Leader and followers: who carries on while somebody blocks, and who waits for whose turn.
#include "hypervisor_svc/stream_threads.h"

#include <gtest/gtest.h>

#include <atomic>
#include <deque>
#include <functional>
#include <optional>
#include <thread>
#include <utility>

#include "absl/synchronization/notification.h"

namespace viommu {
namespace {

// Events are closures; the pool's threads take them one by one.
class StreamThreadsTest : public ::testing::Test {
 protected:
  void Start(StreamThreads::Limits limits) {
    threads_.emplace(limits, [this] { return ServeOne(); });
    threads_->Start();
  }
  // Every event is over: what it used may go.
  void Finish() {
    {
      absl::MutexLock lock(&mu_);
      over_ = true;
    }
    threads_->Join();
  }
  void Post(std::function<void()> event) {
    absl::MutexLock lock(&mu_);
    events_.push_back(std::move(event));
  }
  bool ServeOne() {
    std::function<void()> event;
    {
      absl::MutexLock lock(&mu_);
      const auto ready = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
        return over_ || !events_.empty();
      };
      mu_.Await(absl::Condition(&ready));
      if (events_.empty()) return false;
      event = std::move(events_.front());
      events_.pop_front();
    }
    event();
    return true;
  }

  absl::Mutex mu_;
  std::deque<std::function<void()>> events_ ABSL_GUARDED_BY(mu_);
  bool over_ ABSL_GUARDED_BY(mu_) = false;
  std::optional<StreamThreads> threads_;
};

TEST_F(StreamThreadsTest, OneThreadCarriesOutWhatIsShort) {
  Start({.max_threads = 8, .walk_slots = 1});
  std::thread::id first;
  std::thread::id last;
  absl::Notification done;
  Post([&] { first = std::this_thread::get_id(); });
  for (int i = 0; i < 100; ++i) Post([] {});
  Post([&] {
    last = std::this_thread::get_id();
    EXPECT_TRUE(StreamThreads::Leads());
    done.Notify();
  });
  done.WaitForNotification();
  EXPECT_EQ(first, last);
  EXPECT_EQ(threads_->threads(), 2u);
  Finish();
}

TEST_F(StreamThreadsTest, AThreadThatStepsAsideHoldsNobodyUp) {
  Start({.max_threads = 16, .walk_slots = 1});
  absl::Notification release;
  absl::Notification done;
  std::atomic<int> blocked{0};
  for (int i = 0; i < 10; ++i) {
    Post([&] {
      StreamThreads::StepAside();
      EXPECT_FALSE(StreamThreads::Leads());
      ++blocked;
      release.WaitForNotification();
    });
  }
  Post([&] { done.Notify(); });
  done.WaitForNotification();
  while (blocked.load() < 10) std::this_thread::yield();
  EXPECT_GE(threads_->threads(), 11u);
  release.Notify();
  Finish();
}

TEST_F(StreamThreadsTest, NoMoreThreadsThanTheLimit) {
  Start({.max_threads = 4, .walk_slots = 1});
  absl::Notification release;
  std::atomic<int> blocked{0};
  std::atomic<int> over{0};
  for (int i = 0; i < 8; ++i) {
    Post([&] {
      StreamThreads::StepAside();
      ++blocked;
      release.WaitForNotification();
      ++over;
    });
  }
  while (blocked.load() < 4) std::this_thread::yield();
  EXPECT_EQ(threads_->threads(), 4u);
  release.Notify();
  absl::Notification done;
  Post([&] { done.Notify(); });
  done.WaitForNotification();
  EXPECT_EQ(threads_->threads(), 4u);
  Finish();
}

TEST_F(StreamThreadsTest, LongWalksTakeTurnsAndShortWorkWaitsForNone) {
  Start({.max_threads = 8, .walk_slots = 1});
  constexpr int kWalks = 3;
  constexpr uint64_t kTurns = 3;
  WorkMeter meters[kWalks];
  std::atomic<int> walking{0};
  std::atomic<int> finished{0};
  std::atomic<int> short_ones{0};
  const auto everybody_waited = [&] {
    for (const WorkMeter& meter : meters) {
      if (meter.turns_waited.load() < kTurns) return false;
    }
    return true;
  };
  for (WorkMeter& meter : meters) {
    Post([&] {
      StreamThreads::SetMeter(&meter);
      StreamThreads::BeginLong();
      while (!everybody_waited()) {
        EXPECT_EQ(walking.fetch_add(1), 0);  // one slot: nobody else is in a slice
        Post([&] { ++short_ones; });
        walking.fetch_sub(1);
        StreamThreads::Yield();
      }
      StreamThreads::SetMeter(nullptr);
      ++finished;
    });
  }
  // Carried out while walks go on: the walks end only after this saw some of them.
  while (finished.load() < kWalks) std::this_thread::yield();
  EXPECT_GT(short_ones.load(), 0);
  for (const WorkMeter& meter : meters) EXPECT_GE(meter.turns_waited.load(), kTurns);
  Finish();
}

TEST_F(StreamThreadsTest, ABlockedLockIsWaitedForAside) {
  Start({.max_threads = 8, .walk_slots = 1});
  absl::Mutex held;
  absl::Notification done;
  absl::Notification got_it;
  held.Lock();
  Post([&] {
    PatientLock lock(&held);
    got_it.Notify();
  });
  Post([&] { done.Notify(); });
  done.WaitForNotification();
  EXPECT_FALSE(got_it.HasBeenNotified());
  held.Unlock();
  got_it.WaitForNotification();
  Finish();
}

}  // namespace
}  // namespace viommu
