// Register file, global commands and register-based invalidation, VT-d 5.10 sections 11.4
// and 6.5.1.
#include "gmock/gmock.h"
#include "unit_fixture.h"

namespace viommu {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::SizeIs;
using vtd::Granularity;

using RegistersTest = UnitTest;

constexpr uint32_t kIva = 0xf0;
constexpr uint32_t kIotlb = 0xf8;
constexpr uint64_t kIcc = vtd::ccmd::Icc::kMask;
constexpr uint64_t kIvt = vtd::iotlb::Ivt::kMask;

TEST_F(RegistersTest, ResetValues) {
  EXPECT_EQ(unit->Read32(vtd::kVer), 0x10u);
  EXPECT_EQ(unit->Read64(vtd::kCap), 0x80d2008c222f0686u);
  EXPECT_EQ(unit->Read64(vtd::kEcap), 0xf42u);
  EXPECT_EQ(unit->Read32(vtd::kFectl), 0x80000000u);
  EXPECT_EQ(unit->Read32(vtd::kIectl), 0x80000000u);
  for (uint32_t offset : {vtd::kGsts, vtd::kFsts, vtd::kIcs, vtd::kPmen}) {
    EXPECT_EQ(unit->Read32(offset), 0u) << offset;
  }
}

// What reads back after all ones: the RW bits, and nothing of RO, WO and RW1C.
TEST_F(RegistersTest, OnesReadBackOnlyWhereSoftwareMayWrite) {
  struct {
    uint32_t offset;
    uint64_t reads;
  } const cases[] = {
      {vtd::kCap, 0x80d2008c222f0686},
      {vtd::kEcap, 0xf42},
      {vtd::kRtaddr, 0xfffffffffffffc00},
      {vtd::kIqh, 0},
      {vtd::kIqt, 0x7fff0},
      {vtd::kIqa, 0xfffffffffffff807},
      {vtd::kIqercd, 0},
      {vtd::kIrta, 0},  // no ECAP.IR
      {vtd::kFeaddr, 0xfffffffffffffffc},
      {vtd::kIeaddr, 0xfffffffffffffffc},
      {kIva, 0},   // WO
      {0x220, 0},  // FRCD, low
      {0x400, 0},  // nothing there
  };
  for (const auto& c : cases) {
    unit->Write64(c.offset, ~uint64_t{0});
    EXPECT_EQ(unit->Read64(c.offset), c.reads) << std::hex << c.offset;
  }
  unit->Write32(vtd::kVer, ~0u);
  EXPECT_EQ(unit->Read32(vtd::kVer), 0x10u);
  unit->Write32(vtd::kFsts, ~0u);
  EXPECT_EQ(Fsts(), 0u);
  unit->Write32(vtd::kPmen, ~0u);  // CAP.PLMR and PHMR are clear
  EXPECT_EQ(unit->Read32(vtd::kPmen), 0u);
  unit->Write32(vtd::kGsts, ~0u);
  EXPECT_EQ(unit->Read32(vtd::kGsts), 0u);
}

TEST_F(RegistersTest, HalvesOf64BitRegistersAreReachableAlone) {
  unit->Write32(vtd::kRtaddr, 0x12345000);
  unit->Write32(vtd::kRtaddr + 4, 0x7);
  EXPECT_EQ(unit->Read64(vtd::kRtaddr), 0x712345000u);
  EXPECT_EQ(unit->Read32(vtd::kRtaddr + 4), 0x7u);
  EXPECT_EQ(unit->Read32(vtd::kCap + 4), 0x80d2008cu);
}

TEST_F(RegistersTest, UnalignedAndOutsideReadZeroAndIgnoreWrites) {
  for (uint32_t offset : {1u, 0x1au, 0x230u, 0x10000u, 0xfffffffcu, 0xffffffffu}) {
    unit->Write32(offset, ~0u);
    unit->Write64(offset, ~uint64_t{0});
    EXPECT_EQ(unit->Read32(offset), 0u) << offset;
  }
  EXPECT_THAT(backend.pushed, IsEmpty());
}

TEST_F(RegistersTest, RootTableIsLatchedBySrtpOnly) {  // 11.4.5
  unit->Write64(vtd::kRtaddr, 0x5000);
  EXPECT_EQ(unit->latched().root_table, PhysAddr(0));
  unit->Write32(vtd::kGcmd, vtd::gcmd::Srtp::kMask);
  EXPECT_EQ(unit->Read32(vtd::kGsts), vtd::gcmd::Srtp::kMask);
  EXPECT_EQ(unit->Read32(vtd::kGcmd), 0u);
  unit->Write64(vtd::kRtaddr, 0x6000);
  EXPECT_EQ(unit->latched().root_table, PhysAddr(0x5000));
  unit->Write32(vtd::kGcmd, vtd::gcmd::Te::kMask);
  EXPECT_EQ(unit->Read32(vtd::kGsts), vtd::gcmd::Te::kMask | vtd::gcmd::Srtp::kMask);
  EXPECT_THAT(backend.pushed, ElementsAre(UnitRegisters{PhysAddr(0x5000), false},
                                          UnitRegisters{PhysAddr(0x5000), true}));
}

TEST_F(RegistersTest, SrtpOfTheSameTableIsStillACommand) {
  unit->Write64(vtd::kRtaddr, 0x5000);
  unit->Write32(vtd::kGcmd, vtd::gcmd::Srtp::kMask);
  unit->Write32(vtd::kGcmd, vtd::gcmd::Srtp::kMask);
  EXPECT_THAT(backend.pushed, SizeIs(2));
}

TEST_F(RegistersTest, RootTableBitsAboveTheHostWidthAreNotImplemented) {
  unit->Write64(vtd::kRtaddr, 0xffff000000005000);
  unit->Write32(vtd::kGcmd, vtd::gcmd::Srtp::kMask);
  EXPECT_EQ(unit->latched().root_table, PhysAddr(0x5000));
}

TEST_F(RegistersTest, TranslationWithoutSrtpReportsNoRootTable) {
  unit->Write32(vtd::kGcmd, vtd::gcmd::Te::kMask);
  EXPECT_EQ(unit->Read32(vtd::kGsts), vtd::gcmd::Te::kMask);
}

TEST_F(RegistersTest, StatusBitsWaitForTheBackend) {
  backend.failure = absl::UnavailableError("gone");
  unit->Write64(vtd::kRtaddr, 0x5000);
  unit->Write32(vtd::kGcmd, vtd::gcmd::Srtp::kMask);
  unit->Write32(vtd::kGcmd, vtd::gcmd::Te::kMask);
  EXPECT_EQ(unit->Read32(vtd::kGsts), 0u);
  EXPECT_FALSE(unit->last_status().ok());
  EXPECT_FALSE(unit->latched().translation_enabled);
  backend.failure = absl::OkStatus();
  EXPECT_TRUE(unit->Resume().ok());
  EXPECT_EQ(unit->Read32(vtd::kGsts), vtd::gcmd::Te::kMask | vtd::gcmd::Srtp::kMask);
  EXPECT_THAT(backend.pushed, ElementsAre(UnitRegisters{PhysAddr(0x5000), true}));
}

TEST_F(RegistersTest, WriteBufferFlushIsNeverSeenPending) {
  unit->Write32(vtd::kGcmd, vtd::gcmd::Wbf::kMask);
  EXPECT_EQ(unit->Read32(vtd::kGsts), 0u);
}

TEST_F(RegistersTest, InterruptRemappingBitsNeedTheCapability) {
  using vtd::gcmd::Cfi;
  using vtd::gcmd::Ire;
  using vtd::gcmd::Sirtp;
  constexpr uint64_t kAll = Cfi::kMask | Ire::kMask | Sirtp::kMask;
  unit->Write32(vtd::kGcmd, kAll);
  EXPECT_EQ(unit->Read32(vtd::kGsts), 0u);

  VtdUnitOptions options = DefaultOptions();
  options.caps.ecap |= vtd::ecap::Ir::kMask;
  Make(options);
  unit->Write64(vtd::kIrta, 0x700000 | 0xf);
  EXPECT_EQ(unit->Read64(vtd::kIrta), 0x70000fu);
  unit->Write32(vtd::kGcmd, kAll);
  EXPECT_EQ(unit->Read32(vtd::kGsts), kAll);
  unit->Write32(vtd::kGcmd, 0);
  EXPECT_EQ(unit->Read32(vtd::kGsts), Sirtp::kMask);
}

TEST_F(RegistersTest, ProtectedMemoryStatusFollowsItsEnable) {
  VtdUnitOptions options = DefaultOptions();
  options.caps.cap |= vtd::cap::Plmr::kMask;
  Make(options);
  unit->Write32(vtd::kPmen, 0x80000000);
  EXPECT_EQ(unit->Read32(vtd::kPmen), 0x80000001u);
  unit->Write32(vtd::kPmen, 0);
  EXPECT_EQ(unit->Read32(vtd::kPmen), 0u);
}

TEST_F(RegistersTest, NoQueueWithoutTheCapability) {
  VtdUnitOptions options = DefaultOptions();
  options.caps.ecap &= ~vtd::ecap::Qi::kMask;
  Make(options);
  unit->Write64(vtd::kIqa, kRing.value());
  EXPECT_EQ(unit->Read64(vtd::kIqa), 0u);
  unit->Write32(vtd::kGcmd, vtd::gcmd::Qie::kMask);
  EXPECT_EQ(unit->Read32(vtd::kGsts), 0u);
}

// 6.5.1, 11.4.6
TEST_F(RegistersTest, ContextCommandsOfEachGranularity) {
  constexpr Granularity kAll[] = {Granularity::kGlobal, Granularity::kDomain,
                                  Granularity::kPageOrDevice};
  for (const Granularity granularity : kAll) {
    const auto g = static_cast<uint64_t>(granularity);
    const uint64_t fields =
        vtd::ccmd::Did::Make(9) | vtd::ccmd::Sid::Make(0x4200) | vtd::ccmd::Fm::Make(1);
    unit->Write64(vtd::kCcmd, kIcc | vtd::ccmd::Cirg::Make(g) | fields);
    const uint64_t after = unit->Read64(vtd::kCcmd);
    EXPECT_EQ(after & kIcc, 0u);
    EXPECT_EQ(vtd::ccmd::Caig::Get(after), g);
    EXPECT_EQ(vtd::ccmd::Sid::Get(after), 0u) << "SID is WO";
    ASSERT_THAT(backend.offered.back(), SizeIs(1));
    EXPECT_EQ(backend.offered.back()[0],
              vtd::Encode(vtd::ContextCacheInvalidate{granularity, DomainId(9), SourceId(0x4200),
                                                      /*function_mask=*/1}));
  }
  EXPECT_THAT(backend.offered, SizeIs(3));
}

TEST_F(RegistersTest, UpperHalfStartsACommand) {
  unit->Write32(vtd::kCcmd, 9);
  EXPECT_THAT(backend.offered, IsEmpty());
  unit->Write32(vtd::kCcmd + 4, 0xc0000000);
  ASSERT_THAT(backend.offered, SizeIs(1));
  EXPECT_EQ(backend.offered[0][0],
            vtd::Encode(vtd::ContextCacheInvalidate{Granularity::kDomain, DomainId(9), {}}));
}

TEST_F(RegistersTest, IotlbCommandOfAPage) {
  unit->Write64(kIva, 0x7f000 | vtd::iva::Ih::kMask | 3);
  EXPECT_THAT(backend.offered, IsEmpty());
  unit->Write64(kIotlb, kIvt | vtd::iotlb::Iirg::Make(3) | vtd::iotlb::Did::Make(5) |
                            vtd::iotlb::Dr::kMask | vtd::iotlb::Dw::kMask);
  ASSERT_THAT(backend.offered, SizeIs(1));
  EXPECT_EQ(backend.offered[0][0],
            vtd::Encode(vtd::IotlbInvalidate{Granularity::kPageOrDevice, DomainId(5), true, true, 3,
                                             true, Iova(0x7f000)}));
  EXPECT_EQ(unit->Read64(kIotlb) & kIvt, 0u);
  EXPECT_EQ(vtd::iotlb::Iaig::Get(unit->Read64(kIotlb)), 3u);
}

TEST_F(RegistersTest, IncorrectRequestsReportNoGranularity) {
  unit->Write64(vtd::kCcmd, kIcc);  // granularity 0
  EXPECT_EQ(unit->Read64(vtd::kCcmd), 0u);
  unit->Write64(kIva, 0x7f000 | 19);  // above MAMV
  unit->Write64(kIotlb, kIvt | vtd::iotlb::Iirg::Make(3));
  EXPECT_EQ(unit->Read64(kIotlb), vtd::iotlb::Iirg::Make(3));
  EXPECT_THAT(backend.offered, IsEmpty());
}

TEST_F(RegistersTest, PageRequestWithoutPageSelectiveIsDoneOnTheDomain) {
  VtdUnitOptions options = DefaultOptions();
  options.caps.cap &= ~vtd::cap::Psi::kMask;
  Make(options);
  unit->Write64(kIotlb, kIvt | vtd::iotlb::Iirg::Make(3) | vtd::iotlb::Did::Make(5));
  EXPECT_EQ(vtd::iotlb::Iaig::Get(unit->Read64(kIotlb)), 2u);
  ASSERT_THAT(backend.offered, SizeIs(1));
  EXPECT_EQ(backend.offered[0][0],
            vtd::Encode(vtd::IotlbInvalidate{Granularity::kDomain, DomainId(5), false, false, 0,
                                             false, Iova()}));
}

TEST_F(RegistersTest, CommandWaitsForTheBackendAndIsLockedMeanwhile) {
  backend.failure = absl::UnavailableError("gone");
  unit->Write64(vtd::kCcmd, kIcc | vtd::ccmd::Cirg::Make(2) | 9);
  EXPECT_EQ(unit->Read64(vtd::kCcmd) & kIcc, kIcc);
  unit->Write64(vtd::kCcmd, 0);
  EXPECT_EQ(unit->Read64(vtd::kCcmd) & kIcc, kIcc);
  backend.failure = absl::OkStatus();
  EXPECT_TRUE(unit->Resume().ok());
  EXPECT_EQ(unit->Read64(vtd::kCcmd), vtd::ccmd::Cirg::Make(2) | vtd::ccmd::Caig::Make(2) | 9);
}

TEST_F(RegistersTest, CommandsWhileTheQueueIsOnAreAnsweredAndIgnored) {
  EnableQueue();
  unit->Write64(vtd::kCcmd, kIcc | vtd::ccmd::Cirg::Make(1));
  EXPECT_EQ(unit->Read64(vtd::kCcmd), vtd::ccmd::Cirg::Make(1));
  unit->Write64(kIotlb, kIvt | vtd::iotlb::Iirg::Make(1));
  EXPECT_EQ(unit->Read64(kIotlb), vtd::iotlb::Iirg::Make(1));
  EXPECT_THAT(backend.offered, IsEmpty());
}

TEST_F(RegistersTest, QuirkCommandsWhileTheQueueIsOnStaySet) {
  VtdUnitOptions options = DefaultOptions();
  options.qemu_quirks = true;
  Make(options);
  EnableQueue();
  unit->Write64(vtd::kCcmd, kIcc | vtd::ccmd::Cirg::Make(1));
  EXPECT_EQ(unit->Read64(vtd::kCcmd) & kIcc, kIcc);
  unit->Write64(kIotlb, kIvt | vtd::iotlb::Iirg::Make(1));
  EXPECT_EQ(unit->Read64(kIotlb) & kIvt, kIvt);
  EXPECT_THAT(backend.offered, IsEmpty());
}

TEST_F(RegistersTest, QuirkDomainContextCommandIsDoneGlobally) {
  VtdUnitOptions options = DefaultOptions();
  options.qemu_quirks = true;
  Make(options);
  unit->Write64(vtd::kCcmd, kIcc | vtd::ccmd::Cirg::Make(2) | 9);
  EXPECT_EQ(vtd::ccmd::Caig::Get(unit->Read64(vtd::kCcmd)), 1u);
}

}  // namespace
}  // namespace viommu
