// Limits that are hit, reported and recovered from; tables that are built to exhaust; an oracle
// that notices.
#include <algorithm>
#include <atomic>
#include <thread>

#include "gtest/gtest.h"
#include "tests/fakes/test_name.h"
#include "tests/iommu_core/shadow/test_guest.h"

namespace viommu {
namespace {

const SourceId kNic = MakeSourceId(0, 3, 0);
const SourceId kDisk = MakeSourceId(0, 4, 0);
constexpr uint64_t kBuffers = 0x8000000;

class Limits : public ::testing::TestWithParam<Strategy> {
 protected:
  std::unique_ptr<SessionImpl> Start(SessionConfig config) {
    config.verify = Verify::kFull;
    guest_.SetContext(kNic, vtd::ContextEntry::Make(table_, 4, DomainId(1)));
    auto session = MakeSession(guest_, GetParam(), config);
    EXPECT_TRUE(session->AddDevice(kNic, false).ok());
    return session;
  }
  void MapPages(uint64_t count, uint64_t first = 0) {
    for (uint64_t i = first; i < first + count; ++i) {
      guest_.Map(table_, 4, i << 12, kBuffers + (i << 12));
    }
  }

  TestGuest guest_;
  const PhysAddr table_ = guest_.NewPage();
};

TEST_P(Limits, EntryLimitIsReportedAndTheRefusedMapsComeOnceThereIsRoom) {
  SessionConfig config;
  config.dma_entry_limit = 8;
  auto session = Start(config);
  MapPages(10);
  SinkCompletion done = Send(*session, {Psi(1, 0, 4)});
  EXPECT_EQ(done.cost.dma_maps, 10u);
  EXPECT_EQ(done.cost.dma_map_failures, 2u);
  EXPECT_EQ(done.refused_pages, 2u);
  EXPECT_EQ(done.pinned_pages, 8u);
  EXPECT_EQ(done.cost.shadow_mismatches, 0u);
  EXPECT_EQ(session->stats().refused_pages, 2u);
  EXPECT_EQ(session->stats().live_pages, 8u);
  EXPECT_FALSE(session->HostPageForTest(kNic, Iova(9 << 12)).access.any());

  // An invalidation elsewhere in the domain tries again; one call tells that the limit still holds.
  done = Send(*session, {Psi(1, 0x40000000)});
  EXPECT_EQ(done.cost.dma_maps, 1u);
  EXPECT_EQ(done.cost.dma_map_failures, 1u);
  EXPECT_EQ(done.refused_pages, 2u);

  // Room for one: the guest does not map the refused pages again.
  guest_.Unmap(table_, 4, 0);
  done = Send(*session, {Psi(1, 0)});
  EXPECT_EQ(done.refused_pages, 1u);
  EXPECT_EQ(session->stats().live_pages, 8u);
  guest_.Unmap(table_, 4, 1 << 12);
  done = Send(*session, {Psi(1, 1 << 12)});
  EXPECT_EQ(done.refused_pages, 0u);
  EXPECT_EQ(session->HostPageForTest(kNic, Iova(9 << 12)).address, PhysAddr(kBuffers + 0x9000));
  EXPECT_EQ(session->VerifyAll(), 0u);
}

TEST_P(Limits, PinLimitIsReportedAndRecoveredFrom) {
  SessionConfig config;
  config.pin_limit_bytes = 600 * kPageSize;
  auto session = Start(config);
  guest_.Map(table_, 4, 0x40000000, 0x600000, kRw, 2);
  guest_.Map(table_, 4, 0x40200000, 0x800000, kRw, 2);
  SinkCompletion done = Send(*session, {Dsi(1)});
  EXPECT_EQ(done.cost.dma_map_failures, 1u);
  EXPECT_EQ(done.refused_pages, 512u);
  EXPECT_EQ(done.pinned_pages, 512u);
  guest_.Unmap(table_, 4, 0x40000000, 2);
  done = Send(*session, {Psi(1, 0x40000000, 9)});
  EXPECT_EQ(done.refused_pages, 0u);
  EXPECT_EQ(session->HostPageForTest(kNic, Iova(0x40200000)).address, PhysAddr(0x800000));
  EXPECT_EQ(session->stats().pinned_pages_max, 512u);
}

TEST_P(Limits, RefusedPageThatTheGuestUnmapsIsForgotten) {
  SessionConfig config;
  config.dma_entry_limit = 2;
  auto session = Start(config);
  MapPages(3);
  EXPECT_EQ(Send(*session, {Dsi(1)}).refused_pages, 1u);
  guest_.Unmap(table_, 4, 2 << 12);
  EXPECT_EQ(Send(*session, {Psi(1, 2 << 12)}).refused_pages, 0u);
}

TEST_P(Limits, ChangedEntryAtTheLimitKeepsItsPlace) {
  SessionConfig config;
  config.dma_entry_limit = 2;
  auto session = Start(config);
  MapPages(2);
  Send(*session, {Dsi(1)});
  guest_.Map(table_, 4, 0, kBuffers + 0x100000);
  const SinkCompletion done = Send(*session, {Psi(1, 0)});
  EXPECT_EQ(done.cost.dma_map_failures, 0u);
  EXPECT_EQ(done.refused_pages, 0u);
}

TEST_P(Limits, TablePageCapRefusesAndRecovers) {
  SessionConfig config;
  config.max_shadow_table_pages = 5;  // root, two above, two of leaves
  auto session = Start(config);
  guest_.Map(table_, 4, 0x000000, kBuffers);
  guest_.Map(table_, 4, 0x200000, kBuffers);
  for (uint64_t i = 0; i < 3; ++i) guest_.Map(table_, 4, 0x400000 + (i << 13), kBuffers);
  guest_.Map(table_, 4, 0x40000000, kBuffers);  // a table above of its own
  SinkCompletion done = Send(*session, {Dsi(1)});
  EXPECT_LE(session->stats().shadow_table_pages, 5u);
  EXPECT_EQ(session->stats().live_pages, 2u);
  EXPECT_EQ(done.refused_pages, 4u);
  EXPECT_EQ(done.cost.dma_map_failures, 4u);
  EXPECT_EQ(done.cost.shadow_mismatches, 0u);
  EXPECT_EQ(session->VerifyAll(), 0u);  // what is missing is known to be

  // A limit that still holds is asked once; so is one for a page more in a table without a copy.
  done = Send(*session, {Psi(1, 0x80000000)});
  EXPECT_EQ(done.cost.dma_map_failures, 1u);
  EXPECT_EQ(done.refused_pages, 4u);
  guest_.Map(table_, 4, 0x401000, kBuffers);
  EXPECT_EQ(Send(*session, {Psi(1, 0x401000)}).refused_pages, 5u);
  guest_.Unmap(table_, 4, 0x401000);
  EXPECT_EQ(Send(*session, {Psi(1, 0x401000)}).refused_pages, 4u);

  // The guest keeps the table that it empties; its place is taken at once.
  guest_.Unmap(table_, 4, 0x000000);
  done = Send(*session, {Psi(1, 0)});
  EXPECT_EQ(done.refused_pages, 1u);
  EXPECT_EQ(session->HostPageForTest(kNic, Iova(0x404000)).address, PhysAddr(kBuffers));
  EXPECT_EQ(session->VerifyAll(), 0u);
  // It changes while nobody looks, and all is as it says once there is room for everything.
  guest_.Map(table_, 4, 0x001000, kBuffers + 0x3000);
  EXPECT_EQ(Send(*session, {Psi(1, 0x001000)}).refused_pages, 2u);
  guest_.Unmap(table_, 4, 0x200000);
  for (uint64_t i = 0; i < 3; ++i) guest_.Unmap(table_, 4, 0x400000 + (i << 13));
  Send(*session, {Dsi(1)});  // comes by what is refused before it comes by the room
  done = Send(*session, {Dsi(1)});
  EXPECT_EQ(done.refused_pages, 1u);  // either, since one of them takes a table above its own
  EXPECT_NE(session->HostPageForTest(kNic, Iova(0x001000)).access.any(),
            session->HostPageForTest(kNic, Iova(0x40000000)).access.any());
  EXPECT_EQ(session->VerifyAll(), 0u);
  EXPECT_EQ(session->stats().live_pages, 1u);
  // The guest takes its tables away: nothing is refused any more.
  for (uint64_t i = 0; i < 3; ++i) guest_.Unmap(table_, 4, i << 21, 2);
  Send(*session, {Dsi(1)});
  done = Send(*session, {Dsi(1)});
  EXPECT_EQ(done.refused_pages, 0u);
  EXPECT_EQ(session->HostPageForTest(kNic, Iova(0x40000000)).address, PhysAddr(kBuffers));
}

TEST_P(Limits, TablesThatTheGuestEmptiedGiveTheirRoomToWhatWasRefused) {
  SessionConfig config;
  config.max_shadow_table_pages = 5;  // root, two above, two of leaves
  auto session = Start(config);
  for (const uint64_t at : {0x000000, 0x200000, 0x400000, 0x600000}) {
    guest_.Map(table_, 4, at, kBuffers + at);
  }
  EXPECT_EQ(Send(*session, {Dsi(1)}).refused_pages, 2u);
  // It keeps the tables, and flushes by the domain only: the empty ones come first in each pass.
  guest_.Unmap(table_, 4, 0x000000);
  guest_.Unmap(table_, 4, 0x200000);
  Send(*session, {Dsi(1)});
  const SinkCompletion done = Send(*session, {Dsi(1)});
  EXPECT_EQ(done.refused_pages, 0u);
  EXPECT_EQ(done.cost.shadow_mismatches, 0u);
  EXPECT_EQ(session->HostPageForTest(kNic, Iova(0x600000)).address, PhysAddr(kBuffers + 0x600000));
  // A page in one of the empty tables finds no room, and says so.
  guest_.Map(table_, 4, 0x001000, kBuffers);
  EXPECT_EQ(Send(*session, {Dsi(1)}).refused_pages, 1u);
  guest_.Unmap(table_, 4, 0x600000);
  Send(*session, {Dsi(1)});
  EXPECT_EQ(Send(*session, {Dsi(1)}).refused_pages, 0u);
  EXPECT_EQ(session->VerifyAll(), 0u);
  EXPECT_EQ(session->stats().live_pages, 2u);
}

TEST_P(Limits, DevicesAndDomainsAreBounded) {
  SessionConfig config;
  config.max_devices = 2;
  config.max_domains = 1;
  auto session = Start(config);
  MapPages(1);
  Send(*session, {Dsi(1)});
  guest_.SetContext(kDisk, vtd::ContextEntry::Make(guest_.NewPage(), 4, DomainId(2)));
  EXPECT_TRUE(session->AddDevice(kDisk, false).ok());
  EXPECT_EQ(session->stats().shadows_refused, 1u);
  EXPECT_FALSE(session->HostPageForTest(kDisk, Iova(0)).access.any());
  EXPECT_EQ(session->AddDevice(kDisk, false).code(), absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(session->AddDevice(MakeSourceId(0, 5, 0), false).code(),
            absl::StatusCode::kResourceExhausted);
  // Once there is room the next context-cache invalidation brings the device in.
  ASSERT_TRUE(session->RemoveDevice(kNic).ok());
  Send(*session, {ContextDevice(kDisk)});
  EXPECT_EQ(session->stats().domains, 1u);
}

TEST_P(Limits, FanOutOverAFewPagesEndsInBoundedWorkAndACountedRefusal) {
  SessionConfig config;
  config.max_work_per_invalidation = 100000;
  config.max_shadow_table_pages = 4096;
  auto session = Start(config);
  MapPages(4);
  Send(*session, {Dsi(1)});
  // Four pages that describe 2^36 leaves: every slot of a level points to the one page below.
  PhysAddr below = guest_.NewPage();
  for (uint64_t i = 0; i < 512; ++i) guest_.Put(below + 8 * i, kBuffers | kRw);
  for (int level = 2; level <= 3; ++level) {
    const PhysAddr page = guest_.NewPage();
    for (uint64_t i = 0; i < 512; ++i) {
      guest_.Put(page + 8 * i, vtd::SecondStagePte::Table(below).raw);
    }
    below = page;
  }
  for (uint64_t i = 0; i < 512; ++i) {
    guest_.Put(table_ + 8 * i, vtd::SecondStagePte::Table(below).raw);
  }
  const SinkCompletion done = Send(*session, {Dsi(1)});
  EXPECT_EQ(done.consumed, 1u);
  // The bound, and the root and context entries.
  EXPECT_LE(done.cost.bytes_read / 8, config.max_work_per_invalidation + 4);
  EXPECT_EQ(session->stats().work_refused, 1u);
  EXPECT_LE(session->stats().shadow_table_pages, 4096u);
  // What was not looked at is not mapped, the old pages included.
  const IovaRange far = MakeRange(Iova(uint64_t{1} << 47), kPageSize);
  EXPECT_FALSE(session->HostPageForTest(kNic, far.first).access.any());
  EXPECT_EQ(session->VerifyAll(), 0u);
  // The guest mends its table: everything is as it says.
  for (uint64_t i = 0; i < 512; ++i) guest_.Put(table_ + 8 * i, 0);
  MapPages(4);
  EXPECT_EQ(Send(*session, {Dsi(1)}).cost.shadow_mismatches, 0u);
  EXPECT_EQ(session->stats().live_pages, 4u);
  EXPECT_EQ(session->stats().pinned_pages, 4u);
}

TEST_P(Limits, StaleMappingBeyondTheBoundIsGone) {
  SessionConfig config;
  config.max_work_per_invalidation = 6000;
  auto session = Start(config);
  MapPages(2, /*first=*/0);
  guest_.Map(table_, 4, uint64_t{1} << 46, kBuffers + 0x5000);
  Send(*session, {Dsi(1)});
  ASSERT_TRUE(session->HostPageForTest(kNic, Iova(uint64_t{1} << 46)).access.any());
  // Enough tables before it that the walk does not get there, while it is unmapped.
  for (uint64_t i = 1; i < 8; ++i) guest_.Map(table_, 4, i << 30, kBuffers);
  guest_.Unmap(table_, 4, uint64_t{1} << 46);
  Send(*session, {Dsi(1)});
  EXPECT_GE(session->stats().work_refused, 1u);
  EXPECT_FALSE(session->HostPageForTest(kNic, Iova(uint64_t{1} << 46)).access.any());
  // Page-selective work is small, and it brings a page back that the bound had kept out.
  guest_.Map(table_, 4, uint64_t{1} << 46, kBuffers + 0x6000);
  Send(*session, {Psi(1, uint64_t{1} << 46)});
  EXPECT_EQ(session->HostPageForTest(kNic, Iova(uint64_t{1} << 46)).address,
            PhysAddr(kBuffers + 0x6000));
}

TEST_P(Limits, TableThatPointsToItselfIsBounded) {
  SessionConfig config;
  config.max_work_per_invalidation = 200000;
  config.max_shadow_table_pages = 2048;
  auto session = Start(config);
  for (uint64_t i = 0; i < 512; ++i) {
    guest_.Put(table_ + 8 * i, vtd::SecondStagePte::Table(table_).raw);
  }
  Send(*session, {Dsi(1)});
  EXPECT_EQ(session->stats().work_refused, 1u);
  EXPECT_LE(session->stats().shadow_table_pages, 2048u);
  EXPECT_EQ(session->VerifyAll(), 0u);
}

TEST_P(Limits, HugeLeavesOverSmallHostPagesAreBounded) {
  SessionConfig config;
  config.max_work_per_invalidation = 1 << 20;
  auto session = Start(config);
  const PhysAddr top = guest_.NewPage();
  for (uint64_t i = 0; i < 512; ++i) guest_.Put(top + 8 * i, (i << 30) | kRw | kLarge);
  guest_.Put(table_, vtd::SecondStagePte::Table(top).raw);
  Send(*session, {Dsi(1)});
  EXPECT_EQ(session->stats().work_refused, 1u);
  EXPECT_LE(session->stats().live_pages, uint64_t{1} << 20);
}

TEST_P(Limits, LongWalksYield) {
  SessionConfig config;
  int yields = 0;
  config.yield = [&] { ++yields; };
  auto session = Start(config);
  MapPages(32768);
  yields = 0;
  Send(*session, {Dsi(1)});
  EXPECT_GE(yields, 3);
}

TEST_P(Limits, OracleNoticesACorruptedShadow) {
  auto session = Start({});
  MapPages(6);
  EXPECT_EQ(Send(*session, {Dsi(1)}).cost.shadow_mismatches, 0u);
  session->CorruptShadowForTest(kNic, Iova(3 << 12));
  EXPECT_EQ(session->VerifyAll(), 1u);
  const SinkCompletion done = Send(*session, {}, TableClaim::kSettled);
  EXPECT_EQ(done.cost.shadow_mismatches, 1u);
  EXPECT_EQ(done.cost.verified_pages, 6u);
  EXPECT_EQ(session->stats().cost.shadow_mismatches, 1u);
}

TEST_P(Limits, SampledOracleStillSeesEverySmallInvalidation) {
  guest_.SetContext(kNic, vtd::ContextEntry::Make(table_, 4, DomainId(1)));
  auto session = MakeSession(guest_, GetParam(), {});
  ASSERT_TRUE(session->AddDevice(kNic, false).ok());
  MapPages(4);
  EXPECT_EQ(Send(*session, {Psi(1, 0, 2)}).cost.verified_pages, 4u);
  session->CorruptShadowForTest(kNic, Iova(1 << 12));
  // Nothing changed in the guest's tables, so no strategy mends it; the oracle reports it.
  EXPECT_EQ(Send(*session, {Psi(1, 0, 2)}).cost.shadow_mismatches, 1u);
}

TEST_P(Limits, GuestThatWritesDuringTheSyncEndsRight) {
  guest_.SetContext(kNic, vtd::ContextEntry::Make(table_, 4, DomainId(1)));
  SessionConfig config;
  config.verify = Verify::kOff;
  auto session = MakeSession(guest_, GetParam(), config);
  ASSERT_TRUE(session->AddDevice(kNic, false).ok());
  MapPages(2048);
  std::atomic<bool> stop{false};
  std::thread writer([&] {
    uint64_t seed = 1;
    while (!stop.load(std::memory_order_relaxed)) {
      seed = seed * 6364136223846793005u + 1442695040888963407u;
      const uint64_t page = (seed >> 33) % 2048;
      guest_.Map(table_, 4, page << 12, kBuffers + (((seed >> 20) % 1024) << 12), (seed >> 50) % 4);
    }
  });
  for (int i = 0; i < 200; ++i) Send(*session, {i % 2 == 0 ? Dsi(1) : Psi(1, 0, 8)});
  stop = true;
  writer.join();
  Send(*session, {Dsi(1)});
  EXPECT_EQ(session->VerifyAll(), 0u);
}

INSTANTIATE_TEST_SUITE_P(Strategies, Limits,
                         ::testing::Values(Strategy::kWalk, Strategy::kWalkShared,
                                           Strategy::kSnapshot, Strategy::kDirtyLog),
                         [](const auto& p) { return TestName(StrategyName(p.param)); });

TEST(SessionConfigChecks, BadOnesAreRefused) {
  TestGuest guest;
  SessionConfig config;
  config.host_page_shift = 13;
  EXPECT_EQ(SessionImpl::Create(config, guest.memory()).status().code(),
            absl::StatusCode::kInvalidArgument);
  config = {};
  config.strategy = Strategy::kNested;  // all of RAM is pinned, so its size must be known
  EXPECT_EQ(SessionImpl::Create(config, guest.memory()).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_FALSE(ParseStrategy("fast").ok());
  EXPECT_FALSE(ParseVerify("some").ok());
  for (const Strategy s : {Strategy::kWalk, Strategy::kWalkShared, Strategy::kSnapshot,
                           Strategy::kDirtyLog, Strategy::kNested}) {
    EXPECT_EQ(*ParseStrategy(StrategyName(s)), s);
  }
}

}  // namespace
}  // namespace viommu
