#include "iommu_core/mem/dirty_log.h"

#include <gtest/gtest.h>

#include <atomic>
#include <map>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "iommu_core/mem/shared_memory.h"

namespace viommu {
namespace {

constexpr uint64_t kRam = uint64_t{64} << 20;
constexpr PhysAddr kLogBase{uint64_t{32} << 20};

class DirtyLogTest : public ::testing::Test {
 protected:
  using Marks = std::map<uint64_t, uint64_t>;  // page -> lines

  Marks Collect() {
    Marks out;
    uint64_t bytes = 0;
    collector_.Collect([&](PhysAddr page, uint64_t lines) { out[page.value()] |= lines; }, bytes);
    bytes_read_ = bytes;
    return out;
  }

  const std::unique_ptr<SharedMemory> memory_ = *SharedMemory::Create(kRam);
  const DirtyLogLayout layout_{kLogBase, kRam};
  DirtyLogWriter writer_{*memory_, layout_};
  DirtyLogCollector collector_{*memory_, layout_};
  uint64_t bytes_read_ = 0;
};

TEST_F(DirtyLogTest, TheLogIsOneByteAPageAndOneALine) {
  // 16,384 pages: 4 pages of page bytes, 1 MiB of line bytes.
  EXPECT_EQ(DirtyLogLayout::SizeFor(kRam), 4 * kPageSize + (uint64_t{1} << 20));
  writer_.Mark(PhysAddr(0x5000 + 64 * 7 + 8));
  EXPECT_EQ(*memory_->Read64(kLogBase), uint64_t{1} << 40) << "byte 5";
  EXPECT_EQ(*memory_->Read64(kLogBase + 4 * kPageSize + 5 * 64), uint64_t{1} << 56) << "byte 7";
}

TEST_F(DirtyLogTest, ALogMustBeAlignedLargeEnoughAndInsideTheMemory) {
  const uint64_t size = DirtyLogLayout::SizeFor(kRam);
  EXPECT_TRUE(layout_.Check(size).ok());
  EXPECT_FALSE(layout_.Check(size - 1).ok());
  EXPECT_FALSE((DirtyLogLayout{kLogBase + 8, kRam}.Check(size).ok()));
  EXPECT_FALSE((DirtyLogLayout{PhysAddr(kRam), kRam}.Check(size).ok()));
  EXPECT_FALSE((DirtyLogLayout{PhysAddr(kRam - kPageSize), kRam}.Check(size).ok()));
  EXPECT_FALSE((DirtyLogLayout{PhysAddr(~kPageMask), kRam}.Check(size).ok()));
}

TEST_F(DirtyLogTest, MarksOfWatchedPagesAreTakenOnce) {
  collector_.Watch(PhysAddr(0x5000));
  collector_.Watch(PhysAddr(0x2005000));
  EXPECT_EQ(Collect(), Marks{});
  EXPECT_EQ(bytes_read_, 2u * 64) << "two groups of 64 pages";
  writer_.Mark(PhysAddr(0x5000));
  writer_.Mark(PhysAddr(0x5008));
  writer_.Mark(PhysAddr(0x5ff8));
  writer_.Mark(PhysAddr(0x2005040));
  EXPECT_EQ(Collect(), (Marks{{0x5000, 1 | uint64_t{1} << 63}, {0x2005000, 2}}));
  EXPECT_EQ(Collect(), Marks{});
}

TEST_F(DirtyLogTest, MarksOfOtherPagesStayUntilTheyAreWatched) {
  collector_.Watch(PhysAddr(0x5000));
  writer_.Mark(PhysAddr(0x6000));  // the same group
  writer_.Mark(PhysAddr(0x90000));
  EXPECT_EQ(Collect(), Marks{});
  collector_.Watch(PhysAddr(0x6000));
  collector_.Watch(PhysAddr(0x90000));
  EXPECT_EQ(Collect(), (Marks{{0x6000, 1}, {0x90000, 1}}));
}

TEST_F(DirtyLogTest, WatchesAreCounted) {
  collector_.Watch(PhysAddr(0x5000));
  collector_.Watch(PhysAddr(0x5000));
  collector_.Watch(PhysAddr(0x100000));
  collector_.Unwatch(PhysAddr(0x5000));
  writer_.Mark(PhysAddr(0x5000));
  EXPECT_EQ(Collect(), (Marks{{0x5000, 1}}));
  collector_.Unwatch(PhysAddr(0x5000));
  collector_.Unwatch(PhysAddr(0x5000));  // once too often changes nothing
  writer_.Mark(PhysAddr(0x5000));
  writer_.Mark(PhysAddr(0x100000));
  EXPECT_EQ(Collect(), (Marks{{0x100000, 1}}));
  EXPECT_EQ(bytes_read_, 2u * 64) << "one group, one page's lines";
}

TEST_F(DirtyLogTest, SlotsBeyondTheMemoryAreIgnoredOnBothSides) {
  writer_.Mark(PhysAddr(kRam));
  writer_.Mark(PhysAddr(~uint64_t{7}));
  collector_.Watch(PhysAddr(kRam));
  collector_.Unwatch(PhysAddr(kRam));
  EXPECT_EQ(Collect(), Marks{});
}

TEST_F(DirtyLogTest, AMarkBesideOneThatIsTakenIsNotLost) {
  // Bytes, not bits: clearing one leaves its neighbours in the same word alone.
  collector_.Watch(PhysAddr(0x5000));
  writer_.Mark(PhysAddr(0x5000));
  writer_.Mark(PhysAddr(0x6000));
  Collect();
  collector_.Watch(PhysAddr(0x6000));
  EXPECT_EQ(Collect(), (Marks{{0x6000, 1}}));
}

TEST_F(DirtyLogTest, NoWriteIsLostWhileTheCollectorRuns) {
  constexpr uint64_t kPages = 8;
  constexpr PhysAddr kTables{0x10000};
  constexpr uint64_t kEntries = kPages * 512;
  for (uint64_t p = 0; p < kPages; ++p) collector_.Watch(kTables + p * kPageSize);
  std::atomic<bool> done = false;
  std::thread guest([&] {
    uint64_t state = 1;
    for (uint64_t i = 1; i <= 400'000; ++i) {
      state = state * 6364136223846793005 + 1442695040888963407;
      const PhysAddr slot = kTables + 8 * ((state >> 33) % kEntries);
      memory_->Write64(slot, i);
      writer_.Mark(slot);
    }
    done = true;
  });
  std::vector<uint64_t> seen(kEntries, 0);
  const auto collect = [&] {
    uint64_t bytes = 0;
    std::vector<std::pair<PhysAddr, uint64_t>> marks;
    collector_.Collect([&](PhysAddr page, uint64_t lines) { marks.emplace_back(page, lines); },
                       bytes);
    for (const auto& [page, lines] : marks) {
      for (uint64_t line = 0; line < 64; ++line) {
        if (((lines >> line) & 1) == 0) continue;
        for (uint64_t i = 8 * line; i < 8 * line + 8; ++i) {
          seen[(page - kTables) / 8 + i] = *memory_->Read64(page + 8 * i);
        }
      }
    }
  };
  while (!done) collect();
  guest.join();
  collect();
  for (uint64_t i = 0; i < kEntries; ++i) {
    ASSERT_EQ(seen[i], *memory_->Read64(kTables + 8 * i)) << "entry " << i;
  }
}

}  // namespace
}  // namespace viommu
