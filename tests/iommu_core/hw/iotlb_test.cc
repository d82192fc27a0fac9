// The set-associative IOTLB by itself: ways, sizes, and the O(1) domain invalidation.
#include "iommu_core/hw/iotlb.h"

#include "gtest/gtest.h"
#include "iommu_core/vtd/second_stage_pte.h"

namespace viommu {
namespace {

constexpr DomainId kDomain(7);

Iotlb::Entry Page(uint64_t address, int level = 1, DomainId did = kDomain) {
  return {PhysAddr(address), level, kReadWrite, did};
}

TEST(IotlbTest, HoldsAllSizesAndFindsTheRightOne) {
  Iotlb tlb(64, Iotlb::Key::kDomain);
  tlb.Insert(7, Iova(0x40000000), Page(0x80000000, 3));
  tlb.Insert(7, Iova(0x200000), Page(0x600000, 2));
  tlb.Insert(7, Iova(0x1000), Page(0x5000, 1));
  EXPECT_EQ(tlb.Find(7, Iova(0x7fffffff))->page, PhysAddr(0x80000000));
  EXPECT_EQ(tlb.Find(7, Iova(0x3fffff))->page, PhysAddr(0x600000));
  EXPECT_EQ(tlb.Find(7, Iova(0x1fff))->page, PhysAddr(0x5000));
  EXPECT_FALSE(tlb.Find(7, Iova(0x2000)));
  EXPECT_FALSE(tlb.Find(8, Iova(0x1000)));
  EXPECT_FALSE(tlb.Find(7, Iova((uint64_t{1} << 57) | 0x1000)));
}

// One set of eight ways: the ninth page takes the place of one of the first eight, not of more.
TEST(IotlbTest, EightWaysASet) {
  Iotlb tlb(8, Iotlb::Key::kDomain);
  ASSERT_EQ(tlb.sets(), 1u);
  const auto present = [&](uint64_t pages) {
    uint64_t found = 0;
    for (uint64_t i = 0; i < pages; ++i) found += tlb.Find(7, Iova(i * kPageSize)) ? 1 : 0;
    return found;
  };
  for (uint64_t i = 0; i < 8; ++i) tlb.Insert(7, Iova(i * kPageSize), Page(i * kPageSize));
  EXPECT_EQ(present(8), 8u);
  // The same page again takes no second way.
  tlb.Insert(7, Iova(0), Page(0x9000));
  EXPECT_EQ(present(8), 8u);
  EXPECT_EQ(tlb.Find(7, Iova(0))->page, PhysAddr(0x9000));
  tlb.Insert(7, Iova(8 * kPageSize), Page(0x8000));
  EXPECT_EQ(present(9), 8u);
  EXPECT_TRUE(tlb.Find(7, Iova(8 * kPageSize)));
}

// A freed way is used before an occupied one.
TEST(IotlbTest, InvalidatedWayIsReused) {
  Iotlb tlb(8, Iotlb::Key::kDomain);
  for (uint64_t i = 0; i < 8; ++i) tlb.Insert(7, Iova(i * kPageSize), Page(i * kPageSize));
  tlb.InvalidateRange(kDomain, MakeRange(Iova(3 * kPageSize), kPageSize));
  EXPECT_FALSE(tlb.Find(7, Iova(3 * kPageSize)));
  tlb.Insert(7, Iova(100 * kPageSize), Page(0));
  for (uint64_t i = 0; i < 8; ++i) EXPECT_EQ(tlb.Find(7, Iova(i * kPageSize)).has_value(), i != 3);
}

// More domain invalidations than tags can tell apart: an old entry must not come back to life.
TEST(IotlbTest, DomainTagsRunOutSafely) {
  Iotlb tlb(64, Iotlb::Key::kDomain);
  constexpr int kRounds = (1 << 17) + 1000;  // tags have 17 bits
  for (int round = 0; round < kRounds; ++round) {
    tlb.Insert(7, Iova(0x1000), Page(static_cast<uint64_t>(round) * kPageSize));
    ASSERT_TRUE(tlb.Find(7, Iova(0x1000))) << round;
    tlb.InvalidateDomain(kDomain);
    ASSERT_FALSE(tlb.Find(7, Iova(0x1000))) << round;
    // Known again to the cache, but empty.
    tlb.Insert(7, Iova(0x555000), Page(0));
    ASSERT_FALSE(tlb.Find(7, Iova(0x1000))) << round;
  }
}

TEST(IotlbTest, DomainInvalidationSparesOthers) {
  for (const auto key : {Iotlb::Key::kDomain, Iotlb::Key::kSource}) {
    Iotlb tlb(64, key);
    tlb.Insert(7, Iova(0x1000), Page(0x5000));
    tlb.Insert(8, Iova(0x1000), Page(0x6000, 1, DomainId(8)));
    tlb.InvalidateDomain(kDomain);
    EXPECT_FALSE(tlb.Find(7, Iova(0x1000)));
    EXPECT_EQ(tlb.Find(8, Iova(0x1000))->page, PhysAddr(0x6000));
    tlb.InvalidateAll();
    EXPECT_FALSE(tlb.Find(8, Iova(0x1000)));
  }
}

}  // namespace
}  // namespace viommu
