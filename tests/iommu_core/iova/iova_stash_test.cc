// The stash hands out what the magazines behind it would have handed out.
#include "iommu_core/iova/iova_stash.h"

#include <gtest/gtest.h>

#include <random>
#include <set>
#include <vector>

namespace viommu {
namespace {

absl::StatusOr<Iova> Allocate(IovaStash& stash, IovaAllocator& behind, uint32_t cpu) {
  if (const auto iova = stash.Take()) return *iova;
  return behind.Allocate(kPageSize, cpu);
}

// Fewer than a magazine holds are ever free, so that neither side goes to the other CPU or the
// depot: then both are one stack over the same tree.
TEST(IovaStashTest, GivesTheSameAddressesAsTheAllocatorAlone) {
  IovaAllocator alone({.cpus = 1});
  IovaAllocator behind({.cpus = 1});
  IovaStash stash(behind, 0);
  std::vector<Iova> live;
  std::mt19937_64 random(3);
  for (int step = 0; step < 20000; ++step) {
    if (live.empty() || (live.size() < 100 && random() % 2 == 0)) {
      const Iova want = *alone.Allocate(kPageSize, 0);
      ASSERT_EQ(*Allocate(stash, behind, 0), want) << "step " << step;
      live.push_back(want);
    } else {
      const size_t i = random() % live.size();
      alone.Free(live[i], kPageSize, 0);
      stash.Free(live[i]);
      live[i] = live.back();
      live.pop_back();
    }
    ASSERT_EQ(behind.allocated_bytes() - stash.count() * kPageSize, live.size() * kPageSize);
  }
}

TEST(IovaStashTest, NothingIsHandedOutTwiceAndAllComesBack) {
  IovaAllocator iovas({.cpus = 2, .dma_mask_bits = 24});
  IovaStash a(iovas, 0), b(iovas, 1);
  std::set<uint64_t> out;
  std::vector<Iova> live;
  std::mt19937_64 random(4);
  for (int step = 0; step < 50000; ++step) {
    const auto cpu = static_cast<uint32_t>(random() % 2);
    IovaStash& stash = cpu == 0 ? a : b;
    if (live.size() < 2000 && random() % 2 == 0) {
      const auto iova = Allocate(stash, iovas, cpu);
      ASSERT_TRUE(iova.ok());
      ASSERT_TRUE(out.insert(iova->value()).second) << "step " << step;
      live.push_back(*iova);
    } else if (!live.empty()) {
      const size_t i = random() % live.size();
      out.erase(live[i].value());
      stash.Free(live[i]);
      live[i] = live.back();
      live.pop_back();
    }
  }
  for (const Iova iova : live) a.Free(iova);
  a.Empty();
  b.Empty();
  EXPECT_EQ(a.count() + b.count(), 0u);
  EXPECT_EQ(iovas.allocated_bytes(), 0u);
}

TEST(IovaStashTest, RunsOutAsTheAllocatorDoes) {
  IovaAllocator iovas({.cpus = 1, .dma_mask_bits = 20});  // 256 pages, page 0 is never given out
  IovaStash stash(iovas, 0);
  std::vector<Iova> live;
  for (int i = 0; i < 255; ++i) live.push_back(*Allocate(stash, iovas, 0));
  EXPECT_EQ(Allocate(stash, iovas, 0).status().code(), absl::StatusCode::kResourceExhausted);
  stash.Free(live.back());
  EXPECT_EQ(*Allocate(stash, iovas, 0), live.back());
}

}  // namespace
}  // namespace viommu
