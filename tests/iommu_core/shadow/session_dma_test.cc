// Device accesses: data, faults, staleness, device-TLBs.
#include <algorithm>
#include <array>

#include "gtest/gtest.h"
#include "tests/fakes/test_name.h"
#include "tests/iommu_core/shadow/test_guest.h"

namespace viommu {
namespace {

using vtd::FaultReason;

const SourceId kNic = MakeSourceId(0, 3, 0);
constexpr uint64_t kBuffers = 0x8000000;

class SessionDma : public ::testing::TestWithParam<Strategy> {
 protected:
  void Start(SessionConfig config = {}, bool device_tlb = false) {
    guest_.SetContext(
        kNic, vtd::ContextEntry::Make(table_, 4, DomainId(1),
                                      device_tlb ? vtd::TranslationType::kWithDeviceTlb
                                                 : vtd::TranslationType::kUntranslatedOnly));
    if (device_tlb) config.guest_caps.ecap |= vtd::ecap::Dt::Make(1);
    session_ = MakeSession(guest_, GetParam(), config);
    ASSERT_NE(session_, nullptr);
    ASSERT_TRUE(session_->AddDevice(kNic, device_tlb).ok());
    Send(*session_, {ContextGlobal(), GlobalIotlb()});
  }
  void Map(uint64_t iova, uint64_t guest_pa, uint64_t bits = kRw) {
    guest_.Map(table_, 4, iova, guest_pa, bits);
    Send(*session_, {Psi(1, iova)});
  }
  bool Touch(uint64_t iova, bool write = false) {
    return session_->Dma(kNic, Iova(iova), write, {}, /*probe=*/true).reason == FaultReason::kNone;
  }
  SinkCompletion TouchAnd(uint64_t iova, std::vector<vtd::RawDescriptor> raw) {
    const std::array<DeviceTouch, 1> touches = {DeviceTouch{kNic, Iova(iova), false}};
    return session_->Apply(raw, touches, TableClaim::kQuiet);
  }

