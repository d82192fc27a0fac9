#include "iommu_core/iova/iova_allocator.h"

#include <gtest/gtest.h>

#include <map>
#include <random>
#include <thread>
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

// IOAPIC_RANGE: 0xfee00000-0xfeefffff is reserved; a real kernel put a 512 KiB coherent buffer right
// below it, at 0xfe980000, the space above being taken.
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

TEST(RangeCacheTest, DepotCarriesWholeMagazinesBetweenCpus) {
  RangeCache cache(2);
  for (uint64_t i = 0; i < 3 * Magazine::kSize; ++i) cache.Push(0, i);
  EXPECT_TRUE(cache.Pop(1, ~uint64_t{0}));
  RangeCache two(2);
  for (uint64_t i = 0; i < 2 * Magazine::kSize; ++i) two.Push(0, i);
  EXPECT_FALSE(two.Pop(1, ~uint64_t{0}));
}

TEST(RangeCacheTest, PopHonoursTheLimit) {
  RangeCache cache(1);
  cache.Push(0, 5);
  cache.Push(0, 500);
  EXPECT_EQ(cache.Pop(0, 100), 5u);
  EXPECT_FALSE(cache.Pop(0, 100));
  EXPECT_EQ(cache.Pop(0, 500), 500u);
}

// Model twin: a plain set of intervals.
TEST(IovaAllocatorTest, RandomOperationsMatchAModel) {
  for (uint64_t seed = 1; seed <= 5; ++seed) {
    IovaAllocator a({.cpus = 3, .dma_mask_bits = 28, .address_width = 39});
    std::map<uint64_t, uint64_t> model;  // first -> bytes asked for
    std::mt19937_64 rng(seed);
    for (int step = 0; step < 20000; ++step) {
      const auto cpu = static_cast<uint32_t>(rng() % 3);
      if (rng() % 2 == 0 || model.empty()) {
        const uint64_t bytes = kPageSize * (1 + rng() % (rng() % 8 == 0 ? 80 : 4));
        const auto iova = a.Allocate(bytes, cpu);
        if (!iova.ok()) continue;
        const uint64_t first = iova->value();
        ASSERT_GE(first, kPageSize);
        ASSERT_LE(first + bytes, uint64_t{1} << 28);
        ASSERT_EQ(first & (std::bit_ceil(bytes) - 1), 0u);
        const auto next = model.lower_bound(first);
        ASSERT_TRUE(next == model.end() || next->first >= first + bytes);
        ASSERT_TRUE(next == model.begin() ||
                    std::prev(next)->first + std::prev(next)->second <= first);
        model[first] = bytes;
      } else {
        auto it = model.lower_bound(rng() % (uint64_t{1} << 28));
        if (it == model.end()) it = model.begin();
        a.Free(Iova(it->first), it->second, cpu);
        model.erase(it);
      }
    }
  }
}

TEST(IovaAllocatorTest, TwoThreadsNeverShareARange) {
  IovaAllocator a({.cpus = 2});
  std::vector<Iova> kept[2];
  const auto run = [&](uint32_t cpu) {
    for (int i = 0; i < 20000; ++i) {
      const Iova x = *a.Allocate(kPageSize, cpu);
      if (i % 10 == 0) {
        kept[cpu].push_back(x);
      } else {
        a.Free(x, kPageSize, cpu);
      }
    }
  };
  std::thread other(run, 1);
  run(0);
  other.join();
  std::map<uint64_t, int> seen;
  for (const auto& k : kept) {
    for (const Iova x : k) EXPECT_EQ(++seen[x.value()], 1);
  }
}

}  // namespace
}  // namespace viommu
