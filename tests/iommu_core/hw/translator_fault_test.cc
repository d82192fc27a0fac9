// Every fault reason with FPD clear and set (VT-d 7.1.3), widths, pass-through, the interrupt
// range, ATS, and the recorded departures of QEMU.
#include <functional>
#include <vector>

#include "gtest/gtest.h"
#include "tests/iommu_core/hw/translator_fixture.h"

namespace viommu {
namespace {

using vtd::FaultReason;

class TranslatorFaultTest : public TranslatorTest {
 protected:
  // Sets FPD in the device's context entry as it stands.
  void SetFpd() {
    const PhysAddr slot = kContexts + 16u * static_cast<uint64_t>(vtd::ContextIndex(kDevice));
    Store(slot, memory.Read64(slot).value() | vtd::ContextEntry::Fpd::kMask);
  }
  void ChangeContext(std::function<void(vtd::ContextEntry&)> change) {
    vtd::ContextEntry entry = vtd::ContextEntry::Make(kTop, 4, kDomain);
    change(entry);
    PutContext(kDevice, entry);
  }
};

TEST_F(TranslatorFaultTest, EveryReasonIsReportedAndFpdSuppressesTheQualifiedOnes) {
  struct Case {
    FaultReason reason;
    bool qualified;
    std::function<void()> arrange;
    bool write = false;
    uint64_t iova = 0x5000;
  };
  const uint64_t leaf = 0x400003;
  const std::vector<Case> cases = {
      {FaultReason::kRootNotPresent, false, [&] { Store(kRoot, 0); }},
      {FaultReason::kContextNotPresent, true,
       [&] { ChangeContext([](auto& e) { e.lo &= ~uint64_t{1}; }); }},
      // 9.3: AW 3 is not in SAGAW, TT 3 is reserved, TT 1 needs ECAP.DT.
      {FaultReason::kContextInvalid, true, [&] { ChangeContext([](auto& e) { e.hi |= 3; }); }},
      {FaultReason::kContextInvalid, true, [&] { ChangeContext([](auto& e) { e.lo |= 3 << 2; }); }},
      {FaultReason::kContextInvalid, true, [&] { ChangeContext([](auto& e) { e.lo |= 1 << 2; }); }},
      {FaultReason::kContextInvalid, true,
       [&] { ChangeContext([](auto& e) { e.lo = kNotRam.value() | 1; }); }},
      {FaultReason::kAddressBeyondWidth, true, [] {}, false, uint64_t{1} << 48},
      {FaultReason::kWriteDenied, true, [&] { MapPage(5, 0x400000, kReadOnly); }, true},
      {FaultReason::kReadDenied, true, [&] { MapPage(5, 0x400000, kWriteOnly); }, false},
      {FaultReason::kWriteDenied, true, [&] { Store(kLevel1 + 40, 0); }, true},
      {FaultReason::kReadDenied, true, [&] { Store(kLevel1 + 40, 0); }, false},
      {FaultReason::kTableAccess, true, [&] { Store(kLevel2, kNotRam.value() | 3); }},
      {FaultReason::kRootTableAccess, false,
       [&] {
         Registers({kNotRam, true});
       }},
      {FaultReason::kContextTableAccess, false, [&] { Store(kRoot, kNotRam.value() | 1); }},
      {FaultReason::kRootReserved, false, [&] { Store(kRoot, kContexts.value() | 0x11); }},
      {FaultReason::kRootReserved, false, [&] { Store(kRoot + 8, 1); }},
      {FaultReason::kContextReserved, true,
       [&] { ChangeContext([](auto& e) { e.lo |= 1 << 5; }); }},
      {FaultReason::kContextReserved, true,
       [&] { ChangeContext([](auto& e) { e.hi |= uint64_t{1} << 40; }); }},
      {FaultReason::kPteReserved, true, [&] { Store(kLevel1 + 40, leaf | uint64_t{1} << 50); }},
      {FaultReason::kPteReserved, true, [&] { Store(kLevel1 + 40, leaf | uint64_t{1} << 62); }},
      {FaultReason::kPteReserved, true, [&] { Store(kLevel2, 0x400083 | 1 << 13); }},
      // 3.14: the result is in the interrupt range.
      {FaultReason::kInterruptRangeOutput, true, [&] { MapPage(5, 0xfee00000); }},
  };
  const uint64_t saved[] = {memory.Read64(kRoot).value(), memory.Read64(kLevel2).value(),
                            memory.Read64(kLevel1 + 40).value()};
  for (size_t i = 0; i < cases.size(); ++i) {
    for (const bool fpd : {false, true}) {
      SCOPED_TRACE(::testing::Message() << "case " << i << " FPD " << fpd);
      Store(kRoot, saved[0]);
      Store(kRoot + 8, 0);
      Store(kLevel2, saved[1]);
      Store(kLevel1 + 40, saved[2]);
      ChangeContext([](auto&) {});
      Make();
      cases[i].arrange();
      if (fpd) SetFpd();
      const TranslateOutcome out = cases[i].write ? Write(cases[i].iova) : Read(cases[i].iova);
      EXPECT_EQ(out.reason, cases[i].reason);
      EXPECT_EQ(out.record, !(fpd && cases[i].qualified));
      EXPECT_FALSE(out.iotlb_hit);
      // A fault is never cached: the second look finds the same.
      const TranslateOutcome again = cases[i].write ? Write(cases[i].iova) : Read(cases[i].iova);
      EXPECT_EQ(again.reason, cases[i].reason);
      EXPECT_FALSE(again.iotlb_hit);
    }
  }
}

// 9.9: reserved bits count only where R or W is set.
TEST_F(TranslatorFaultTest, ReservedBitsOfAnAbsentEntryAreNoFaultOfTheirOwn) {
  Store(kLevel1 + 40, uint64_t{1} << 50);
  EXPECT_EQ(Read(0x5000).reason, FaultReason::kReadDenied);
}

// 3.6: min(MGAW, AW).
TEST_F(TranslatorFaultTest, WidthIsTheSmallerOfUnitAndContextEntry) {
  PutContext(kDevice, vtd::ContextEntry::Make(kLevel3, 3, kDomain));
  EXPECT_EQ(Reach(0x5123), 0x400123u);
  EXPECT_EQ(Read(uint64_t{1} << 39).reason, FaultReason::kAddressBeyondWidth);
  EXPECT_EQ(Read(~uint64_t{0}).reason, FaultReason::kAddressBeyondWidth);
}

// 3.9, and the reason 4 above the host address width.
TEST_F(TranslatorFaultTest, PassThroughIsIdentity) {
  PutContext(kDevice,
             vtd::ContextEntry::Make(kNotRam, 4, kDomain, vtd::TranslationType::kPassThrough));
  EXPECT_EQ(Reach(0x12345), 0x12345u);
  EXPECT_EQ(Write(uint64_t{1} << 48).reason, FaultReason::kAddressBeyondWidth);
  const auto ats =
      translator->Translate(kDevice, Iova(0x5000), kReadOnly, RequestKind::kTranslationRequest);
  EXPECT_EQ(ats.reason, FaultReason::kTranslationBlocked);
  EXPECT_TRUE(ats.record);
}

TEST_F(TranslatorFaultTest, NothingIsTranslatedWhileTheUnitIsOff) {
  Registers({kRoot, false});
  EXPECT_EQ(Reach(0x5000), 0x5000u);
  EXPECT_EQ(Reach(uint64_t{1} << 60), uint64_t{1} << 60);
  EXPECT_NE(
      translator->Translate(kDevice, Iova(0x5000), kReadOnly, RequestKind::kTranslated).reason,
      FaultReason::kNone);
  Registers({kRoot, true});
  EXPECT_EQ(Reach(0x5000), 0x400000u);
}

// 3.14: not subject to remapping, even where the tables map it.
TEST_F(TranslatorFaultTest, WritesToTheInterruptRangeAreMessages) {
  Store(kLevel3 + 24, vtd::SecondStagePte::Leaf(PhysAddr(0x40000000), 3, kReadWrite).raw);
  EXPECT_EQ(Reach(0xfedff000), 0x7edff000u);
  const TranslateOutcome message = Write(0xfee00000);
  EXPECT_EQ(message.reason, FaultReason::kNone);
  EXPECT_TRUE(message.interrupt_request);
  EXPECT_EQ(message.address, PhysAddr(0xfee00000));
  const TranslateOutcome read = Read(0xfeeff000);
  EXPECT_NE(read.reason, FaultReason::kNone);
  EXPECT_FALSE(read.record);
  EXPECT_EQ(Reach(0xfef00000), 0x7ef00000u);
}

TEST_F(TranslatorFaultTest, OnlyResultsInsideTheInterruptRangeAreBlocked) {
  // A 1G page over [3G, 4G): only 1M of it is the interrupt range.
  Store(kLevel3 + 8, vtd::SecondStagePte::Leaf(PhysAddr(0xc0000000), 3, kReadWrite).raw);
  EXPECT_EQ(Read(0x40000000 + 0x3edff000).reason, FaultReason::kNone);
  EXPECT_EQ(Read(0x40000000 + 0x3ee00000).reason, FaultReason::kInterruptRangeOutput);
  EXPECT_EQ(Read(0x40000000 + 0x3eeff000).reason, FaultReason::kInterruptRangeOutput);
  EXPECT_EQ(Read(0x40000000 + 0x3ef00000).reason, FaultReason::kNone);
  options.qemu_quirks = true;  // large-page-overlaps-fee
  Make();
  EXPECT_EQ(Read(0x40000000).reason, FaultReason::kInterruptRangeOutput);
}

class AtsTest : public TranslatorFaultTest {
 protected:
  AtsTest() {
    options.rules.caps.ecap |= vtd::ecap::Dt::kMask;
    PutContext(kDevice,
               vtd::ContextEntry::Make(kTop, 4, kDomain, vtd::TranslationType::kWithDeviceTlb));
    Make();
  }
  TranslateOutcome Ask(uint64_t iova, RequestKind kind, Access wanted = kReadOnly) {
    return translator->Translate(kDevice, Iova(iova), wanted, kind);
  }
};

// 9.3: TT 00 blocks both kinds, reason 0xD, qualified.
TEST_F(AtsTest, ContextEntryMustAllowIt) {
  for (const bool fpd : {false, true}) {
    PutContext(kDevice, vtd::ContextEntry::Make(kTop, 4, kDomain));
    if (fpd) SetFpd();
    Make();
    for (const RequestKind kind : {RequestKind::kTranslationRequest, RequestKind::kTranslated}) {
      const TranslateOutcome out = Ask(0x5000, kind);
      EXPECT_EQ(out.reason, FaultReason::kTranslationBlocked);
      EXPECT_EQ(out.record, !fpd);
    }
    EXPECT_EQ(Reach(0x5000), 0x400000u);
  }
}

TEST_F(AtsTest, TranslationRequestGetsAddressAndPermission) {
  MapPage(6, 0x500000, kReadOnly);
  const TranslateOutcome out = Ask(0x6010, RequestKind::kTranslationRequest, kWriteOnly);
  EXPECT_EQ(out.reason, FaultReason::kNone);
  EXPECT_EQ(out.address, PhysAddr(0x500010));
  EXPECT_EQ(out.access, kReadOnly);
  EXPECT_EQ(out.page_size, kPageSize);
}

// PCIe ATS: nothing mapped is a completion with R = W = 0, not a fault.
TEST_F(AtsTest, AbsentMappingIsAnswerWithoutPermission) {
  const TranslateOutcome out = Ask(0x9000, RequestKind::kTranslationRequest);
  EXPECT_EQ(out.reason, FaultReason::kNone);
  EXPECT_FALSE(out.access.any());
  Store(kLevel1 + 72, 0x400003 | uint64_t{1} << 50);
  EXPECT_EQ(Ask(0x9000, RequestKind::kTranslationRequest).reason, FaultReason::kPteReserved);
}

TEST_F(AtsTest, TranslatedRequestIsNotTranslatedAgain) {
  EXPECT_EQ(Ask(0x5000, RequestKind::kTranslated).address, PhysAddr(0x5000));
  EXPECT_NE(Ask(0xfee00000, RequestKind::kTranslated, kWriteOnly).reason, FaultReason::kNone);
}

class QuirkTest : public TranslatorFaultTest {
 protected:
  void Both(std::function<void(bool quirks)> check) {
    for (const bool quirks : {false, true}) {
      SCOPED_TRACE(quirks ? "QEMU" : "specification");
      options.qemu_quirks = quirks;
      Make();
      check(quirks);
    }
  }
};

TEST_F(QuirkTest, HitWithoutPermissionBlocksSilently) {
  MapPage(5, 0x400000, kReadOnly);
  Both([&](bool quirks) {
    EXPECT_EQ(Reach(0x5000), 0x400000u);
    const TranslateOutcome out = Write(0x5000);
    EXPECT_EQ(out.reason, FaultReason::kWriteDenied);
    EXPECT_EQ(out.record, !quirks);
    EXPECT_EQ(out.iotlb_hit, quirks);
  });
}

TEST_F(QuirkTest, PermissionBeforeReservedBits) {
  Store(kLevel1 + 40, 0x400001 | uint64_t{1} << 50);
  Both([&](bool quirks) {
    EXPECT_EQ(Write(0x5000).reason, quirks ? FaultReason::kWriteDenied : FaultReason::kPteReserved);
    EXPECT_EQ(Read(0x5000).reason, FaultReason::kPteReserved);
  });
}

TEST_F(QuirkTest, ContextReservedIsRecordedDespiteFpd) {
  ChangeContext([](auto& e) { e.lo |= (1 << 5) | vtd::ContextEntry::Fpd::kMask; });
  Both([&](bool quirks) {
    const TranslateOutcome out = Read(0x5000);
    EXPECT_EQ(out.reason, FaultReason::kContextReserved);
    EXPECT_EQ(out.record, quirks);
  });
}

TEST_F(QuirkTest, IotlbIsSearchedBySourceBeforeTheDomainIsKnown) {
  const PhysAddr other(0x20000);
  Store(other, vtd::SecondStagePte::Table(other + kPageSize).raw);
  Store(other + kPageSize, vtd::SecondStagePte::Leaf(PhysAddr(0x40000000), 3, kReadWrite).raw);
  Both([&](bool quirks) {
    PutContext(kDevice, vtd::ContextEntry::Make(kTop, 4, kDomain));
    EXPECT_EQ(Reach(0x5000), 0x400000u);
    PutContext(kDevice, vtd::ContextEntry::Make(other, 4, DomainId(8)));
    Invalidate(vtd::ContextCacheInvalidate{});
    EXPECT_EQ(Reach(0x5000), quirks ? 0x400000u : 0x40005000u);
    InvalidateDomain();
    EXPECT_EQ(Reach(0x5000), 0x40005000u);
  });
}

}  // namespace
}  // namespace viommu