  TestGuest guest_;
  const PhysAddr table_ = guest_.NewPage();
  std::unique_ptr<SessionImpl> session_;
};

TEST_P(SessionDma, MovesDataAcrossPagesThatDoNotAdjoin) {
  Start();
  Map(0x5000, kBuffers + 0x3000);
  Map(0x6000, kBuffers + 0x1000);
  std::vector<std::byte> data(10000);
  for (size_t i = 0; i < data.size(); ++i) data[i] = std::byte(i * 7);
  const DmaResult wrote = session_->Dma(kNic, Iova(0x5800), true, data, false);
  EXPECT_EQ(wrote.reason, FaultReason::kWriteDenied);
  EXPECT_EQ(wrote.bytes_moved, 0x1800u);  // 0x7000 is not mapped: it ends at the page boundary
  Map(0x7000, kBuffers + 0x9000);
  EXPECT_EQ(session_->Dma(kNic, Iova(0x5800), true, data, false).bytes_moved, 10000u);
  std::vector<std::byte> there(2048);
  ASSERT_TRUE(guest_.memory().ReadBytes(PhysAddr(kBuffers + 0x3800), there));
  EXPECT_TRUE(std::equal(there.begin(), there.end(), data.begin()));
  std::vector<std::byte> back(10000);
  const DmaResult read = session_->Dma(kNic, Iova(0x5800), false, back, false);
  EXPECT_EQ(read.bytes_moved, 10000u);
  EXPECT_EQ(back, data);
  EXPECT_FALSE(read.stale);
}

TEST_P(SessionDma, BlockedAccessIsReportedAsTheGuestsUnitWould) {
  Start();
  Map(0x5000, kBuffers, 1);
  std::array<std::byte, 8> data{};
  EXPECT_EQ(session_->Dma(kNic, Iova(0x5000), true, data, false).reason, FaultReason::kWriteDenied);
  EXPECT_NE(session_->Dma(kNic, Iova(0x9000), false, data, false).reason, FaultReason::kNone);
  EXPECT_NE(session_->Dma(kNic, Iova(uint64_t{1} << 50), false, data, false).reason,
            FaultReason::kNone);
  // A present entry with a reserved bit is a hole in the shadow and 0xC to the guest.
  guest_.Map(table_, 4, 0x5000, kBuffers, kRw | uint64_t{1} << 50);
  Send(*session_, {});
  session_->TakeFaults();
  Send(*session_, {Psi(1, 0x5000)});
  EXPECT_NE(session_->Dma(kNic, Iova(0x5000), false, data, false).reason, FaultReason::kNone);
  const auto faults = session_->TakeFaults();
  ASSERT_EQ(faults.size(), 1u);
  EXPECT_EQ(faults[0].reason, FaultReason::kPteReserved);
  EXPECT_EQ(faults[0].page, Iova(0x5000));
  EXPECT_TRUE(faults[0].read);
  EXPECT_EQ(session_->stats().faults[0xc], 1u);
}

TEST_P(SessionDma, FaultsComeWithTheNextCompletionOnce) {
  Start();
  std::array<std::byte, 8> data{};
  session_->Dma(kNic, Iova(0x9000), false, data, false);
  session_->Dma(kNic, Iova(uint64_t{1} << 50), true, data, false);
  const SinkCompletion done = Send(*session_, {Psi(1, 0)});
  ASSERT_EQ(done.faults.size(), 2u);
  EXPECT_EQ(done.faults[0].reason, FaultReason::kReadDenied);
  EXPECT_EQ(done.faults[1].reason, FaultReason::kAddressBeyondWidth);
  EXPECT_TRUE(Send(*session_, {Psi(1, 0)}).faults.empty());
  EXPECT_TRUE(session_->TakeFaults().empty());
}

TEST_P(SessionDma, FaultProcessingDisabledKeepsQualifiedFaultsQuiet) {  // 7.1.3
  Start();
  auto entry = vtd::ContextEntry::Make(table_, 4, DomainId(1));
  entry.lo |= vtd::ContextEntry::Fpd::Make(1);
  guest_.SetContext(kNic, entry);
  Send(*session_, {ContextDevice(kNic), Dsi(1)});
  std::array<std::byte, 8> data{};
  EXPECT_NE(session_->Dma(kNic, Iova(0x9000), false, data, false).reason, FaultReason::kNone);
  EXPECT_TRUE(session_->TakeFaults().empty());
}

TEST_P(SessionDma, RetainedFaultsAreBounded) {
  SessionConfig config;
  config.max_faults_retained = 3;
  Start(config);
  std::array<std::byte, 8> data{};
  for (int i = 0; i < 5; ++i) session_->Dma(kNic, Iova(0x9000), false, data, false);
  EXPECT_EQ(session_->TakeFaults().size(), 3u);
  EXPECT_EQ(session_->stats().faults_dropped, 2u);
}

TEST_P(SessionDma, ProbesRecordNoFault) {
  Start();
  EXPECT_FALSE(Touch(0x9000));
  EXPECT_TRUE(session_->TakeFaults().empty());
}

TEST_P(SessionDma, TouchBetweenUnmapAndInvalidationIsAStaleHit) {
  Start();
  Map(0x5000, kBuffers);
  EXPECT_EQ(TouchAnd(0x5000, {}).stale_dma_hits, 0u);
  guest_.Unmap(table_, 4, 0x5000);
  // Touches of a batch happen before its descriptors.
  EXPECT_EQ(TouchAnd(0x5000, {Psi(1, 0x5000)}).stale_dma_hits, 1u);
  EXPECT_EQ(TouchAnd(0x5000, {}).stale_dma_hits, 0u);
  EXPECT_FALSE(Touch(0x5000));
  EXPECT_EQ(session_->stats().stale_dma_hits, 1u);
}

TEST_P(SessionDma, PageThatNowLeadsElsewhereIsAStaleHit) {
  Start();
  Map(0x5000, kBuffers);
  EXPECT_TRUE(Touch(0x5000));
  guest_.Map(table_, 4, 0x5000, kBuffers + 0x4000);
  std::array<std::byte, 8> data{};
  EXPECT_TRUE(session_->Dma(kNic, Iova(0x5000), false, data, false).stale);
  Send(*session_, {Psi(1, 0x5000)});
  EXPECT_FALSE(session_->Dma(kNic, Iova(0x5000), false, data, false).stale);
}

TEST_P(SessionDma, UnknownRequesterIsBlocked) {
  Start();
  std::array<std::byte, 8> data{};
  EXPECT_NE(session_->Dma(MakeSourceId(9, 0, 0), Iova(0x5000), false, data, false).reason,
            FaultReason::kNone);
}

TEST_P(SessionDma, TargetThatIsNoMemoryMovesNothingAndIsNoFault) {
  Start();
  if (GetParam() == Strategy::kNested) return;  // there the second table says no
  Map(0x5000, uint64_t{1} << 40);
  std::array<std::byte, 8> data{};
  const DmaResult result = session_->Dma(kNic, Iova(0x5000), false, data, false);
  EXPECT_EQ(result.reason, FaultReason::kNone);
  EXPECT_EQ(result.bytes_moved, 0u);
}

TEST_P(SessionDma, TranslateTellsWhereAnAccessWouldGo) {
  Start();
  Map(0x5000, kBuffers);
  const auto found = session_->Translate(kNic, Iova(0x5123), kReadOnly);
  ASSERT_TRUE(found.ok());
  EXPECT_EQ(found->reason, FaultReason::kNone);
  EXPECT_EQ(found->guest, GuestPhys(kBuffers + 0x123));
  EXPECT_NE(found->host.value(), found->guest.value());
  EXPECT_NE(session_->Translate(kNic, Iova(0x9000), kReadOnly)->reason, FaultReason::kNone);
  EXPECT_TRUE(session_->TakeFaults().empty());
}

TEST_P(SessionDma, IotlbHitsAreCounted) {
  Start();
  Map(0x5000, kBuffers);
  Touch(0x5000);
  const uint64_t misses = session_->stats().iotlb_misses;
  Touch(0x5000);
  EXPECT_EQ(session_->stats().iotlb_misses, misses);
  EXPECT_GE(session_->stats().iotlb_hits, 1u);
}

TEST_P(SessionDma, DeviceTlbHoldsUntilItIsTold) {
  Start({}, /*device_tlb=*/true);
  Map(0x5000, kBuffers);
  EXPECT_TRUE(Touch(0x5000));
  guest_.Unmap(table_, 4, 0x5000);
  EXPECT_EQ(TouchAnd(0x5000, {}).stale_dma_hits, 1u);  // served by the device's own TLB
  vtd::DeviceTlbInvalidate d;
  d.source_id = kNic;
  d.address = Iova(0x5000);
  const SinkCompletion done = Send(*session_, {Psi(1, 0x5000), vtd::Encode(d)});
  EXPECT_EQ(done.consumed, 2u);
  EXPECT_GE(done.cost.iotlb_invalidations, 2u);
  EXPECT_FALSE(Touch(0x5000));
}

INSTANTIATE_TEST_SUITE_P(Strategies, SessionDma,
                         ::testing::Values(Strategy::kWalk, Strategy::kWalkShared,
                                           Strategy::kSnapshot, Strategy::kDirtyLog,
                                           Strategy::kNested),
                         [](const auto& p) { return TestName(StrategyName(p.param)); });

TEST(Nested, ReadsNothingAtSyncAndPinsAllRamAtTheStart) {
  TestGuest guest;
  const PhysAddr table = guest.NewPage();
  guest.SetContext(kNic, vtd::ContextEntry::Make(table, 4, DomainId(1)));
  auto session = MakeSession(guest, Strategy::kNested);
  ASSERT_TRUE(session->AddDevice(kNic, false).ok());
  EXPECT_EQ(session->stats().pinned_pages, guest.ram_bytes() / kPageSize);
  EXPECT_EQ(session->stats().cost.pages_pinned, guest.ram_bytes() / kPageSize);
  guest.Map(table, 4, 0x5000, kBuffers);
  const SinkCompletion done = Send(*session, {Psi(1, 0x5000), Dsi(1)});
  EXPECT_EQ(done.cost.ptes_read + done.cost.bytes_read + done.cost.dma_maps, 0u);
  EXPECT_EQ(done.cost.iotlb_invalidations, 2u);
  const auto flat = session->FlattenShadow(kNic);
  ASSERT_TRUE(flat.ok());
  ASSERT_EQ(flat->size(), 1u);
  EXPECT_EQ((*flat)[0].address, PhysAddr(kBuffers));
}

TEST(Nested, ForgottenInvalidationLeavesTheOldTranslation) {
  TestGuest guest;
  const PhysAddr table = guest.NewPage();
  guest.SetContext(kNic, vtd::ContextEntry::Make(table, 4, DomainId(1)));
  auto session = MakeSession(guest, Strategy::kNested);
  ASSERT_TRUE(session->AddDevice(kNic, false).ok());
  guest.Map(table, 4, 0x5000, kBuffers);
  std::array<std::byte, 8> data{};
  EXPECT_FALSE(session->Dma(kNic, Iova(0x5000), false, data, false).stale);
  guest.Unmap(table, 4, 0x5000);
  EXPECT_TRUE(session->Dma(kNic, Iova(0x5000), false, data, false).stale);
  Send(*session, {Psi(1, 0x5000)});
  EXPECT_EQ(session->Dma(kNic, Iova(0x5000), false, data, false).reason, FaultReason::kReadDenied);
}

TEST(Nested, TablesOutsideRamCannotBeRead) {
  TestGuest guest;
  const PhysAddr table = guest.NewPage();
  guest.SetContext(kNic, vtd::ContextEntry::Make(table, 4, DomainId(1)));
  auto session = MakeSession(guest, Strategy::kNested);
  ASSERT_TRUE(session->AddDevice(kNic, false).ok());
  guest.Put(guest.Slot(table, 4, Iova(0x5000), 2), (uint64_t{1} << 44) | kRw);
  std::array<std::byte, 8> data{};
  EXPECT_EQ(session->Dma(kNic, Iova(0x5000), false, data, false).reason, FaultReason::kTableAccess);
  guest.Map(table, 4, 0x40000000, uint64_t{1} << 40);  // nor a page beyond it reached
  EXPECT_NE(session->Dma(kNic, Iova(0x40000000), false, data, false).reason, FaultReason::kNone);
}

}  // namespace
}  // namespace viommu
