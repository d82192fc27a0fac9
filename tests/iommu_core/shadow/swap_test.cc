// Devices that exchange their tables within one invalidation, while entries change in both.
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "tests/fakes/test_name.h"
#include "tests/iommu_core/shadow/test_guest.h"

namespace viommu {
namespace {

constexpr int kLevels = 4;
constexpr uint64_t kBuffers = 0x8000000;
const SourceId kNic = MakeSourceId(0, 3, 0);
const SourceId kDisk = MakeSourceId(0, 4, 0);
const SourceId kCard = MakeSourceId(0, 5, 0);

class Swap : public ::testing::TestWithParam<Strategy> {
 protected:
  Swap() {
    for (uint64_t i = 0; i < 600; ++i) {
      if (i != 17) guest_.Map(a_, kLevels, i << 12, kBuffers + (i << 12));
      if (i != 21) guest_.Map(b_, kLevels, i << 12, kBuffers + (i << 12));
    }
  }
  void Attach(SourceId sid, PhysAddr table, uint16_t did) {
    guest_.SetContext(sid, vtd::ContextEntry::Make(table, kLevels, DomainId(did)));
  }
  // The nic goes from a to b, the disk from b to a. Page 21 was in a only and now is in b only: the
  // nic always had it. Page 17 the other way round: the disk always had it.
  void Exchange() {
    guest_.Map(b_, kLevels, 21 << 12, kBuffers + (21 << 12));
    guest_.Unmap(a_, kLevels, 21 << 12);
    guest_.Map(a_, kLevels, 17 << 12, kBuffers + (17 << 12));
    guest_.Unmap(b_, kLevels, 17 << 12);
    Attach(kNic, b_, 2);
    Attach(kDisk, a_, 1);
  }
  static bool Has(const SessionImpl& session, SourceId sid, uint64_t page) {
    const LeafMapping found = session.HostPageForTest(sid, Iova(page << 12));
    return found.access == kReadWrite && found.address == PhysAddr(kBuffers + (page << 12));
  }

  TestGuest guest_;
  const PhysAddr a_ = guest_.NewPage();
  const PhysAddr b_ = guest_.NewPage();
};

TEST_P(Swap, NoPageThatADeviceKeepsGoesMissing) {
  Attach(kNic, a_, 1);
  Attach(kDisk, b_, 2);
  Attach(kCard, a_, 1);  // stays
  auto session = MakeSession(guest_, GetParam());
  for (const SourceId sid : {kNic, kDisk, kCard}) {
    ASSERT_TRUE(session->AddDevice(sid, false).ok());
  }
  ASSERT_TRUE(Has(*session, kNic, 21));
  ASSERT_TRUE(Has(*session, kDisk, 17));
  Exchange();
  uint64_t stores = 0, missing = 0;
  session->ObserveStoresForTest([&] {
    ++stores;
    missing += !Has(*session, kNic, 21) || !Has(*session, kDisk, 17) || !Has(*session, kCard, 5);
  });
  Send(*session, {ContextGlobal(), GlobalIotlb()});
  EXPECT_GT(stores, 0u);
  EXPECT_EQ(missing, 0u);
  EXPECT_FALSE(Has(*session, kNic, 17));
  EXPECT_FALSE(Has(*session, kDisk, 21));
  EXPECT_FALSE(Has(*session, kCard, 21));
  EXPECT_TRUE(Has(*session, kCard, 17));
  EXPECT_EQ(session->VerifyAll(), 0u);
  const SessionStats stats = session->stats();
  // One shadow a table again, each page pinned once for it.
  const bool shared = GetParam() != Strategy::kWalk;
  EXPECT_EQ(stats.domains, shared ? 2u : 3u);
  EXPECT_EQ(stats.pinned_pages, (shared ? 2u : 3u) * 599u);
}

TEST_P(Swap, WithoutRoomForAnotherShadowItEndsRightAllTheSame) {
  Attach(kNic, a_, 1);
  Attach(kDisk, b_, 2);
  for (const bool few_pins : {false, true}) {
    SessionConfig config;
    if (few_pins) {
      config.pin_limit_bytes = 1300 * kPageSize;
    } else {
      config.max_domains = 2;
    }
    auto session = MakeSession(guest_, GetParam(), config);
    ASSERT_TRUE(session->AddDevice(kNic, false).ok());
    ASSERT_TRUE(session->AddDevice(kDisk, false).ok());
    Attach(kNic, b_, 2);
    Attach(kDisk, a_, 1);
    Send(*session, {ContextGlobal(), GlobalIotlb()});
    EXPECT_EQ(session->VerifyAll(), 0u);
    EXPECT_EQ(session->stats().domains, 2u);
    EXPECT_EQ(session->stats().pinned_pages, 2u * 599u);
    EXPECT_EQ(session->stats().refused_pages, 0u);
    Attach(kNic, a_, 1);
    Attach(kDisk, b_, 2);
  }
}

INSTANTIATE_TEST_SUITE_P(Strategies, Swap,
                         ::testing::Values(Strategy::kWalk, Strategy::kWalkShared,
                                           Strategy::kSnapshot, Strategy::kDirtyLog),
                         [](const auto& p) { return TestName(StrategyName(p.param)); });

}  // namespace
}  // namespace viommu
