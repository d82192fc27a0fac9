// The dirty log: layout, levels, and that no write is lost between writers and the scanner.
#include "iommu_core/mem/dirty_log.h"

#include <array>
#include <atomic>
#include <map>
#include <memory>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "iommu_core/mem/shared_memory.h"
#include "iommu_core/mem/sparse_memory.h"

namespace viommu {
namespace {

constexpr uint64_t kRam = uint64_t{16} << 20;

class DirtyLog : public ::testing::Test {
 protected:
  const std::unique_ptr<SharedMemory> memory_ = *SharedMemory::Create(kRam);
  const PhysAddr base_{kRam - DirtyLogBytes(kRam)};
  DirtyLogWriter writer_{*DirtyLogView::Create(*memory_, base_, kRam)};
  DirtyLogScanner scanner_{*DirtyLogView::Create(*memory_, base_, kRam)};

  std::map<uint64_t, uint64_t> Collect() {
    std::map<uint64_t, uint64_t> out;
    scanner_.Collect([](PhysAddr) { return true; },
                     [&](PhysAddr page, uint64_t lines) { out[page.value()] |= lines; });
    return out;
  }
};

TEST_F(DirtyLog, HoldsOneByteForEachGroupPageAndLine) {
  // 4096 pages: 8 groups (one cache line), 4096 page bytes, 4096 x 64 line bytes.
  EXPECT_EQ(DirtyLogBytes(kRam), AlignUp(64 + 4096 + 4096 * 64, kPageSize));
}

TEST_F(DirtyLog, MarksAreTakenOnce) {
  EXPECT_TRUE(Collect().empty());
  writer_.Mark(PhysAddr(0x5008));
  writer_.Mark(PhysAddr(0x5ff8));
  writer_.Mark(PhysAddr(0xabc000));
  const auto marks = Collect();
  ASSERT_EQ(marks.size(), 2u);
  EXPECT_EQ(marks.at(0x5000), 1 | uint64_t{1} << 63);
  EXPECT_EQ(marks.at(0xabc000), 1u);
  EXPECT_TRUE(Collect().empty());
}

TEST_F(DirtyLog, PageNotWantedKeepsItsLinesUntilTheyAreDropped) {
  const auto none = [](PhysAddr) { return false; };
  const auto fail = [](PhysAddr, uint64_t) { FAIL(); };
  writer_.Mark(PhysAddr(0x5008));
  scanner_.Collect(none, fail);
  EXPECT_TRUE(Collect().empty());
  writer_.Mark(PhysAddr(0x5048));
  EXPECT_EQ(Collect().at(0x5000), 3u);
  writer_.Mark(PhysAddr(0x5008));
  scanner_.Collect(none, fail);
  scanner_.DropLines(PhysAddr(0x5000));
  writer_.Mark(PhysAddr(0x5048));
  EXPECT_EQ(Collect().at(0x5000), 2u);
}

TEST_F(DirtyLog, SlotBeyondRamIsIgnored) {
  writer_.Mark(PhysAddr(kRam + 8));
  scanner_.DropLines(PhysAddr(kRam));
  EXPECT_TRUE(Collect().empty());
}

TEST_F(DirtyLog, MustLieInsideMemoryInPlace) {
  EXPECT_EQ(DirtyLogView::Create(*memory_, PhysAddr(kRam - kPageSize), kRam).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(DirtyLogView::Create(*memory_, base_ - 8, kRam).status().code(),
            absl::StatusCode::kInvalidArgument);
  SparseMemory sparse({{PhysAddr(0), PhysAddr(kRam)}});
  EXPECT_EQ(DirtyLogView::Create(sparse, base_, kRam).status().code(),
            absl::StatusCode::kFailedPrecondition);
}

TEST_F(DirtyLog, MarksKeptBackStandOnceTheyArePublished) {
  DirtyMarks marks({&writer_, 1});
  marks.Add(PhysAddr(0x5008));
  marks.Add(PhysAddr(0x5010));
  marks.Add(PhysAddr(0x6040));
  EXPECT_TRUE(Collect().empty());
  marks.Publish();
  auto seen = Collect();
  ASSERT_EQ(seen.size(), 2u);
  EXPECT_EQ(seen.at(0x5000), 1u);
  EXPECT_EQ(seen.at(0x6000), 2u);
  marks.Publish();
  EXPECT_TRUE(Collect().empty());
  // A byte that somebody set already hides none of the levels above it.
  writer_.Mark(PhysAddr(0x5008));
  scanner_.Collect([](PhysAddr) { return false; }, [](PhysAddr, uint64_t) { FAIL(); });
  marks.Add(PhysAddr(0x5008));
  marks.Publish();
  EXPECT_EQ(Collect().at(0x5000), 1u);
  // More than are kept, and what is not RAM.
  for (uint64_t i = 0; i < 200; ++i) marks.Add(PhysAddr(0x100000 + i * kPageSize));
  marks.Add(PhysAddr(kRam + 8));
  marks.Publish();
  EXPECT_EQ(Collect().size(), 200u);
}

// A vCPU writes and publishes before each invalidation; the scan that follows has to read what was
// written before it, whatever the scans did that ran meanwhile.
TEST_F(DirtyLog, ScanAfterPublishingSeesEveryEntry) {
  constexpr uint64_t kRounds = 400000;
  constexpr uint64_t kAhead = 4;
  for (const uint64_t apart : {uint64_t{8}, uint64_t{64}, kPageSize}) {
    const auto slot = [&](uint64_t round) { return PhysAddr(0x100000 + round % kAhead * apart); };
    std::atomic<uint64_t> published = 0;  // rounds whose invalidation was submitted
    std::atomic<uint64_t> scanned = 0;
    std::thread vcpu([&] {
      DirtyMarks marks({&writer_, 1});
      for (uint64_t round = 1; round <= kRounds; ++round) {
        memory_->Write64(slot(round), round);
        marks.Add(slot(round));
        marks.Publish();
        published.store(round, std::memory_order_release);
        // Overtakes some scans, as with a queue that is not waited for.
        while (round + 1 >= scanned.load(std::memory_order_acquire) + kAhead) continue;
      }
    });
    std::array<uint64_t, kAhead> copy{};
    uint64_t missed = 0;
    for (uint64_t due = 0; due != kRounds;) {
      due = published.load(std::memory_order_acquire);
      scanner_.Collect([](PhysAddr) { return true; },
                       [&](PhysAddr page, uint64_t lines) {
                         for (size_t i = 0; i < copy.size(); ++i) {
                           const uint64_t at = slot(i).value();
                           if (page.value() != (at & ~kPageMask)) continue;
                           if ((lines >> (at % kPageSize / 64) & 1) == 0) continue;
                           copy[i] = *memory_->Read64(slot(i));
                         }
                       });
      for (uint64_t round = due; round != 0 && round + kAhead > due; --round) {
        if (copy[round % kAhead] < round) ++missed;
      }
      scanned.store(due, std::memory_order_release);
    }
    vcpu.join();
    EXPECT_EQ(missed, 0u) << apart;
    for (uint64_t i = 0; i < kAhead; ++i) memory_->Write64(slot(i), 0);
  }
}

TEST_F(DirtyLog, NoWriteIsLostUnderConcurrency) {
  // Two writers store into their slots; the scanner copies the lines it is told of. Once both have
  // stopped, one more scan must leave the copy equal.
  constexpr uint64_t kFirst = 0x100000;
  constexpr uint64_t kSlots = 512 * 8;
  std::atomic<int> running{2};
  const auto write = [&](uint64_t seed) {
    for (int i = 0; i < 150000; ++i) {
      seed = seed * 6364136223846793005u + 1442695040888963407u;
      const PhysAddr slot(kFirst + 8 * ((seed >> 33) % kSlots));
      memory_->Write64(slot, seed);
      writer_.Mark(slot);
    }
    running.fetch_sub(1);
  };
  std::thread a(write, 1);
  std::thread b(write, 2);
  std::vector<uint64_t> copy(kSlots);
  const auto scan = [&] {
    scanner_.Collect([](PhysAddr) { return true; },
                     [&](PhysAddr page, uint64_t lines) {
                       for (uint64_t line = 0; line < 64; ++line) {
                         if (((lines >> line) & 1) == 0) continue;
                         for (uint64_t i = 0; i < 8; ++i) {
                           const uint64_t at = page.value() + 64 * line + 8 * i;
                           copy[(at - kFirst) / 8] = *memory_->Read64(PhysAddr(at));
                         }
                       }
                     });
  };
  while (running.load() != 0) scan();
  a.join();
  b.join();
  scan();
  for (uint64_t i = 0; i < kSlots; ++i) {
    ASSERT_EQ(copy[i], *memory_->Read64(PhysAddr(kFirst + 8 * i))) << i;
  }
}

}  // namespace
}  // namespace viommu
