// A cursor's single pages beside the table's own way, and what it makes of unlinked tables.
#include "iommu_core/pt/leaf_cursor.h"

#include <gtest/gtest.h>

#include <map>
#include <random>
#include <thread>

#include "iommu_core/mem/shared_memory.h"
#include "iommu_core/mem/sparse_memory.h"
#include "iommu_core/pt/walker.h"

namespace viommu {
namespace {

constexpr uint64_t kRam = uint64_t{64} << 20;

class LeafCursorTest : public ::testing::Test {
 protected:
  LeafCursorTest()
      : memory_(*SharedMemory::Create(kRam)),
        frames_(*memory_, PhysAddr(1 << 20), PhysAddr(uint64_t{32} << 20)),
        caps_(vtd::QemuCapabilities(39, true)),
        table_(*SecondStageTable::Create(*memory_, frames_, 3, caps_)),
        cursor_(*table_, nullptr) {}

  std::map<uint64_t, uint64_t> Flatten() const {
    std::map<uint64_t, uint64_t> out;
    const Walker walker(*memory_, {caps_, 48});
    EXPECT_TRUE(walker
                    .ForEachLeaf(table_->root(), 3, {Iova(0), Iova(uint64_t{1} << 39)}, 1 << 24,
                                 [&](const LeafMapping& m) {
                                   for (uint64_t o = 0; o < m.size_bytes; o += kPageSize) {
                                     out[m.iova.value() + o] = m.address.value() + o;
                                   }
                                 })
                    .ok());
    return out;
  }

