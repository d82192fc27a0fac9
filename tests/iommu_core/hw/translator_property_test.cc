// Random tables, changes and invalidations: once what changed is invalidated as 6.5.2 asks, the
// translator says what the reference walk says. The IOTLB has two sets, so it evicts all the time.
#include <random>
#include <vector>

#include "gtest/gtest.h"
#include "tests/iommu_core/hw/translator_fixture.h"

namespace viommu {
namespace {

class TranslatorPropertyTest : public TranslatorTest, public ::testing::WithParamInterface<int> {
 protected:
  TranslatorPropertyTest() : random_(static_cast<uint64_t>(GetParam())) {
    options.iotlb_entries = 16;
    Make();
    for (int domain = 0; domain < kDomains; ++domain) {
      const int levels = domain % 2 == 0 ? 4 : 3;
      for (int i = 0; i < 60; ++i) ChangeEntry(domain, levels);
      PutContext(Device(domain), vtd::ContextEntry::Make(TableOf(domain, levels, 0), levels,
                                                         DomainId(static_cast<uint16_t>(domain))));
    }
    InvalidateAll();
  }

  static constexpr int kDomains = 3;
  static constexpr uint64_t kTablesPerLevel = 3;
  // Addresses whose index is 0..3 at every level.
  static constexpr uint64_t kIndices = 4;

  uint64_t Pick(uint64_t n) { return random_() % n; }
  SourceId Device(int domain) { return SourceId(static_cast<uint16_t>(0x18 + 8 * domain)); }
  int LevelsOf(int domain) { return domain % 2 == 0 ? 4 : 3; }
  PhysAddr TableOf(int domain, int level, uint64_t which) {
    return PhysAddr(0x1000000 + 0x100000 * static_cast<uint64_t>(domain) +
                    kPageSize * (static_cast<uint64_t>(level) * kTablesPerLevel + which));
  }
  Iova RandomIova(int levels) {
    uint64_t iova = Pick(kPageSize);
    for (int level = 1; level <= levels; ++level) iova |= Pick(kIndices) << vtd::LevelShift(level);
    return Iova(iova);
  }

  uint64_t RandomEntry(int domain, int level) {
    uint64_t raw = Pick(8) == 0 ? Pick(4) : 3;
    if (level == 1 || Pick(4) == 0) {
      const uint64_t page = Pick(64) == 0 ? 0xfee00000 : Pick(0x7fff) << 21;
      raw |=
          (page & ~(vtd::LevelSize(level) - 1)) | (level > 1 ? vtd::SecondStagePte::Ps::kMask : 0);
    } else {
      raw |= (Pick(16) == 0 ? kNotRam : TableOf(domain, level - 1, Pick(kTablesPerLevel))).value();
    }
    if (Pick(16) == 0) raw |= uint64_t{1} << (Pick(2) == 0 ? 50 : 62);
    return raw;
  }

  // Writes one random entry of the domain's tables.
  void ChangeEntry(int domain, int levels) {
    const int level = 1 + static_cast<int>(Pick(static_cast<uint64_t>(levels)));
    const uint64_t which = level == levels ? 0 : Pick(kTablesPerLevel);
    Store(TableOf(domain, level, which) + 8 * Pick(kIndices), RandomEntry(domain, level));
  }

  void Compare(int domain) {
    const Walker walker(memory, options.rules);
    for (int i = 0; i < 24; ++i) {
      const Iova iova = RandomIova(Pick(16) == 0 ? 4 : LevelsOf(domain));
      const Access wanted = Pick(2) == 0 ? kReadOnly : kWriteOnly;
      const Translation expected = walker.Translate(kRoot, Device(domain), iova, wanted);
      const TranslateOutcome got = translator->Translate(Device(domain), iova, wanted);
      ASSERT_EQ(got.reason, expected.reason) << std::hex << iova.value();
      if (expected.reason != vtd::FaultReason::kNone) continue;
      ASSERT_EQ(got.address, expected.address);
      ASSERT_EQ(got.page_size, expected.page_size);
      ASSERT_EQ(got.access, expected.access);
      ASSERT_EQ(got.domain_id, expected.domain_id);
    }
  }

  std::mt19937_64 random_;
};

TEST_P(TranslatorPropertyTest, EqualsTheReferenceWalk) {
  for (int round = 0; round < 3000; ++round) {
    SCOPED_TRACE(::testing::Message() << "seed " << GetParam() << " round " << round);
    const int domain = static_cast<int>(Pick(kDomains));
    const DomainId did(static_cast<uint16_t>(domain));
    switch (Pick(4)) {
      case 0: {  // one leaf, invalidated by its page with IH
        // Tables are shared between branches, so the leaf shows at many addresses: all are named.
        const uint64_t which = Pick(kTablesPerLevel);
        const uint64_t index = Pick(kIndices);
        Store(TableOf(domain, 1, which) + 8 * index, RandomEntry(domain, 1));
        for (uint64_t i = 0; i < kIndices * kIndices * kIndices; ++i) {
          const uint64_t iova = (index << 12) | (i % 4) << 21 | (i / 4 % 4) << 30 | (i / 16) << 39;
          InvalidatePages(iova, 0, /*leaf_hint=*/true, did);
        }
        break;
      }
      case 1:  // any entries, domain-selective
        for (uint64_t i = 0; i <= Pick(4); ++i) ChangeEntry(domain, LevelsOf(domain));
        InvalidateDomain(did);
        break;
      case 2:  // any entries, global
        ChangeEntry(domain, LevelsOf(domain));
        Invalidate(vtd::IotlbInvalidate{});
        break;
      default:  // the device moves to another table of its domain
        PutContext(Device(domain),
                   vtd::ContextEntry::Make(TableOf(domain, LevelsOf(domain), Pick(2)),
                                           LevelsOf(domain), did));
        Invalidate(vtd::ContextCacheInvalidate{.granularity = vtd::Granularity::kPageOrDevice,
                                               .domain_id = did,
                                               .source_id = Device(domain),
                                               .function_mask = 0});
        InvalidateDomain(did);
    }
    for (int other = 0; other < kDomains; ++other) {
      Compare(other);
      if (HasFatalFailure()) return;
    }
  }
  EXPECT_GT(translator->stats().iotlb_hits, 1000u) << "the caches were used";
}

INSTANTIATE_TEST_SUITE_P(Seeds, TranslatorPropertyTest, ::testing::Range(1, 5));

}  // namespace
}  // namespace viommu
