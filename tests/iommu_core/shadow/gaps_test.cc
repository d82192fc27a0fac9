// What QEMU's shadow gets wrong or leaves open, each closed here (the numbers are those of the list
// in README.md), under every strategy that keeps a shadow.
#include <algorithm>
#include <string>

#include "gtest/gtest.h"
#include "tests/fakes/test_name.h"
#include "tests/iommu_core/shadow/test_guest.h"

namespace viommu {
namespace {

const SourceId kNic = MakeSourceId(0, 3, 0);
const SourceId kNicFunction1 = MakeSourceId(0, 3, 1);
const SourceId kDisk = MakeSourceId(0, 4, 0);
constexpr uint64_t kBuffers = 0x8000000;

class Gaps : public ::testing::TestWithParam<std::tuple<Strategy, int>> {
 protected:
  void SetUp() override {
    config_.host_page_shift = std::get<1>(GetParam());
    config_.verify = Verify::kFull;
    Start();
  }
  void Start() {
    session_ = MakeSession(guest_, std::get<0>(GetParam()), config_);
    for (const SourceId sid : {kNic, kNicFunction1, kDisk}) {
      ASSERT_TRUE(session_->AddDevice(sid, false).ok());
    }
  }
  void Attach(SourceId sid, PhysAddr table, int levels = 4, uint16_t did = 1) {
    guest_.SetContext(sid, vtd::ContextEntry::Make(table, levels, DomainId(did)));
    const SinkCompletion done = Send(*session_, {ContextDevice(sid), Dsi(did)});
    EXPECT_EQ(done.cost.shadow_mismatches, 0u);
  }
  // Sends and expects that the oracle agrees.
  SinkCompletion Sync(std::vector<vtd::RawDescriptor> raw) {
    const SinkCompletion done = Send(*session_, std::move(raw));
    EXPECT_EQ(done.cost.shadow_mismatches, 0u);
    EXPECT_EQ(session_->VerifyAll(), 0u);
    return done;
  }
  bool Reaches(SourceId sid, uint64_t iova, uint64_t guest_pa) {
    const LeafMapping page = session_->HostPageForTest(sid, Iova(iova));
    return page.access.any() && page.address == PhysAddr(guest_pa);
  }
  bool Blocked(SourceId sid, uint64_t iova) {
    return !session_->HostPageForTest(sid, Iova(iova)).access.any();
  }
  // From now on every store to a physical table finds these pages mapped as they are.
  void ExpectNeverMissing(SourceId sid, std::vector<uint64_t> iovas) {
    std::vector<LeafMapping> pages;
    for (const uint64_t iova : iovas) pages.push_back(session_->HostPageForTest(sid, Iova(iova)));
    for (const LeafMapping& page : pages) ASSERT_TRUE(page.access.any());
    session_->ObserveStoresForTest([this, sid, pages] {
      ++stores_;
      for (const LeafMapping& page : pages) {
        const LeafMapping now = session_->HostPageForTest(sid, page.iova);
        ASSERT_TRUE(now.address == page.address && now.access == page.access)
            << std::hex << page.iova.value();
      }
    });
  }

