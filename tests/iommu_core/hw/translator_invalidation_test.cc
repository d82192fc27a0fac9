// What each invalidation scope empties, and what it leaves (VT-d 6.5.2).
#include "gtest/gtest.h"
#include "tests/iommu_core/hw/translator_fixture.h"

namespace viommu {
namespace {

class TranslatorInvalidationTest : public TranslatorTest {
 protected:
  static constexpr uint64_t kOld = 0x400000, kNew = 0x600000;

  // Caches the page, moves it in the tables.
  void WarmAndMove(uint64_t page) {
    MapPage(page, kOld);
    EXPECT_EQ(Reach(page * kPageSize), kOld);
    MapPage(page, kNew);
    EXPECT_EQ(Reach(page * kPageSize), kOld) << "an IOTLB serves what it holds";
  }
};

TEST_F(TranslatorInvalidationTest, PageSelectiveTakesOnePageOfOneDomain) {
  WarmAndMove(5);
  WarmAndMove(6);
  InvalidatePages(5 * kPageSize, 0, false, DomainId(8));
  EXPECT_EQ(Reach(5 * kPageSize), kOld);
  InvalidatePages(5 * kPageSize, 0);
  EXPECT_EQ(Reach(5 * kPageSize), kNew);
  EXPECT_EQ(Reach(6 * kPageSize), kOld);
}

// 6.5.2.3: the low AM bits of the page number are masked.
TEST_F(TranslatorInvalidationTest, AddressMaskCoversAnAlignedBlock) {
  for (uint64_t page = 7; page <= 12; ++page) WarmAndMove(page);
  InvalidatePages(10 * kPageSize, 2);  // [8, 12)
  EXPECT_EQ(Reach(7 * kPageSize), kOld);
  for (uint64_t page = 8; page < 12; ++page) EXPECT_EQ(Reach(page * kPageSize), kNew);
  EXPECT_EQ(Reach(12 * kPageSize), kOld);
}

TEST_F(TranslatorInvalidationTest, AddressBitsAboveMgawAreIgnored) {
  WarmAndMove(5);
  InvalidatePages((uint64_t{1} << 52) | 5 * kPageSize, 0);
  EXPECT_EQ(Reach(5 * kPageSize), kNew);
}

// A mask of more pages than the IOTLB has sets is looked for set by set.
TEST_F(TranslatorInvalidationTest, LargestMask) {
  WarmAndMove(5);
  InvalidatePages(uint64_t{1} << 30, 18);
  EXPECT_EQ(Reach(5 * kPageSize), kOld);
  InvalidatePages(0, 18);
  EXPECT_EQ(Reach(5 * kPageSize), kNew);
}

TEST_F(TranslatorInvalidationTest, DomainAndGlobal) {
  const SourceId other_device(0x0020);
  PutContext(other_device, vtd::ContextEntry::Make(kTop, 4, DomainId(8)));
  WarmAndMove(5);
  MapPage(5, kOld);
  EXPECT_EQ(Reach(5 * kPageSize, other_device), kOld);
  MapPage(5, kNew);
  InvalidateDomain(DomainId(8));
  EXPECT_EQ(Reach(5 * kPageSize, other_device), kNew);
  EXPECT_EQ(Reach(5 * kPageSize), kOld);
  InvalidateDomain();
  EXPECT_EQ(Reach(5 * kPageSize), kNew);
  MapPage(5, kOld);
  Invalidate(vtd::IotlbInvalidate{});
  EXPECT_EQ(Reach(5 * kPageSize), kOld);
  EXPECT_EQ(Reach(5 * kPageSize, other_device), kOld);
}

// A page-selective invalidation inside a large page takes all of it.
TEST_F(TranslatorInvalidationTest, LargePages) {
  for (const int level : {2, 3}) {
    SCOPED_TRACE(level);
    const PhysAddr slot = (level == 2 ? kLevel2 : kLevel3) + 8;
    const uint64_t base = vtd::LevelSize(level);
    Store(slot, vtd::SecondStagePte::Leaf(PhysAddr(0), level, kReadWrite).raw);
    const TranslateOutcome out = Read(base + 0x12345);
    EXPECT_EQ(out.page_size, base);
    EXPECT_EQ(out.address, PhysAddr(0x12345));
    EXPECT_TRUE(Read(base + base / 2).iotlb_hit) << "one entry for the whole page";
    Store(slot, vtd::SecondStagePte::Leaf(PhysAddr(0x40000000), level, kReadWrite).raw);
    InvalidatePages(2 * base, 0);
    EXPECT_TRUE(Read(base).iotlb_hit) << "a neighbour's invalidation leaves it";
    InvalidatePages(base + base - kPageSize, 0);
    EXPECT_EQ(Reach(base + 0x10), 0x40000010u);
  }
}

// 6.2.4, 6.5.2.3: IH says that only leaves changed, so the paging-structure caches stay.
TEST_F(TranslatorInvalidationTest, LeafHintKeepsPagingStructureCaches) {
  const PhysAddr other(0x20000);
  Store(other + 40, vtd::SecondStagePte::Leaf(PhysAddr(kNew), 1, kReadWrite).raw);
  EXPECT_EQ(Reach(0x5000), kOld);
  Store(kLevel2, vtd::SecondStagePte::Table(other).raw);
  InvalidatePages(0x5000, 0, /*leaf_hint=*/true);
  const uint64_t reads = translator->stats().table_reads;
  EXPECT_EQ(Reach(0x5000), kOld);
  EXPECT_EQ(translator->stats().table_reads - reads, 1u) << "only the leaf is read";
  InvalidatePages(0x5000, 0, /*leaf_hint=*/false);
  EXPECT_EQ(Reach(0x5000), kNew);
}

TEST_F(TranslatorInvalidationTest, StaleTablePointerNeverMakesAFault) {
  EXPECT_EQ(Reach(0x5000), kOld);
  const PhysAddr other(0x20000);
  Store(other + 48, vtd::SecondStagePte::Leaf(PhysAddr(kNew), 1, kReadWrite).raw);
  Store(kLevel2, vtd::SecondStagePte::Table(other).raw);
  EXPECT_EQ(Reach(0x6000), kNew);
}

TEST_F(TranslatorInvalidationTest, AbsentMappingsAreNotCached) {
  EXPECT_EQ(Reach(0x9000), 0u);
  MapPage(9, kNew);
  EXPECT_EQ(Reach(0x9000), kNew);
}

// 6.5.2.1: by domain, by device, and the three function masks.
TEST_F(TranslatorInvalidationTest, ContextCacheScopes) {
  const SourceId functions[] = {SourceId(0x0018), SourceId(0x001a), SourceId(0x001c),
                                SourceId(0x0020)};
  const auto warm = [&] {
    for (const SourceId sid : functions) {
      PutContext(sid, vtd::ContextEntry::Make(kTop, 4, kDomain));
    }
    InvalidateAll();
    for (const SourceId sid : functions) EXPECT_NE(Reach(0x5000, sid), 0u);
    for (const SourceId sid : functions) PutContext(sid, {});
  };
  // Which of the functions' entries are gone.
  const auto gone = [&] {
    uint32_t mask = 0;
    for (size_t i = 0; i < 4; ++i) {
      if (Reach(0x5000, functions[i]) == 0) mask |= 1u << i;
    }
    return mask;
  };
  vtd::ContextCacheInvalidate d;
  d.granularity = vtd::Granularity::kPageOrDevice;
  d.source_id = functions[0];
  const uint32_t expected[] = {0b0001, 0b0101, 0b0111, 0b0111};
  for (int fm = 0; fm < 4; ++fm) {
    SCOPED_TRACE(fm);
    warm();
    EXPECT_EQ(gone(), 0u);
    d.function_mask = static_cast<uint8_t>(fm);
    Invalidate(d);
    EXPECT_EQ(gone(), expected[fm]);
  }
  warm();
  d.granularity = vtd::Granularity::kDomain;
  d.domain_id = DomainId(8);
  Invalidate(d);
  EXPECT_EQ(gone(), 0u);
  d.domain_id = kDomain;
  Invalidate(d);
  EXPECT_EQ(gone(), 0b1111u);
  warm();
  Invalidate(vtd::ContextCacheInvalidate{});
  EXPECT_EQ(gone(), 0b1111u);
}

// 11.4.4 and CAP.ESRTPS: with it SRTP empties the caches, without it software has to.
TEST_F(TranslatorInvalidationTest, SettingTheRootTable) {
  for (const bool esrtps : {true, false}) {
    SCOPED_TRACE(esrtps);
    options.rules.caps.cap = vtd::cap::Esrtps::Set(options.rules.caps.cap, esrtps);
    MapPage(5, kOld);
    Make();
    WarmAndMove(5);
    Registers({kRoot, true});
    EXPECT_EQ(Reach(5 * kPageSize), esrtps ? kNew : kOld);
    InvalidateAll();
    EXPECT_EQ(Reach(5 * kPageSize), kNew);
  }
}

TEST_F(TranslatorInvalidationTest, OtherDescriptorsAreAccepted) {
  WarmAndMove(5);
  Invalidate(vtd::DeviceTlbInvalidate{});
  Invalidate(vtd::InterruptEntryInvalidate{});
  Invalidate(vtd::InvalidationWait{});
  EXPECT_EQ(Reach(5 * kPageSize), kOld);
}

TEST_F(TranslatorInvalidationTest, CountsByGranularity) {
  Invalidate(vtd::IotlbInvalidate{});
  InvalidateDomain();
  InvalidatePages(0x5000, 0);
  InvalidatePages(0x5000, 3);
  const TranslatorStats& stats = translator->stats();
  EXPECT_EQ(stats.invalidations[1], 1u);
  EXPECT_EQ(stats.invalidations[2], 1u);
  EXPECT_EQ(stats.invalidations[3], 2u);
  Reach(0x5000);
  Reach(0x5000);
  EXPECT_EQ(stats.iotlb_misses, 1u);
  EXPECT_EQ(stats.iotlb_hits, 1u);
  EXPECT_EQ(stats.table_reads, 4u + 4u) << "root, context (8 bytes each half) and four levels";
}

}  // namespace
}  // namespace viommu
