#include "iommu_core/iova/iova_allocator.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <map>
#include <random>
#include <thread>
#include <utility>
#include <vector>

#include "iommu_core/iova/magazine.h"
#include "iommu_core/iova/range_tree.h"

namespace viommu {
namespace {

constexpr uint64_t k4G = uint64_t{1} << 32;

// The first 4K IOVA of every recorded run is the last page below 4 GiB, then downwards.
TEST(IovaAllocatorTest, TopDownBelow4G) {
  IovaAllocator a({});
  EXPECT_EQ(a.Allocate(kPageSize, 0)->value(), 0xfffff000u);
  EXPECT_EQ(a.Allocate(kPageSize, 0)->value(), 0xffffe000u);
}

TEST(IovaAllocatorTest, NaturallyAligned) {
  IovaAllocator a({});
  ASSERT_TRUE(a.Allocate(kPageSize, 0).ok());
  EXPECT_EQ(a.Allocate(8 * kPageSize, 0)->value(), 0xffff0000u);
  // 33 pages stay 33, aligned to 64 (sizes above the magazines are not rounded).
  EXPECT_EQ(a.Allocate(33 * kPageSize, 0)->value() % (64 * kPageSize), 0u);
  EXPECT_EQ(a.allocated_bytes(), (1 + 8 + 33) * kPageSize);
}

TEST(IovaAllocatorTest, SmallSizesAreRoundedToAPowerOfTwo) {
  IovaAllocator a({});
  ASSERT_TRUE(a.Allocate(3 * kPageSize, 0).ok());
  EXPECT_EQ(a.allocated_bytes(), 4 * kPageSize);
}

// IOAPIC_RANGE: 0xfee00000-0xfeefffff is reserved; a real kernel put a 512 KiB coherent buffer
// right below it, at 0xfe980000, the space above being taken.
TEST(IovaAllocatorTest, SkipsTheMsiWindow) {
  IovaAllocator a({});
  uint64_t lowest = k4G;
  for (int i = 0; i < 40; ++i) {
    const uint64_t iova = a.Allocate(512 << 10, 0)->value();
    EXPECT_TRUE(iova + (512 << 10) <= 0xfee00000 || iova >= 0xfef00000) << std::hex << iova;
    lowest = std::min(lowest, iova);
  }
  EXPECT_LT(lowest, 0xfee00000u);
}

TEST(IovaAllocatorTest, RealPlacementOf512KiB) {
  IovaAllocator a({.cpus = 1, .dma_mask_bits = 32, .address_width = 39});
  // That machine's windows: the I/O APIC and chipset above 0xfea00000, the flash below 4 GiB.
  ASSERT_TRUE(a.Reserve({Iova(0xfea00000), Iova(0xfee00000)}).ok());
  ASSERT_TRUE(a.Reserve({Iova(0xfef00000), Iova(k4G)}).ok());
  EXPECT_EQ(a.Allocate(512 << 10, 0)->value(), 0xfe980000u);
}

// alloc_iova_fast: below 32 pages sizes are powers of two, 32 is the last cached one, and what is
// larger goes back to the tree at once.
TEST(IovaAllocatorTest, TheLastCachedSizeIs128KiB) {
  IovaAllocator a({});
  const uint64_t before = a.tree_ranges();
  a.Free(*a.Allocate(32 * kPageSize, 0), 32 * kPageSize, 0);
  EXPECT_EQ(a.tree_ranges(), before + 1);
  a.Free(*a.Allocate(33 * kPageSize, 0), 33 * kPageSize, 0);
  EXPECT_EQ(a.tree_ranges(), before + 1);
  // 17..32 pages share an order: the range freed above serves 20 pages.
  ASSERT_TRUE(a.Allocate(20 * kPageSize, 0).ok());
  EXPECT_EQ(a.tree_ranges(), before + 1);
}

TEST(IovaAllocatorTest, LastFreedIsFirstReused) {
  IovaAllocator a({});
  const Iova x = *a.Allocate(kPageSize, 0);
  const Iova y = *a.Allocate(kPageSize, 0);
  a.Free(x, kPageSize, 0);
  a.Free(y, kPageSize, 0);
  EXPECT_EQ(*a.Allocate(kPageSize, 0), y);
  EXPECT_EQ(*a.Allocate(kPageSize, 0), x);
}

// A freed range goes to the CPU that frees it; it stays in the tree.
TEST(IovaAllocatorTest, MagazinesArePerCpu) {
  IovaAllocator a({.cpus = 2});
  const Iova x = *a.Allocate(kPageSize, 0);
  const uint64_t ranges = a.tree_ranges();
  a.Free(x, kPageSize, 1);
  EXPECT_EQ(a.tree_ranges(), ranges);
  EXPECT_NE(*a.Allocate(kPageSize, 0), x);
  EXPECT_EQ(*a.Allocate(kPageSize, 1), x);
}

TEST(IovaAllocatorTest, LargeRangesGoBackToTheTree) {
  IovaAllocator a({});
  const uint64_t ranges = a.tree_ranges();
  const Iova x = *a.Allocate(64 * kPageSize, 0);
  EXPECT_EQ(a.tree_ranges(), ranges + 1);
  a.Free(x, 64 * kPageSize, 0);
  EXPECT_EQ(a.tree_ranges(), ranges);
}

// pci_32bit_workaround: the first failure below 4 GiB switches it off for good.
TEST(IovaAllocatorTest, Above4GAfterTheFirstFailure) {
  IovaAllocator a({.cpus = 1, .dma_mask_bits = 64, .address_width = 39});
  constexpr uint64_t kGiB = uint64_t{1} << 30;
  // Page 0 takes the lowest GiB, the MSI window the highest; two are left below 4 GiB.
  EXPECT_EQ(a.Allocate(kGiB, 0)->value(), 2 * kGiB);
  EXPECT_EQ(a.Allocate(kGiB, 0)->value(), kGiB);
  EXPECT_EQ(a.Allocate(kGiB, 0)->value(), (uint64_t{1} << 39) - kGiB);
  EXPECT_GE(a.Allocate(kPageSize, 0)->value(), k4G);
}

TEST(IovaAllocatorTest, ExhaustionIsAnErrorAndPage0IsNeverGiven) {
  IovaAllocator a({.cpus = 1, .dma_mask_bits = 20, .address_width = 39});
  uint64_t pages = 0;
  while (true) {
    auto iova = a.Allocate(kPageSize, 0);
    if (!iova.ok()) {
      EXPECT_EQ(iova.status().code(), absl::StatusCode::kResourceExhausted);
      break;
    }
    EXPECT_NE(iova->value(), 0u);
    ++pages;
  }
  EXPECT_EQ(pages, 255u);
}

// alloc_iova_fast with flush_rcache: when the tree is full, everybody's magazines are emptied.
TEST(IovaAllocatorTest, ExhaustionDrainsOtherCpusMagazines) {
  IovaAllocator a({.cpus = 2, .dma_mask_bits = 20, .address_width = 39});
  std::vector<Iova> all;
  for (auto iova = a.Allocate(kPageSize, 0); iova.ok(); iova = a.Allocate(kPageSize, 0)) {
    all.push_back(*iova);
  }
  for (const Iova iova : all) a.Free(iova, kPageSize, 1);
  EXPECT_TRUE(a.Allocate(128 * kPageSize, 0).ok());
}

TEST(IovaAllocatorTest, ReserveTakesARangeOut) {
  IovaAllocator a({});
  ASSERT_TRUE(a.Reserve(MakeRange(Iova(0xffff0000), 16 * kPageSize)).ok());
  EXPECT_EQ(a.Allocate(kPageSize, 0)->value(), 0xfffef000u);
  EXPECT_EQ(a.Reserve(MakeRange(Iova(0xffff0000), kPageSize)).code(),
            absl::StatusCode::kAlreadyExists);
}

// max32_alloc_size: after a failed size, requests as large fail until something comes free.
TEST(RangeTreeTest, AFailedSizeIsRememberedUntilAFree) {
  RangeTree tree(1);
  const auto low = tree.Allocate(uint64_t{1} << 19, 1 << 20);
  ASSERT_TRUE(low);
  EXPECT_FALSE(tree.Allocate(uint64_t{1} << 19, 1 << 20));
  EXPECT_FALSE(tree.Allocate(uint64_t{1} << 19, 1 << 20));
  EXPECT_TRUE(tree.Allocate(1, 1 << 20));
  ASSERT_TRUE(tree.Free(*low));
  EXPECT_TRUE(tree.Allocate(1 << 18, 1 << 20));
}

constexpr uint64_t kNoLimit = ~uint64_t{0};

// A CPU keeps up to two magazines to itself; what is more goes to the depot, whole magazines.
TEST(RangeCachesTest, DepotCarriesWholeMagazinesBetweenCpus) {
  RangeCaches caches(2);
  for (uint64_t i = 0; i < 2 * Magazine::kSize; ++i) caches.Push(0, 0, i);
  EXPECT_FALSE(caches.Pop(1, 0, kNoLimit));
  // The 255th sends the loaded magazine, the one filled last, to the depot.
  caches.Push(0, 0, 1000);
  for (uint64_t i = 2 * Magazine::kSize; i-- > Magazine::kSize;) {
    EXPECT_EQ(caches.Pop(1, 0, kNoLimit), i);
  }
  EXPECT_FALSE(caches.Pop(1, 0, kNoLimit));
  EXPECT_EQ(caches.Pop(0, 0, kNoLimit), 1000u);
  EXPECT_EQ(caches.Pop(0, 0, kNoLimit), Magazine::kSize - 1);
}

TEST(RangeCachesTest, OrdersAreApart) {
  RangeCaches caches(1);
  caches.Push(0, 3, 8);
  EXPECT_FALSE(caches.Pop(0, 2, kNoLimit));
  EXPECT_EQ(caches.Pop(0, 3, kNoLimit), 8u);
}

// iova_magazine_pop: what lies above the limit is passed over, the top entry fills the hole.
TEST(RangeCachesTest, PopHonoursTheLimit) {
  RangeCaches caches(1);
  for (const uint64_t pfn : {5u, 6u, 500u, 600u}) caches.Push(0, 0, pfn);
  EXPECT_EQ(caches.Pop(0, 0, 100), 6u);
  EXPECT_EQ(caches.Pop(0, 0, kNoLimit), 500u);
  EXPECT_EQ(caches.Pop(0, 0, 100), 5u);
  EXPECT_FALSE(caches.Pop(0, 0, 100));
  EXPECT_EQ(caches.Pop(0, 0, 600), 600u);
}

TEST(RangeCachesTest, DrainTakesEverything) {
  RangeCaches caches(2);
  for (uint64_t i = 0; i < 1000; ++i) caches.Push(i % 2, static_cast<int>(i % 6), i);
  EXPECT_EQ(caches.Drain().size(), 1000u);
  for (uint32_t cpu = 0; cpu < 2; ++cpu) {
    for (int order = 0; order < RangeCaches::kOrders; ++order) {
      EXPECT_FALSE(caches.Pop(cpu, order, kNoLimit));
    }
  }
}

// __alloc_and_insert_iova_range: the walk starts at the last range given out; what came free above
// it and does not fit is found by one retry over the part above.
TEST(RangeTreeTest, SearchesFromTheCachedPointThenAboveIt) {
  RangeTree tree(1);
  constexpr uint64_t kEnd = 1 << 20;
  const uint64_t first = *tree.Allocate(1, kEnd);
  const uint64_t second = *tree.Allocate(1, kEnd);
  const uint64_t third = *tree.Allocate(1, kEnd);
  EXPECT_EQ(first, kEnd - 1);
  EXPECT_EQ(third, kEnd - 3);
  // A free above the cached point moves it up to the next range: the hole is used next.
  ASSERT_TRUE(tree.Free(second));
  EXPECT_EQ(tree.Allocate(1, kEnd), second);
  // Now the cached point is at `second`: the next search goes on below the third.
  EXPECT_EQ(tree.Allocate(1, kEnd), third - 1);
  ASSERT_TRUE(tree.Free(first));
  EXPECT_EQ(tree.Allocate(1, kEnd), first);

  // The lower part full and a hole only above the cached point.
  RangeTree small(1);
  while (small.Allocate(1, 64)) {
  }
  ASSERT_TRUE(small.Free(40));
  ASSERT_TRUE(small.Free(20));
  EXPECT_EQ(small.Allocate(1, 64), 40u);
  EXPECT_EQ(small.Allocate(1, 64), 20u);
  EXPECT_FALSE(small.Allocate(1, 64));
}

// The two cached points are apart: 64-bit allocations don't move the 32-bit one.
TEST(RangeTreeTest, The32BitPointIsItsOwn) {
  RangeTree tree(1);
  constexpr uint64_t k32 = 1 << 20;
  constexpr uint64_t k39 = 1 << 27;
  EXPECT_EQ(tree.Allocate(1, k32), k32 - 1);
  EXPECT_EQ(tree.Allocate(1, k39), k39 - 1);
  EXPECT_EQ(tree.Allocate(1, k32), k32 - 2);
  EXPECT_EQ(tree.Allocate(1, k39), k39 - 2);
}

// A free above 4 GiB does not lift the 32-bit memory of a failed size.
TEST(RangeTreeTest, OnlyA32BitFreeForgetsTheFailedSize) {
  RangeTree tree(1);
  constexpr uint64_t k32 = 1 << 20;
  const uint64_t low = *tree.Allocate(1 << 19, k32);
  EXPECT_FALSE(tree.Allocate(1 << 19, k32));
  const uint64_t high = *tree.Allocate(1 << 19, 1 << 27);
  ASSERT_GE(high, k32);
  ASSERT_TRUE(tree.Free(high));
  EXPECT_FALSE(tree.Allocate(1 << 19, k32));
  ASSERT_TRUE(tree.Free(low));
  EXPECT_EQ(tree.Allocate(1 << 19, k32), 1u << 19);
}

// iommu_dma_alloc_iova: the 32-bit attempt does not flush other CPUs' magazines, so the space above
// 4 GiB is used although freed ranges lie cached below it.
TEST(IovaAllocatorTest, The32BitAttemptLeavesOtherMagazinesAlone) {
  IovaAllocator a({.cpus = 2, .dma_mask_bits = 64, .address_width = 39});
  // 4 GiB in 128 KiB pieces, less 1 MiB of MSI window and the piece that holds page 0.
  constexpr uint64_t kPieces = k4G / (32 * kPageSize) - 8 - 1;
  std::vector<Iova> low;
  for (uint64_t i = 0; i < kPieces; ++i) {
    low.push_back(*a.Allocate(32 * kPageSize, 0));
    ASSERT_LT(low.back().value(), k4G);
  }
  // As many as CPU 1 keeps to itself.
  for (uint32_t i = 0; i < 2 * Magazine::kSize; ++i) a.Free(low[i], 32 * kPageSize, 1);
  const uint64_t ranges = a.tree_ranges();
  EXPECT_GE(a.Allocate(32 * kPageSize, 0)->value(), k4G);
  EXPECT_EQ(a.tree_ranges(), ranges + 1);
  EXPECT_LT(a.Allocate(32 * kPageSize, 1)->value(), k4G);
}

// Model twin: a plain set of intervals. 28 bits fill up, 32 hold the MSI window, 64 leave 4 GiB.
TEST(IovaAllocatorTest, RandomOperationsMatchAModel) {
  for (const int mask_bits : {24, 28, 32, 64}) {
    IovaAllocator a({.cpus = 3, .dma_mask_bits = mask_bits, .address_width = 39});
    const uint64_t end = uint64_t{1} << std::min(mask_bits, 39);
    std::map<uint64_t, uint64_t> model;  // first -> bytes asked for
    uint64_t allocated = 0;
    uint64_t failures = 0;
    std::mt19937_64 rng(static_cast<uint64_t>(mask_bits));
    const auto held = [](uint64_t bytes) {
      return bytes < 32 * kPageSize ? std::bit_ceil(bytes) : bytes;
    };
    for (int step = 0; step < 30000; ++step) {
      const auto cpu = static_cast<uint32_t>(rng() % 3);
      if (rng() % 100 < 55 || model.empty()) {
        const uint64_t bytes = kPageSize * (1 + rng() % (rng() % 8 == 0 ? 300 : 40));
        const auto iova = a.Allocate(bytes, cpu);
        if (!iova.ok()) {
          ++failures;
          continue;
        }
        const uint64_t first = iova->value();
        ASSERT_GE(first, kPageSize);
        ASSERT_LE(first + bytes, end);
        ASSERT_EQ(first & (std::bit_ceil(bytes) - 1), 0u);
        ASSERT_TRUE(first + bytes <= 0xfee00000 || first >= 0xfef00000) << std::hex << first;
        const auto next = model.lower_bound(first);
        ASSERT_TRUE(next == model.end() || next->first >= first + held(bytes));
        ASSERT_TRUE(next == model.begin() ||
                    std::prev(next)->first + held(std::prev(next)->second) <= first);
        model[first] = bytes;
        allocated += held(bytes);
      } else {
        auto it = model.lower_bound(rng() % end);
        if (it == model.end()) it = model.begin();
        a.Free(Iova(it->first), it->second, cpu);
        allocated -= held(it->second);
        model.erase(it);
      }
      ASSERT_EQ(a.allocated_bytes(), allocated);
    }
    EXPECT_EQ(failures > 0, mask_bits <= 28) << mask_bits;
    // Everything given back: nothing was lost on the way, the largest range is free again.
    for (const auto& [first, bytes] : model) a.Free(Iova(first), bytes, 0);
    EXPECT_EQ(a.allocated_bytes(), 0u);
    if (mask_bits <= 28) {
      EXPECT_EQ(a.Allocate(end / 2, 0)->value(), end / 2);
    }
  }
}

// Threads on CPUs of their own, on each other's (a caller may be moved between choosing a CPU and
// using it), exhausting the space so that drains run meanwhile.
TEST(IovaAllocatorTest, ThreadsNeverShareARange) {
  constexpr int kThreads = 2;
  IovaAllocator a({.cpus = kThreads, .dma_mask_bits = 23, .address_width = 39});
  const uint64_t pages = (uint64_t{1} << 23) / kPageSize;
  std::vector<std::atomic<int>> owners(pages);
  std::atomic<uint64_t> clashes{0};
  std::atomic<uint64_t> failures{0};
  const auto run = [&](uint32_t thread) {
    std::mt19937_64 rng(thread + 1);
    std::vector<std::pair<Iova, uint64_t>> mine;
    for (int i = 0; i < 40000; ++i) {
      const uint32_t cpu = rng() % 16 == 0 ? 1 - thread : thread;
      if (rng() % 2 == 0 || mine.empty()) {
        const uint64_t count = uint64_t{1} << (rng() % 7);
        const auto iova = a.Allocate(count * kPageSize, cpu);
        if (!iova.ok()) {
          ++failures;
          continue;
        }
        for (uint64_t p = 0; p < count; ++p) {
          if (owners[iova->value() / kPageSize + p].exchange(1) != 0) ++clashes;
        }
        mine.push_back({*iova, count});
      } else {
        std::swap(mine[rng() % mine.size()], mine.back());
        const auto [iova, count] = mine.back();
        mine.pop_back();
        for (uint64_t p = 0; p < count; ++p) owners[iova.value() / kPageSize + p].store(0);
        a.Free(iova, count * kPageSize, cpu);
      }
    }
    for (const auto& [iova, count] : mine) {
      for (uint64_t p = 0; p < count; ++p) owners[iova.value() / kPageSize + p].store(0);
      a.Free(iova, count * kPageSize, thread);
    }
  };
  std::thread other(run, 1);
  run(0);
  other.join();
  EXPECT_EQ(clashes, 0u);
  EXPECT_GT(failures, 0u);
  EXPECT_EQ(a.allocated_bytes(), 0u);
  EXPECT_TRUE(a.Allocate(uint64_t{1} << 22, 0).ok());
}

}  // namespace
}  // namespace viommu