  std::unique_ptr<SharedMemory> memory_;
  SimpleFrameAllocator frames_;
  vtd::Capabilities caps_;
  std::unique_ptr<SecondStageTable> table_;
  LeafCursor cursor_;
};

TEST_F(LeafCursorTest, LeavesToTheTableWhatNeedsMoreThanOneStore) {
  // No leaf table yet, and beyond the width.
  EXPECT_FALSE(cursor_.Set(Iova(0x1000), PhysAddr(0x5000), kReadWrite));
  EXPECT_FALSE(cursor_.Set(Iova(uint64_t{1} << 39), PhysAddr(0x5000), kReadWrite));
  EXPECT_FALSE(cursor_.Clear(Iova(0x1000)));
  // A large leaf.
  ASSERT_TRUE(table_->Map(Iova(0x200000), PhysAddr(0x400000), 0x200000, kReadWrite).ok());
  EXPECT_FALSE(cursor_.Set(Iova(0x201000), PhysAddr(0x5000), kReadWrite));
  EXPECT_FALSE(cursor_.Clear(Iova(0x201000)));
  // A page that is mapped, one that is not.
  ASSERT_TRUE(table_->Map(Iova(0x1000), PhysAddr(0x5000), 0x1000, kReadWrite).ok());
  EXPECT_FALSE(cursor_.Set(Iova(0x1000), PhysAddr(0x6000), kReadWrite));
  EXPECT_FALSE(cursor_.Clear(Iova(0x2000)));
  EXPECT_EQ(Flatten().size(), 513u);
}

TEST_F(LeafCursorTest, OwesTheLogAMarkForEachStore) {
  auto view = DirtyLogView::Create(*memory_, PhysAddr(uint64_t{40} << 20), kRam);
  ASSERT_TRUE(view.ok()) << view.status();
  DirtyLogWriter writer(*view);
  DirtyLogScanner scanner(*view);
  DirtyMarks marks({&writer, 1});
  LeafCursor cursor(*table_, &marks);
  ASSERT_TRUE(table_->Map(Iova(0x1000), PhysAddr(0x5000), 0x1000, kReadWrite).ok());
  const PhysAddr leaf = *table_->LeafTableOf(Iova(0x1000));
  uint64_t lines = 0;
  const auto collect = [&] {
    lines = 0;
    scanner.Collect([&](PhysAddr page) { return page == leaf; },
                    [&](PhysAddr, uint64_t marked) { lines = marked; });
  };
  collect();
  ASSERT_TRUE(cursor.Set(Iova(0x9000), PhysAddr(0x7000), kReadWrite));
  collect();
  EXPECT_EQ(lines, 0u);
  marks.Publish();
  collect();
  EXPECT_EQ(lines, uint64_t{1} << 1);  // entry 9: the second line
  ASSERT_TRUE(cursor.Clear(Iova(0x9000)));
  marks.Publish();
  collect();
  EXPECT_EQ(lines, uint64_t{1} << 1);
}

// An unmap of the whole span unlinks the table that the cursor remembers; the page it is then asked
// for must not be written there.
TEST_F(LeafCursorTest, DoesNotUseATableThatWasUnlinked) {
  ASSERT_TRUE(table_->Map(Iova(0x1000), PhysAddr(0x5000), 0x1000, kReadWrite).ok());
  ASSERT_TRUE(cursor_.Set(Iova(0x2000), PhysAddr(0x6000), kReadWrite));
  auto unmapped = table_->Unmap({Iova(0), Iova(0x200000)});
  ASSERT_TRUE(unmapped.ok());
  ASSERT_EQ(unmapped->freed_tables.size(), 1u);
  EXPECT_FALSE(cursor_.Set(Iova(0x2000), PhysAddr(0x6000), kReadWrite));
  EXPECT_FALSE(cursor_.Clear(Iova(0x2000)));
  EXPECT_TRUE(Flatten().empty());
  // Nor one that a large leaf replaced.
  table_->FreeTables(unmapped->freed_tables);
  ASSERT_TRUE(table_->Map(Iova(0x1000), PhysAddr(0x5000), 0x1000, kReadWrite).ok());
  ASSERT_TRUE(cursor_.Clear(Iova(0x1000)));
  ASSERT_TRUE(table_->Map(Iova(0), PhysAddr(0x400000), 0x200000, kReadWrite).ok());
  EXPECT_FALSE(cursor_.Set(Iova(0x1000), PhysAddr(0x6000), kReadWrite));
}

// The table's own way is the model: the same history through two cursors and the table in turn.
TEST_F(LeafCursorTest, RandomHistoriesThroughCursorsAndTableAgreeWithAMap) {
  LeafCursor other(*table_, nullptr);
  std::map<uint64_t, uint64_t> model;
  std::mt19937_64 random(7);
  for (int step = 0; step < 20000; ++step) {
    const Iova iova((random() % 2048) << kPageShift);
    const PhysAddr page((1 + random() % 1000) << kPageShift);
    LeafCursor& cursor = random() % 2 == 0 ? cursor_ : other;
    const bool mapped = model.contains(iova.value());
    switch (random() % 8) {
      case 0: {  // a whole span at once
        const Iova first(AlignDown(iova.value(), vtd::LevelSize(2)));
        auto unmapped = table_->Unmap(MakeRange(first, vtd::LevelSize(2)));
        ASSERT_TRUE(unmapped.ok());
        table_->FreeTables(unmapped->freed_tables);
        model.erase(model.lower_bound(first.value()),
                    model.lower_bound(first.value() + vtd::LevelSize(2)));
        break;
      }
      case 1:
      case 2:
      case 3:
      case 4:
        if (cursor.Set(iova, page, kReadWrite)) {
          ASSERT_FALSE(mapped);
        } else {
          ASSERT_EQ(table_->Map(iova, page, kPageSize, kReadWrite).ok(), !mapped);
        }
        model.emplace(iova.value(), page.value());
        break;
      default:
        if (const auto old = cursor.Clear(iova)) {
          ASSERT_TRUE(mapped);
          ASSERT_EQ(old->address(52, 1).value(), model[iova.value()]);
        } else {
          auto unmapped = table_->Unmap(MakeRange(iova, kPageSize));
          ASSERT_TRUE(unmapped.ok());
          ASSERT_EQ(unmapped->unmapped_bytes, mapped ? kPageSize : 0);
        }
        model.erase(iova.value());
    }
    if (step % 500 == 0) {
      ASSERT_EQ(Flatten(), model) << "step " << step;
    }
  }
  EXPECT_EQ(Flatten(), model);
}

// Threads on pages of their own in shared leaf tables, while another unlinks tables elsewhere.
TEST_F(LeafCursorTest, ThreadsKeepToTheirOwnPages) {
  for (uint64_t span = 0; span < 2; ++span) {
    ASSERT_TRUE(table_
                    ->Map(Iova(span * vtd::LevelSize(2) + 511 * kPageSize), PhysAddr(0x5000),
                          kPageSize, kReadWrite)
                    .ok());
  }
  constexpr uint64_t kPagesEach = 128;
  const auto run = [&](uint64_t thread) {
    LeafCursor cursor(*table_, nullptr);
    for (int round = 0; round < 200; ++round) {
      for (uint64_t i = 0; i < kPagesEach; ++i) {
        const Iova iova((i % 2) * vtd::LevelSize(2) + (thread * kPagesEach + i) * kPageSize);
        ASSERT_TRUE(cursor.Set(iova, PhysAddr((thread + 1) << 20), kReadWrite));
        if (round != 199) {
          const auto old = cursor.Clear(iova);
          ASSERT_TRUE(old);
          ASSERT_EQ(old->address(52, 1), PhysAddr((thread + 1) << 20));
        }
      }
    }
  };
  std::thread a(run, 0), b(run, 1);
  for (int round = 0; round < 50; ++round) {
    const Iova far(uint64_t{1} << 30);
    ASSERT_TRUE(table_->Map(far, PhysAddr(0x7000), kPageSize, kReadWrite).ok());
    auto unmapped = table_->Unmap(MakeRange(far, vtd::LevelSize(2)));
    ASSERT_TRUE(unmapped.ok());
    table_->FreeTables(unmapped->freed_tables);
  }
  a.join();
  b.join();
  EXPECT_EQ(Flatten().size(), 2 * kPagesEach + 2);
}

}  // namespace
}  // namespace viommu
