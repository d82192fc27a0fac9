// Counts that can be checked by hand.
#include "gtest/gtest.h"
#include "tests/iommu_core/shadow/test_guest.h"

namespace viommu {
namespace {

const SourceId kNic = MakeSourceId(0, 3, 0);
const SourceId kDisk = MakeSourceId(0, 4, 0);
constexpr uint64_t kBuffers = 0x8000000;

class Counts : public ::testing::TestWithParam<int> {
 protected:
  int levels() const { return GetParam(); }
  void Attach(SourceId sid, uint16_t did = 1) {
    guest_.SetContext(sid, vtd::ContextEntry::Make(table_, levels(), DomainId(did)));
  }
  TestGuest guest_;
  const PhysAddr table_ = guest_.NewPage();
};

TEST_P(Counts, OnePagePsiUnderWalkReadsTwoPlusLevelsEntriesPerDevice) {
  Attach(kNic);
  Attach(kDisk);
  auto session = MakeSession(guest_, Strategy::kWalk);
  ASSERT_TRUE(session->AddDevice(kNic, false).ok());
  ASSERT_TRUE(session->AddDevice(kDisk, false).ok());
  guest_.Map(table_, levels(), 0x5000, kBuffers);
  const SinkCompletion done = Send(*session, {Psi(1, 0x5000)});
  const auto n = static_cast<uint64_t>(levels());
  EXPECT_EQ(done.cost.descriptors, 1u);
  EXPECT_EQ(done.cost.ptes_read, 2 * (2 + n));
  EXPECT_EQ(done.cost.table_pages_read, 2 * (2 + n));
  EXPECT_EQ(done.cost.bytes_read, 2 * (2 * 16 + n * 8));
  EXPECT_EQ(done.cost.leaves_visited, 2u);
  EXPECT_EQ(done.cost.ptes_changed, 2u);
  EXPECT_EQ(done.cost.dma_maps, 2u);  // one container per device
  EXPECT_EQ(done.cost.dma_unmaps, 0u);
  EXPECT_EQ(done.cost.pages_pinned, 2u);
  EXPECT_EQ(done.cost.iotlb_invalidations, 0u);  // the physical unit caches nothing absent
  EXPECT_EQ(done.pinned_pages, 2u);

  guest_.Unmap(table_, levels(), 0x5000);
  const SinkCompletion undone = Send(*session, {Psi(1, 0x5000)});
  EXPECT_EQ(undone.cost.ptes_read, 2 * (2 + n));
  EXPECT_EQ(undone.cost.leaves_visited, 0u);
  EXPECT_EQ(undone.cost.dma_unmaps, 2u);
  EXPECT_EQ(undone.cost.iotlb_invalidations, 2u);
  EXPECT_EQ(undone.pinned_pages, 0u);
}

TEST_P(Counts, DeviceOfAnotherDomainCostsItsContextOnly) {
  Attach(kNic, 1);
  Attach(kDisk, 2);
  auto session = MakeSession(guest_, Strategy::kWalk);
  ASSERT_TRUE(session->AddDevice(kNic, false).ok());
  ASSERT_TRUE(session->AddDevice(kDisk, false).ok());
  const SinkCompletion done = Send(*session, {Psi(2, 0x5000)});
  // Nothing is mapped: the walk of the one device ends at the top entry.
  EXPECT_EQ(done.cost.ptes_read, 2u + 2u + 1u);
}

TEST_P(Counts, DsiWithNothingChangedReadsEverySlotOfEveryTable) {
  Attach(kNic);
  // 3 leaf tables in one table above, and so on up.
  for (uint64_t i = 0; i < 1200; ++i) guest_.Map(table_, levels(), i << 12, kBuffers + (i << 12));
  auto session = MakeSession(guest_, Strategy::kWalk);
  ASSERT_TRUE(session->AddDevice(kNic, false).ok());
  const SinkCompletion done = Send(*session, {Dsi(1)});
  const uint64_t tables = 3 + static_cast<uint64_t>(levels()) - 1;
  EXPECT_EQ(done.cost.ptes_read, 2 + 512 * tables);
  EXPECT_EQ(done.cost.table_pages_read, 2 + tables);
  EXPECT_EQ(done.cost.bytes_read, 2 * 16 + 8 * 512 * tables);
  EXPECT_EQ(done.cost.leaves_visited, 1200u);
  EXPECT_EQ(done.cost.ptes_changed, 0u);
  EXPECT_EQ(done.cost.dma_maps + done.cost.dma_unmaps + done.cost.iotlb_invalidations, 0u);
}

TEST_P(Counts, WalkSharedWalksOnceForAllDevicesOfADomain) {
  Attach(kNic);
  Attach(kDisk);
  auto session = MakeSession(guest_, Strategy::kWalkShared);
  ASSERT_TRUE(session->AddDevice(kNic, false).ok());
  ASSERT_TRUE(session->AddDevice(kDisk, false).ok());
  guest_.Map(table_, levels(), 0x5000, kBuffers);
  const SinkCompletion done = Send(*session, {Psi(1, 0x5000)});
  EXPECT_EQ(done.cost.ptes_read, static_cast<uint64_t>(levels()));
  EXPECT_EQ(done.cost.dma_maps, 1u);
  EXPECT_EQ(session->stats().domains, 1u);
  EXPECT_EQ(session->stats().live_pages, 1u);
}

TEST_P(Counts, SnapshotReadsUnchangedTablesInBulkAndLooksAtNoEntry) {
  Attach(kNic);
  for (uint64_t i = 0; i < 1200; ++i) guest_.Map(table_, levels(), i << 12, kBuffers + (i << 12));
  auto session = MakeSession(guest_, Strategy::kSnapshot);
  ASSERT_TRUE(session->AddDevice(kNic, false).ok());
  const uint64_t tables = 3 + static_cast<uint64_t>(levels()) - 1;
  SinkCompletion done = Send(*session, {Dsi(1)});
  EXPECT_EQ(done.cost.ptes_read, 0u);
  EXPECT_EQ(done.cost.bytes_read, tables * kPageSize);
  EXPECT_EQ(done.cost.table_pages_read, tables);
  guest_.Map(table_, levels(), 7 << 12, kBuffers);
  guest_.Unmap(table_, levels(), 1199 << 12);
  done = Send(*session, {Dsi(1)});
  EXPECT_EQ(done.cost.ptes_read, 2u);
  EXPECT_EQ(done.cost.ptes_changed, 2u);
  EXPECT_EQ(done.cost.dma_maps, 1u);
  EXPECT_EQ(done.cost.dma_unmaps, 2u);
  EXPECT_EQ(done.cost.shadow_mismatches, 0u);
}

TEST_P(Counts, EntriesTakenInBulkCountAsTheyDoOneByOne) {
  for (const Strategy strategy : {Strategy::kSnapshot, Strategy::kDirtyLog}) {
    for (const bool in_bulk : {true, false}) {
      TestGuest guest;
      const PhysAddr table = guest.NewPage();
      guest.SetContext(kNic, vtd::ContextEntry::Make(table, levels(), DomainId(1)));
      // One table and a bit; every eighth entry is not present.
      for (uint64_t i = 0; i < 600; ++i) {
        guest.Map(table, levels(), i << 12, kBuffers + (i << 12), i % 8 == 7 ? 0 : kRw);
      }
      SessionConfig config;
      config.dma_entry_limit = in_bulk ? 65535 : 700;  // too near to take a table without asking
      auto session = MakeSession(guest, strategy, config);
      ASSERT_TRUE(session->AddDevice(kNic, false).ok());
      SyncCost cost = session->stats().cost;
      const uint64_t tables_above = static_cast<uint64_t>(levels()) - 1;
      EXPECT_EQ(cost.ptes_read, 2 + tables_above + 1 + 600);  // root and context; two leaf tables
      EXPECT_EQ(cost.leaves_visited, 525u);
      EXPECT_EQ(cost.ptes_changed, 525u);
      EXPECT_EQ(cost.dma_maps, 525u);
      EXPECT_EQ(cost.pages_pinned, 525u);
      EXPECT_EQ(session->stats().pinned_pages_max, 525u);

      // In one line: a map, an unmap, a remap, a remap and an ignored bit; the first comes before
      // the unmap.
      guest.Map(table, levels(), 7 << 12, kBuffers);
      guest.Unmap(table, levels(), 8 << 12);
      guest.Map(table, levels(), 9 << 12, kBuffers);
      guest.Map(table, levels(), 10 << 12, kBuffers);
      guest.Map(table, levels(), 11 << 12, kBuffers + (11 << 12), kRw | uint64_t{1} << 55);
      cost = Send(*session, {Dsi(1)}).cost;
      EXPECT_EQ(cost.ptes_read, 5u);
      EXPECT_EQ(cost.leaves_visited, 4u);
      EXPECT_EQ(cost.ptes_changed, 4u);
      EXPECT_EQ(cost.dma_maps, 3u);
      EXPECT_EQ(cost.dma_unmaps, 3u);
      EXPECT_EQ(cost.iotlb_invalidations, 3u);
      EXPECT_EQ(session->stats().pinned_pages, 525u);
      EXPECT_EQ(session->stats().pinned_pages_max, 526u);
      EXPECT_EQ(session->VerifyAll(), 0u);

      // The last entries of a table go: its physical table, too.
      const uint64_t table_pages = session->stats().shadow_table_pages;
      for (uint64_t i = 512; i < 600; ++i) guest.Unmap(table, levels(), i << 12);
      cost = Send(*session, {Dsi(1)}).cost;
      EXPECT_EQ(cost.dma_unmaps, 77u);
      EXPECT_EQ(session->stats().shadow_table_pages, table_pages - 1);
      EXPECT_EQ(session->VerifyAll(), 0u);
    }
  }
}

TEST_P(Counts, FreedSubtreeIsDroppedWithoutReadingIt) {
  Attach(kNic);
  for (uint64_t i = 0; i < 1024; ++i) guest_.Map(table_, levels(), i << 12, kBuffers + (i << 12));
  auto session = MakeSession(guest_, Strategy::kSnapshot);
  ASSERT_TRUE(session->AddDevice(kNic, false).ok());
  guest_.Unmap(table_, levels(), 0, /*level=*/2);
  const SinkCompletion done = Send(*session, {Psi(1, 0, 9)});
  EXPECT_EQ(done.cost.ptes_read, static_cast<uint64_t>(levels()) - 1);
  EXPECT_EQ(done.cost.dma_unmaps, 1u);  // one call for the 512 mappings
  EXPECT_EQ(done.cost.pages_unpinned, 512u);
  EXPECT_EQ(session->stats().live_pages, 512u);
  EXPECT_EQ(session->VerifyAll(), 0u);
}

TEST_P(Counts, LeafHintSkipsTheUpperLevels) {
  Attach(kNic);
  guest_.Map(table_, levels(), 0x5000, kBuffers);
  auto session = MakeSession(guest_, Strategy::kSnapshot);
  ASSERT_TRUE(session->AddDevice(kNic, false).ok());
  guest_.Unmap(table_, levels(), 0x5000);
  EXPECT_EQ(Send(*session, {Psi(1, 0x5000, 0, /*ih=*/true)}).cost.ptes_read, 1u);
  EXPECT_EQ(session->VerifyAll(), 0u);
}

TEST_P(Counts, DirtyLogVisitsOnlyTheLinesThatWereWritten) {
  Attach(kNic);
  for (uint64_t i = 0; i < 1200; ++i) guest_.Map(table_, levels(), i << 12, kBuffers + (i << 12));
  auto session = MakeSession(guest_, Strategy::kDirtyLog);
  ASSERT_TRUE(session->AddDevice(kNic, false).ok());
  EXPECT_TRUE(session->stats().dirty_log_active);
  SinkCompletion done = Send(*session, {Dsi(1)});
  EXPECT_EQ(done.cost.ptes_read + done.cost.bytes_read + done.cost.table_pages_read, 0u);
  guest_.Map(table_, levels(), 7 << 12, kBuffers);  // one line of one table
  guest_.Map(table_, levels(), 6 << 12, kBuffers);  // the same line
  guest_.Unmap(table_, levels(), 1199 << 12);       // another table
  done = Send(*session, {Dsi(1)});
  EXPECT_EQ(done.cost.table_pages_read, 2u);
  EXPECT_EQ(done.cost.bytes_read, 2u * 64u);
  EXPECT_EQ(done.cost.ptes_read, 3u);
  EXPECT_EQ(session->VerifyAll(), 0u);
}

TEST_P(Counts, GuestThatDoesNotMarkHarmsOnlyItsOwnShadow) {
  Attach(kNic);
  guest_.Map(table_, levels(), 0x5000, kBuffers);
  SessionConfig config;
  config.verify = Verify::kOff;
  auto session = MakeSession(guest_, Strategy::kDirtyLog, config);
  ASSERT_TRUE(session->AddDevice(kNic, false).ok());
  const PhysAddr slot = guest_.Slot(table_, levels(), Iova(0x5000), 1);
  guest_.memory().Write64(slot, 0);  // no mark
  Send(*session, {Dsi(1)});
  // Stale, but within its own memory and still pinned; a page-selective invalidation reads the
  // table.
  EXPECT_TRUE(session->HostPageForTest(kNic, Iova(0x5000)).access.any());
  EXPECT_EQ(session->stats().pinned_pages, 1u);
  Send(*session, {Psi(1, 0x5000)});
  EXPECT_FALSE(session->HostPageForTest(kNic, Iova(0x5000)).access.any());
}

// A mark that is missing is a fault only where the guest claims that all marks stand: a vCPU may
// have stored an entry while another one's invalidation is carried out, and mark it before its own.
TEST_P(Counts, OracleDemandsOfTheLogWhatTheGuestClaims) {
  Attach(kNic);
  guest_.Map(table_, levels(), 0x5000, kBuffers);
  SessionConfig config;
  config.verify = Verify::kFull;
  auto session = MakeSession(guest_, Strategy::kDirtyLog, config);
  ASSERT_TRUE(session->AddDevice(kNic, false).ok());
  const PhysAddr slot = guest_.Slot(table_, levels(), Iova(0x5000), 1);
  guest_.memory().Write64(slot, 0);  // no mark yet
  const auto mismatches = [&](vtd::RawDescriptor d, TableClaim claim) {
    return Send(*session, {d}, claim).cost.shadow_mismatches;
  };
  EXPECT_EQ(mismatches(Dsi(1), TableClaim::kNone), 0u);
  EXPECT_EQ(mismatches(Dsi(1), TableClaim::kQuiet), 1u);
  // What reads the tables is held against them whatever was claimed.
  EXPECT_EQ(mismatches(Psi(1, 0x5000), TableClaim::kNone), 0u);
  session->CorruptShadowForTest(kNic, Iova(0x5000));
  EXPECT_EQ(mismatches(Dsi(1), TableClaim::kQuiet), 0u);
  guest_.Put(slot, kBuffers | kRw);
  EXPECT_EQ(mismatches(Dsi(1), TableClaim::kQuiet), 0u);
  EXPECT_EQ(session->VerifyAll(), 0u);
}

TEST_P(Counts, DirtyLogWithoutALogWorksAsSnapshotAndSaysSo) {
  Attach(kNic);
  guest_.Map(table_, levels(), 0x5000, kBuffers);
  SessionConfig config;
  config.strategy = Strategy::kDirtyLog;
  config.guest_ram_bytes = guest_.ram_bytes();
  auto session = SessionImpl::Create(config, guest_.memory());
  ASSERT_TRUE(session.ok());
  ASSERT_TRUE((*session)->UpdateRegisters({guest_.root(), true}).ok());
  ASSERT_TRUE((*session)->AddDevice(kNic, false).ok());
  EXPECT_FALSE((*session)->stats().dirty_log_active);
  EXPECT_EQ(Send(**session, {Dsi(1)}).cost.bytes_read, static_cast<uint64_t>(levels()) * kPageSize);
}

INSTANTIATE_TEST_SUITE_P(Levels, Counts, ::testing::Values(3, 4));

TEST(HostPages, GuestSuperpageIsOneMapCallWhateverTheHostsGranule) {
  for (const Strategy strategy : {Strategy::kWalk, Strategy::kSnapshot}) {
    for (const int shift : {12, 21, 30}) {
      TestGuest guest(uint64_t{2} << 30);
      const PhysAddr table = guest.NewPage();
      guest.SetContext(kNic, vtd::ContextEntry::Make(table, 4, DomainId(1)));
      SessionConfig config;
      config.host_page_shift = shift;
      auto session = MakeSession(guest, strategy, config);
      ASSERT_TRUE(session->AddDevice(kNic, false).ok());
      guest.Map(table, 4, 0x40000000, 0x600000, kRw, 2);
      const SinkCompletion done = Send(*session, {Psi(1, 0x40000000, 9)});
      EXPECT_EQ(done.cost.dma_maps, 1u);
      EXPECT_EQ(done.cost.pages_pinned, 512u);
      EXPECT_EQ(done.cost.ptes_changed, shift == 12 ? 512u : 1u);
      EXPECT_EQ(done.cost.shadow_mismatches, 0u);
      EXPECT_EQ(session->VerifyAll(), 0u);
    }
  }
}

TEST(Bookkeeping, SnapshotTakesAtMostTwentyBytesPerMappedPage) {
  TestGuest guest(uint64_t{1} << 30);
  const PhysAddr table = guest.NewPage();
  guest.SetContext(kNic, vtd::ContextEntry::Make(table, 4, DomainId(1)));
  for (uint64_t i = 0; i < 65536; ++i) guest.Map(table, 4, i << 12, kBuffers + (i << 12));
  SessionConfig config;
  config.dma_entry_limit = 65536;
  auto session = MakeSession(guest, Strategy::kSnapshot, config);
  ASSERT_TRUE(session->AddDevice(kNic, false).ok());
  const SessionStats stats = session->stats();
  ASSERT_EQ(stats.live_pages, 65536u);
  EXPECT_LE(stats.bookkeeping_bytes + stats.shadow_table_pages * kPageSize, 20u * 65536u);
}

}  // namespace
}  // namespace viommu
