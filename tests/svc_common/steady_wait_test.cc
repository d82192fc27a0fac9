#include "svc_common/steady_wait.h"

#include <gtest/gtest.h>

#include <thread>

namespace viommu {
namespace {

using std::chrono::milliseconds;
using Steady = std::chrono::steady_clock;

TEST(StopSignalTest, WaitsForItsTimeUnlessStopped) {
  StopSignal signal;
  const auto begin = Steady::now();
  EXPECT_FALSE(signal.WaitFor(milliseconds(5)));
  EXPECT_GE(Steady::now() - begin, milliseconds(5));
  EXPECT_FALSE(signal.stopped());
  std::thread stopper([&] { signal.Stop(); });
  EXPECT_TRUE(signal.WaitFor(std::chrono::hours(1)));
  stopper.join();
  EXPECT_TRUE(signal.WaitFor(milliseconds(0)));  // for good
  EXPECT_TRUE(signal.stopped());
}

TEST(SteadyMutexTest, WaitersSeeAChangeWhenItIsUnlocked) {
  SteadyMutex mu;
  int turn ABSL_GUARDED_BY(mu) = 0;
  std::thread others[3];
  for (int i = 0; i < 3; ++i) {
    others[i] = std::thread([&, i] {
      SteadyLock lock(&mu);
      EXPECT_TRUE(mu.AwaitUntil(Steady::now() + std::chrono::hours(1), [&] { return turn == i; }));
      ++turn;
    });
  }
  {
    SteadyLock lock(&mu);
    EXPECT_TRUE(mu.AwaitUntil(Steady::now() + std::chrono::hours(1), [&] { return turn == 3; }));
    EXPECT_FALSE(mu.AwaitUntil(Steady::now() + milliseconds(2), [&] { return turn == 4; }));
    EXPECT_FALSE(mu.AwaitUntil(Steady::now(), [&] { return turn == 4; }));
  }
  for (std::thread& other : others) other.join();
}

}  // namespace
}  // namespace viommu