  TestGuest guest_;
  SessionConfig config_;
  std::unique_ptr<SessionImpl> session_;
  const PhysAddr table_ = guest_.NewPage();
  uint64_t stores_ = 0;
};

TEST_P(Gaps, AbsentEntryWithReservedBitsIsUnmapped) {  // 1
  guest_.Map(table_, 4, 0x5000, kBuffers);
  Attach(kNic, table_);
  ASSERT_TRUE(Reaches(kNic, 0x5000, kBuffers));
  guest_.Map(table_, 4, 0x5000, kBuffers, uint64_t{1} << 50);  // R = W = 0: reserved is not checked
  Sync({Psi(1, 0x5000)});
  EXPECT_TRUE(Blocked(kNic, 0x5000));
}

TEST_P(Gaps, PresentEntryWithReservedBitsIsUnmapped) {  // 2
  guest_.Map(table_, 4, 0x5000, kBuffers);
  Attach(kNic, table_);
  guest_.Map(table_, 4, 0x5000, kBuffers, kRw | uint64_t{1} << 50);
  Sync({Psi(1, 0x5000)});
  EXPECT_TRUE(Blocked(kNic, 0x5000));
  guest_.Map(table_, 4, 0x5000, kBuffers);
  Sync({Psi(1, 0x5000)});
  EXPECT_TRUE(Reaches(kNic, 0x5000, kBuffers));
}

TEST_P(Gaps, UnreadableTableMapsNothing) {  // 3
  guest_.Map(table_, 4, 0x5000, kBuffers);
  Attach(kNic, table_);
  guest_.Put(guest_.Slot(table_, 4, Iova(0x5000), 2), (uint64_t{1} << 44) | kRw);
  Sync({Psi(1, 0x5000, 9)});
  EXPECT_TRUE(Blocked(kNic, 0x5000));
  guest_.Put(guest_.ContextSlot(kNic), (uint64_t{1} << 44) | 1);  // and so does the top one
  Sync({ContextDevice(kNic)});
  EXPECT_TRUE(Blocked(kNic, 0x5000));
}

TEST_P(Gaps, MissingRootEntryBlocksTheDevice) {  // 4
  guest_.Map(table_, 4, 0x5000, kBuffers);
  Attach(kNic, table_);
  const PhysAddr root_slot = guest_.root();
  const uint64_t root_entry = guest_.Get(root_slot);
  guest_.Put(root_slot, 0);
  Sync({ContextDevice(kNic)});
  EXPECT_TRUE(Blocked(kNic, 0x5000));
  EXPECT_EQ(session_->stats().pinned_pages, 0u);
  guest_.Put(root_slot, root_entry);
  Sync({ContextDevice(kNic)});
  EXPECT_TRUE(Reaches(kNic, 0x5000, kBuffers));
}

TEST_P(Gaps, MalformedContextEntryBlocksTheDevice) {  // 4
  guest_.Map(table_, 4, 0x5000, kBuffers);
  const vtd::ContextEntry good = vtd::ContextEntry::Make(table_, 4, DomainId(1));
  std::vector<vtd::ContextEntry> bad(5, good);
  bad[0].lo |= 1 << 5;                         // reserved, 9.3
  bad[1].hi |= uint64_t{1} << 24;              // reserved
  bad[2].hi = (bad[2].hi & ~uint64_t{7}) | 5;  // AW
  bad[3].lo |= 3 << 2;                         // TT reserved
  bad[4].lo |= 1 << 2;                         // TT 1 without ECAP.DT
  for (const vtd::ContextEntry& entry : bad) {
    Attach(kNic, table_);
    ASSERT_TRUE(Reaches(kNic, 0x5000, kBuffers));
    guest_.SetContext(kNic, entry);
    Sync({ContextDevice(kNic)});
    EXPECT_TRUE(Blocked(kNic, 0x5000));
  }
}

TEST_P(Gaps, SuperpageReplacedByATableWithoutAFlushBetween) {  // 5
  guest_.Map(table_, 4, 0x40000000, 0x600000, kRw, 2);
  Attach(kNic, table_);
  // The same pages but for three: one moved, one read-only, one gone.
  const PhysAddr small = guest_.NewPage();
  for (uint64_t i = 0; i < 512; ++i) guest_.Put(small + 8 * i, (0x600000 + (i << 12)) | kRw);
  guest_.Put(small + 8 * 10, kBuffers | kRw);
  guest_.Put(small + 8 * 11, (0x600000 + (11 << 12)) | 1);
  guest_.Put(small + 8 * 12, 0);
  ExpectNeverMissing(kNic, {0x40000000, 0x40009000, 0x4000d000, 0x401ff000});
  guest_.Put(guest_.Slot(table_, 4, Iova(0x40000000), 2), vtd::SecondStagePte::Table(small).raw);
  Sync({Psi(1, 0x40000000)});  // one page of it is enough: type1 unmaps nothing less
  EXPECT_GT(stores_, 0u);
  EXPECT_TRUE(Reaches(kNic, 0x4000a000, kBuffers));
  EXPECT_FALSE(session_->HostPageForTest(kNic, Iova(0x4000b000)).access.write);
  EXPECT_TRUE(Blocked(kNic, 0x4000c000));
  EXPECT_TRUE(Reaches(kNic, 0x401ff000, 0x7ff000));
  EXPECT_EQ(session_->stats().pinned_pages, 511u);
}

TEST_P(Gaps, TableMergedIntoASuperpageKeepsItsPages) {
  for (uint64_t i = 0; i < 512; ++i) {
    guest_.Map(table_, 4, 0x40000000 + (i << 12), i == 7 ? kBuffers : 0x600000 + (i << 12));
  }
  Attach(kNic, table_);
  ExpectNeverMissing(kNic, {0x40000000, 0x40006000, 0x40008000, 0x401ff000});
  guest_.Map(table_, 4, 0x40000000, 0x600000, kRw, 2);
  const SinkCompletion done = Sync({Psi(1, 0x40000000, 9)});
  EXPECT_GT(stores_, 0u);
  EXPECT_EQ(done.cost.dma_unmaps, 1u);
  EXPECT_EQ(done.cost.dma_maps, 1u);
  EXPECT_TRUE(Reaches(kNic, 0x40007000, 0x607000));
}

TEST_P(Gaps, LowAddressBitsBelowTheMaskAreIgnored) {  // 6; VFIO on Linux sends 0x2e00000 with AM 15
  guest_.Map(table_, 4, 0x5000, kBuffers);
  Attach(kNic, table_);
  guest_.Map(table_, 4, 0x4000, kBuffers + kPageSize);
  Sync({Psi(1, 0x7000, 2)});  // covers 0x4000..0x7fff (6.5.2.3)
  EXPECT_TRUE(Reaches(kNic, 0x4000, kBuffers + kPageSize));
}

TEST_P(Gaps, AddressBitsAboveTheWidthAreIgnored) {  // 7
  Attach(kNic, table_);
  guest_.Map(table_, 4, 0x5000, kBuffers);
  Sync({Psi(1, (uint64_t{1} << 48) | 0x5000)});
  EXPECT_TRUE(Reaches(kNic, 0x5000, kBuffers));
}

TEST_P(Gaps, PsiBeyondTheWidthOfANarrowTableTouchesNothing) {
  guest_.Map(table_, 3, 0x5000, kBuffers);
  Attach(kNic, table_, 3);
  Sync({Psi(1, uint64_t{1} << 40), Psi(1, (uint64_t{1} << 39) - kPageSize, 18)});
  EXPECT_TRUE(Reaches(kNic, 0x5000, kBuffers));
}

TEST_P(Gaps, ChangedTranslationIsReplacedByOneStore) {
  guest_.Map(table_, 4, 0x4000, kBuffers);
  guest_.Map(table_, 4, 0x5000, kBuffers + kPageSize);
  guest_.Map(table_, 4, 0x6000, kBuffers + 2 * kPageSize);
  Attach(kNic, table_);
  ExpectNeverMissing(kNic, {0x4000, 0x6000});
  guest_.Map(table_, 4, 0x5000, kBuffers + 9 * kPageSize);
  const SinkCompletion done = Sync({Psi(1, 0x5000)});
  EXPECT_EQ(stores_, 1u);
  EXPECT_EQ(done.cost.ptes_changed, 1u);
  EXPECT_EQ(done.cost.dma_unmaps, 1u);
  EXPECT_EQ(done.cost.dma_maps, 1u);
  EXPECT_EQ(done.cost.iotlb_invalidations, 1u);
  EXPECT_TRUE(Reaches(kNic, 0x5000, kBuffers + 9 * kPageSize));
}

TEST_P(Gaps, PermissionsAreAndedAndFollowEveryLevel) {
  guest_.Map(table_, 4, 0x5000, kBuffers);
  Attach(kNic, table_);
  const PhysAddr upper = guest_.Slot(table_, 4, Iova(0x5000), 3);
  guest_.Put(upper, guest_.Get(upper) & ~uint64_t{2});
  Sync({Dsi(1)});
  EXPECT_EQ(session_->HostPageForTest(kNic, Iova(0x5000)).access, kReadOnly);
  guest_.Map(table_, 4, 0x5000, kBuffers, 2);  // write-only under read-only: nothing
  Sync({Psi(1, 0x5000)});
  EXPECT_TRUE(Blocked(kNic, 0x5000));
  guest_.Put(upper, guest_.Get(upper) | 2);
  Sync({Dsi(1)});
  EXPECT_EQ(session_->HostPageForTest(kNic, Iova(0x5000)).access, kWriteOnly);
}

TEST_P(Gaps, SeveralDevicesOfOneDomainFollowOneInvalidation) {
  Attach(kNic, table_);
  Attach(kDisk, table_);
  guest_.Map(table_, 4, 0x5000, kBuffers);
  Sync({Psi(1, 0x5000)});
  EXPECT_TRUE(Reaches(kNic, 0x5000, kBuffers));
  EXPECT_TRUE(Reaches(kDisk, 0x5000, kBuffers));
}

TEST_P(Gaps, DeviceMovedBetweenDomainsKeepsWhatBothMap) {
  const PhysAddr other = guest_.NewPage();
  guest_.Map(table_, 4, 0x5000, kBuffers);
  guest_.Map(table_, 4, 0x6000, kBuffers + kPageSize);
  guest_.Map(other, 4, 0x5000, kBuffers);
  guest_.Map(other, 4, 0x7000, kBuffers + 2 * kPageSize);
  Attach(kNic, table_);
  Attach(kDisk, table_);
  ExpectNeverMissing(kNic, {0x5000});
  Attach(kNic, other, 4, 2);
  EXPECT_GT(stores_, 0u);
  EXPECT_TRUE(Blocked(kNic, 0x6000));
  EXPECT_TRUE(Reaches(kNic, 0x7000, kBuffers + 2 * kPageSize));
  EXPECT_TRUE(Reaches(kDisk, 0x6000, kBuffers + kPageSize));
  EXPECT_TRUE(Blocked(kDisk, 0x7000));
}

TEST_P(Gaps, ContextInvalidationOfAnyGranularityMakesNoHole) {
  guest_.Map(table_, 4, 0x5000, kBuffers);
  Attach(kNic, table_);
  for (const auto& descriptor : {ContextGlobal(), ContextDomain(1), ContextDevice(kNic)}) {
    ExpectNeverMissing(kNic, {0x5000});
    const SinkCompletion done = Sync({descriptor});
    EXPECT_EQ(done.cost.dma_unmaps + done.cost.dma_maps, 0u);
  }
  EXPECT_EQ(stores_, 0u);
}

TEST_P(Gaps, DeviceSelectiveContextInvalidationMasksFunctions) {  // 6.5.2.1 FM
  guest_.Map(table_, 4, 0x5000, kBuffers);
  const vtd::ContextEntry entry = vtd::ContextEntry::Make(table_, 4, DomainId(1));
  for (const SourceId sid : {kNic, kNicFunction1, kDisk}) guest_.SetContext(sid, entry);
  Send(*session_, {ContextDevice(kNic, 0)});
  EXPECT_TRUE(Reaches(kNic, 0x5000, kBuffers));
  EXPECT_TRUE(Blocked(kNicFunction1, 0x5000));
  Send(*session_, {ContextDevice(kNic, 1)});
  EXPECT_TRUE(Reaches(kNicFunction1, 0x5000, kBuffers));
  EXPECT_TRUE(Blocked(kDisk, 0x5000));
}

TEST_P(Gaps, DomainZeroIsADomainLikeAnother) {
  guest_.Map(table_, 4, 0x5000, kBuffers);
  Attach(kNic, table_, 4, 0);
  guest_.Unmap(table_, 4, 0x5000);
  Sync({Psi(0, 0x5000)});
  EXPECT_TRUE(Blocked(kNic, 0x5000));
}

TEST_P(Gaps, LinuxAttachInvalidatesDomainZeroFirst) {
  guest_.Map(table_, 4, 0x5000, kBuffers);
  guest_.SetContext(kNic, vtd::ContextEntry::Make(table_, 4, DomainId(7)));
  Sync({ContextDomain(0), Dsi(7)});
  EXPECT_TRUE(Reaches(kNic, 0x5000, kBuffers));
}

TEST_P(Gaps, NarrowedWidthUnmapsWhatLiesBeyond) {
  guest_.Map(table_, 4, uint64_t{1} << 40, kBuffers);
  guest_.Map(table_, 4, 0x5000, kBuffers);
  Attach(kNic, table_);
  ASSERT_TRUE(Reaches(kNic, uint64_t{1} << 40, kBuffers));
  const PhysAddr narrow = guest_.NewPage();
  guest_.Map(narrow, 3, 0x5000, kBuffers);
  ExpectNeverMissing(kNic, {0x5000});
  Attach(kNic, narrow, 3, 2);
  EXPECT_TRUE(Blocked(kNic, uint64_t{1} << 40));
  EXPECT_TRUE(Reaches(kNic, 0x5000, kBuffers));
}

TEST_P(Gaps, PassThroughDeviceReachesAllOfRam) {
  guest_.SetContext(kNic, vtd::ContextEntry::Make(PhysAddr(0), 4, DomainId(3),
                                                  vtd::TranslationType::kPassThrough));
  const SinkCompletion done = Sync({ContextDevice(kNic), Dsi(3)});
  EXPECT_EQ(done.cost.dma_maps, 1u);
  EXPECT_TRUE(Reaches(kNic, 0, 0));
  EXPECT_TRUE(Reaches(kNic, guest_.ram_bytes() - kPageSize, guest_.ram_bytes() - kPageSize));
  EXPECT_TRUE(Blocked(kNic, guest_.ram_bytes()));
}

TEST_P(Gaps, TranslationOffBlocksAndOnRestores) {
  guest_.Map(table_, 4, 0x5000, kBuffers);
  Attach(kNic, table_);
  ASSERT_TRUE(session_->UpdateRegisters({guest_.root(), false}).ok());
  EXPECT_TRUE(Blocked(kNic, 0x5000));
  EXPECT_EQ(session_->stats().pinned_pages, 0u);
  ASSERT_TRUE(session_->UpdateRegisters({guest_.root(), true}).ok());
  EXPECT_TRUE(Reaches(kNic, 0x5000, kBuffers));
}

TEST_P(Gaps, RemovedDeviceReleasesWhatItAlonePinned) {
  guest_.Map(table_, 4, 0x5000, kBuffers);
  Attach(kNic, table_);
  const uint64_t before = session_->stats().shadow_table_pages;
  ASSERT_GT(before, 0u);
  ASSERT_TRUE(session_->RemoveDevice(kNic).ok());
  const SessionStats after = session_->stats();
  EXPECT_EQ(after.pinned_pages, 0u);
  EXPECT_EQ(after.shadow_table_pages, 0u);
  EXPECT_EQ(after.bookkeeping_bytes, 0u);
  EXPECT_EQ(session_->RemoveDevice(kNic).code(), absl::StatusCode::kNotFound);
}

TEST_P(Gaps, BadDescriptorStopsTheBatchAtItsPlace) {
  guest_.Map(table_, 4, 0x5000, kBuffers);
  guest_.Map(table_, 4, 0x6000, kBuffers);
  guest_.SetContext(kNic, vtd::ContextEntry::Make(table_, 4, DomainId(1)));
  const SinkCompletion done =
      Send(*session_, {ContextDevice(kNic), vtd::RawDescriptor{0xf, 0}, ContextGlobal()});
  EXPECT_EQ(done.consumed, 1u);
  EXPECT_EQ(done.error, vtd::Iqei::kBadType);
  EXPECT_TRUE(Reaches(kNic, 0x5000, kBuffers));
}

// A device leaves a shared table in which a page of its was just unmapped for one that has the
// page: found by the random histories at step 130,494. The page must not go while the device still
// stands on the shadow that it leaves (VT-d 6.5.2.1: one invalidation covers the devices of several
// domains).
TEST_P(Gaps, AMovedDeviceLeavesBeforeItsOldShadowChanges) {
  const PhysAddr left = guest_.NewPage();
  const PhysAddr joined = guest_.NewPage();
  for (const PhysAddr table : {left, joined}) guest_.Map(table, 4, 0x3000, kBuffers);
  Attach(kNic, left, 4, 1);
  Attach(kDisk, left, 4, 1);
  ExpectNeverMissing(kDisk, {0x3000});
  guest_.Unmap(left, 4, 0x3000);
  guest_.SetContext(kDisk, vtd::ContextEntry::Make(joined, 4, DomainId(2)));
  Sync({ContextDomain(1), ContextDomain(2), GlobalIotlb()});
  EXPECT_TRUE(Blocked(kNic, 0x3000));
  EXPECT_TRUE(Reaches(kDisk, 0x3000, kBuffers));
  EXPECT_GT(stores_, 0);
}

INSTANTIATE_TEST_SUITE_P(
    Strategies, Gaps,
    ::testing::Combine(::testing::Values(Strategy::kWalk, Strategy::kWalkShared,
                                         Strategy::kSnapshot, Strategy::kDirtyLog),
                       ::testing::Values(12, 21)),
    [](const auto& p) {
      return TestName(StrategyName(std::get<0>(p.param))) + "HostPageShift" +
             std::to_string(std::get<1>(p.param));
    });

}  // namespace
}  // namespace viommu
