// When a wait polls, and when it gives that up.
#include "guest_svc/spin_wait.h"

#include "gtest/gtest.h"

namespace viommu {
namespace {

using std::chrono::microseconds;

const SpinWait::Time kNow{std::chrono::hours(1)};

// Waits until the next one that polls, which is not counted.
int SkippedBeforeNext(SpinWait& spin) {
  int skipped = 0;
  while (spin.Begin(kNow) == kNow) ++skipped;
  return skipped;
}

TEST(SpinWait, PollsWhileAnswersComeInTime) {
  SpinWait spin(microseconds(100));
  for (int i = 0; i < 10; ++i) {
    EXPECT_EQ(spin.Begin(kNow), kNow + microseconds(100));
    spin.End(true);
  }
}

TEST(SpinWait, WaitsThatPolledInVainMakeItRare) {
  SpinWait spin(microseconds(100));
  EXPECT_EQ(SkippedBeforeNext(spin), 0);
  for (const int skipped : {1, 3, 7, 15, 31, 63, 63, 63}) {
    spin.End(false);
    EXPECT_EQ(SkippedBeforeNext(spin), skipped);
  }
  // One lucky wait among many does not bring it back.
  for (const int skipped : {31, 15, 7, 3, 1, 0, 0}) {
    spin.End(true);
    EXPECT_EQ(SkippedBeforeNext(spin), skipped);
  }
  spin.End(false);
  EXPECT_EQ(SkippedBeforeNext(spin), 1);
}

TEST(SpinWait, NeverPollsWhereTheLongestIsZero) {
  SpinWait spin(microseconds(0));
  for (int i = 0; i < 10; ++i) EXPECT_EQ(spin.Begin(kNow), kNow);
}

}  // namespace
}  // namespace viommu
