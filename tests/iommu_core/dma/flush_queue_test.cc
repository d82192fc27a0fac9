#include "iommu_core/dma/flush_queue.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "iommu_core/dma/tick_timer.h"

namespace viommu {
namespace {

constexpr uint64_t kMs = 1'000'000;

IovaRange Page(uint64_t n) { return MakeRange(Iova(n * kPageSize), kPageSize); }

class FlushQueueTest : public ::testing::Test {
 protected:
  std::unique_ptr<FlushQueue> Make(FlushQueueShape shape, uint32_t cpus) {
    return std::make_unique<FlushQueue>(
        shape, cpus, 250,
        [this](FlushReason reason) {
          reasons_.push_back(reason);
          return flush_status_;
        },
        [this](FlushEntry&& entry, uint32_t cpu) {
          released_.push_back({entry.range.first.value() / kPageSize, cpu});
        });
  }

  std::vector<FlushReason> reasons_;
  std::vector<std::pair<uint64_t, uint32_t>> released_;
  absl::Status flush_status_;
};

// kernel/time/timer.c at 250 Hz: 10 ms is three ticks, one more because the timer must not be
// early.
TEST(TickTimerTest, TenMillisecondsAt250HzFireTwelveToSixteenLater) {
  EXPECT_EQ(TimerFiresAtNs(0, 10, 250), 16 * kMs);
  EXPECT_EQ(TimerFiresAtNs(1, 10, 250), 16 * kMs);
  EXPECT_EQ(TimerFiresAtNs(4 * kMs - 1, 10, 250), 16 * kMs);
  EXPECT_EQ(TimerFiresAtNs(4 * kMs, 10, 250), 20 * kMs);
}

TEST(TickTimerTest, OtherTickRates) {
  EXPECT_EQ(TimerFiresAtNs(0, 10, 1000), 11 * kMs);
  EXPECT_EQ(TimerFiresAtNs(0, 10, 100), 20 * kMs);
}

// A second at 250 Hz is 250 ticks: beyond the 63 buckets of one tick, so buckets are 8 ticks wide.
TEST(TickTimerTest, FarTimersUseWiderBuckets) {
  EXPECT_EQ(TimerFiresAtNs(0, 1000, 250), 256 * 4 * kMs);
  EXPECT_EQ(TimerFiresAtNs(24 * kMs, 1000, 250), 264 * 4 * kMs);
}

// Ring of 256: one slot stays empty, so the 256th entry finds 255 and flushes (fq_full).
TEST_F(FlushQueueTest, RingOf256HoldsUsable255) {
  auto queue = Make(kPerCpuShape, 1);
  for (uint64_t i = 0; i < 255; ++i) ASSERT_TRUE(queue->Add({Page(i), true, {}}, 0, 0).ok());
  EXPECT_THAT(reasons_, ::testing::IsEmpty());
  EXPECT_EQ(queue->entries(), 255u);
  ASSERT_TRUE(queue->Add({Page(255), true, {}}, 0, 0).ok());
  EXPECT_THAT(reasons_, ::testing::ElementsAre(FlushReason::kFull));
  EXPECT_EQ(released_.size(), 255u);
  EXPECT_EQ(queue->entries(), 1u);
}

TEST_F(FlushQueueTest, SingleRingHolds32767) {
  auto queue = Make(kSingleShape, 4);
  for (uint64_t i = 0; i < 32767; ++i) {
    ASSERT_TRUE(queue->Add({Page(i), true, {}}, static_cast<uint32_t>(i % 4), 0).ok());
  }
  EXPECT_TRUE(reasons_.empty());
  ASSERT_TRUE(queue->Add({Page(40000), true, {}}, 0, 0).ok());
  EXPECT_EQ(reasons_.size(), 1u);
}

// The timer is armed when off and not pushed back by full-ring flushes: over 100 ms of steady load
// both kinds of flush happen, timer ones every 16 ms.
TEST_F(FlushQueueTest, TimerIsNotPostponedByFullRings) {
  auto queue = Make(kPerCpuShape, 1);
  uint64_t n = 0;
  for (uint64_t now = 0; now < 100 * kMs; now += kMs / 40) {  // 40 a millisecond
    while (queue->timer_ns() && *queue->timer_ns() <= now) {
      ASSERT_TRUE(queue->OnTimer(*queue->timer_ns()).ok());
    }
    ASSERT_TRUE(queue->Add({Page(n++), true, {}}, 0, now).ok());
  }
  // 640 entries between timers of 16 ms: two full rings (at the 256th and 511th) and the timer; six
  // such windows, and 160 more entries that fill nothing.
  EXPECT_EQ(std::count(reasons_.begin(), reasons_.end(), FlushReason::kTimeout), 6);
  EXPECT_EQ(std::count(reasons_.begin(), reasons_.end(), FlushReason::kFull), 12);
}

// An entry queued while flush #c runs is stamped c and needs one more flush: finish > stamp.
TEST_F(FlushQueueTest, EntryQueuedDuringAFlushWaitsForTheNext) {
  std::unique_ptr<FlushQueue> queue;
  bool nested = false;
  queue = std::make_unique<FlushQueue>(
      kPerCpuShape, 2, 250,
      [&](FlushReason) {
        if (!nested) {
          nested = true;
          EXPECT_TRUE(queue->Add({Page(77), true, {}}, 1, 0).ok());
        }
        return absl::OkStatus();
      },
      [this](FlushEntry&& entry, uint32_t cpu) {
        released_.push_back({entry.range.first.value() / kPageSize, cpu});
      });
  ASSERT_TRUE(queue->Add({Page(1), true, {}}, 0, 0).ok());
  ASSERT_TRUE(queue->OnTimer(16 * kMs).ok());
  EXPECT_THAT(released_, ::testing::ElementsAre(std::pair(1ul, 0u)));
  EXPECT_EQ(queue->entries(), 1u);
  ASSERT_TRUE(queue->FlushAll(1).ok());
  EXPECT_THAT(released_, ::testing::ElementsAre(std::pair(1ul, 0u), std::pair(77ul, 1u)));
}

// One CPU's flush covers the others' older entries; they come free at their next queue_iova.
TEST_F(FlushQueueTest, AFlushRetiresOtherCpusEntriesLazily) {
  auto queue = Make(kPerCpuShape, 2);
  ASSERT_TRUE(queue->Add({Page(500), true, {}}, 1, 0).ok());
  for (uint64_t i = 0; i < 256; ++i) ASSERT_TRUE(queue->Add({Page(i), true, {}}, 0, 0).ok());
  EXPECT_EQ(reasons_.size(), 1u);
  EXPECT_EQ(released_.size(), 255u);  // CPU 0's; CPU 1 has not looked yet
  ASSERT_TRUE(queue->Add({Page(501), true, {}}, 1, 0).ok());
  EXPECT_EQ(released_.back(), std::pair(500ul, 1u));
}

TEST_F(FlushQueueTest, FailedFlushReleasesNothingAndIsTriedAgain) {
  auto queue = Make(kPerCpuShape, 1);
  ASSERT_TRUE(queue->Add({Page(1), true, {}}, 0, 0).ok());
  flush_status_ = absl::UnavailableError("hypervisor gone");
  EXPECT_FALSE(queue->OnTimer(16 * kMs).ok());
  EXPECT_TRUE(released_.empty());
  ASSERT_TRUE(queue->timer_ns().has_value());
  flush_status_ = absl::OkStatus();
  ASSERT_TRUE(queue->OnTimer(*queue->timer_ns()).ok());
  EXPECT_EQ(released_.size(), 1u);
}

TEST_F(FlushQueueTest, UnflushedRangesAreThoseNoFinishedFlushCovers) {
  auto queue = Make(kPerCpuShape, 2);
  ASSERT_TRUE(queue->Add({Page(9), true, {}}, 1, 0).ok());
  for (uint64_t i = 100; i < 356; ++i) ASSERT_TRUE(queue->Add({Page(i), true, {}}, 0, 0).ok());
  EXPECT_THAT(queue->UnflushedRanges(), ::testing::ElementsAre(Page(355)));
}

// With a deadline nothing waits longer, a flush that came in between moves the timer on, and a
// timer that finds nothing sends nothing.
TEST_F(FlushQueueTest, ADeadlineIsKeptToTheNanosecond) {
  auto queue = Make(kPerCpuShape, 2);
  queue->set_deadline_ns(9 * kMs);
  ASSERT_TRUE(queue->Add({Page(1), true, {}}, 0, kMs + 5).ok());
  EXPECT_EQ(queue->timer_ns(), 10 * kMs + 5);
  for (uint64_t i = 0; i < 256; ++i) {
    ASSERT_TRUE(queue->Add({Page(100 + i), true, {}}, 1, 2 * kMs + i).ok());
  }
  ASSERT_THAT(reasons_, ::testing::ElementsAre(FlushReason::kFull));
  ASSERT_TRUE(queue->OnTimer(10 * kMs + 5).ok());
  EXPECT_EQ(reasons_.size(), 1u);
  EXPECT_EQ(queue->timer_ns(), 11 * kMs + 255);  // of the one entry that flush did not cover
  ASSERT_TRUE(queue->OnTimer(11 * kMs + 255).ok());
  EXPECT_THAT(reasons_, ::testing::ElementsAre(FlushReason::kFull, FlushReason::kTimeout));
  EXPECT_EQ(queue->entries(), 0u);
  EXPECT_EQ(queue->timer_ns(), std::nullopt);
  ASSERT_TRUE(queue->Add({Page(2), true, {}}, 0, 20 * kMs).ok());
  ASSERT_TRUE(queue->FlushAll(0).ok());
  ASSERT_TRUE(queue->OnTimer(29 * kMs).ok());
  EXPECT_EQ(reasons_.size(), 3u);
  EXPECT_EQ(queue->timer_ns(), std::nullopt);
}

}  // namespace
}  // namespace viommu
