// Queued invalidation, VT-d 5.10 section 6.5.2.
#include "gmock/gmock.h"
#include "unit_fixture.h"

namespace viommu {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::SizeIs;
using vtd::Iqei;

using QueueTest = UnitTest;

TEST_F(QueueTest, OneDoorbellIsOneMessageHoweverManyDescriptors) {
  EnableQueue();
  Put(0, Global());
  Put(1, Page(7, 0x5000));
  Put(2, Wait(0xabcd));
  Tail(0x30);
  ASSERT_THAT(backend.offered, SizeIs(1));
  EXPECT_THAT(backend.offered[0], ElementsAre(Global(), Page(7, 0x5000), Wait(0xabcd)));
  EXPECT_EQ(Head(), 0x30u);
  EXPECT_EQ(StatusWord(), 0xabcdu);
  EXPECT_EQ(Fsts(), 0u);
  EXPECT_TRUE(unit->last_status().ok());
  EXPECT_EQ(unit->doorbells(), 1u);
}

TEST_F(QueueTest, RingWrapsAtItsSizeAndHoldsOneLessThanItsSlots) {
  EnableQueue();
  for (uint32_t i = 0; i < 255; ++i) Put(i, Page(1, i * 0x1000ull));
  Tail(255 * 16);
  EXPECT_EQ(Head(), 255u * 16);
  ASSERT_THAT(backend.offered, SizeIs(1));
  EXPECT_THAT(backend.offered[0], SizeIs(255));
  Put(255, Global());
  Put(0, Wait(5));
  Tail(16);
  EXPECT_THAT(backend.offered[1], ElementsAre(Global(), Wait(5)));
  EXPECT_EQ(Head(), 16u);
}

TEST_F(QueueTest, QueueSizeFieldDoublesTheRing) {  // 11.4.8.3: 2^(QS+8) descriptors
  EnableQueue(kRing.value() | 1);
  for (uint32_t i = 0; i < 511; ++i) Put(i, Page(1, i * 0x1000ull));
  Tail(511 * 16);
  EXPECT_EQ(Head(), 511u * 16);
  EXPECT_FALSE(QueueStopped());
}

TEST_F(QueueTest, TailEqualToHeadFetchesNothing) {
  EnableQueue();
  Tail(0);
  EXPECT_THAT(backend.offered, IsEmpty());
}

TEST_F(QueueTest, TailWrittenBeforeEnablingIsFetchedOnEnabling) {
  Put(0, Wait(9));
  unit->Write64(vtd::kIqa, kRing.value());
  Tail(0x10);
  EXPECT_EQ(Head(), 0u);
  unit->Write32(vtd::kGcmd, vtd::gcmd::Qie::kMask);
  EXPECT_EQ(Head(), 0x10u);
  EXPECT_EQ(StatusWord(), 9u);
}

TEST_F(QueueTest, DisablingResetsTheHead) {  // 11.4.8.1
  EnableQueue();
  Put(0, Global());
  Tail(0x10);
  unit->Write32(vtd::kGcmd, 0);
  EXPECT_EQ(unit->Read32(vtd::kGsts), 0u);
  EXPECT_EQ(Head(), 0u);
}

TEST_F(QueueTest, AddressRegisterIsLockedWhileEnabled) {
  EnableQueue();
  unit->Write64(vtd::kIqa, 0x300000);
  EXPECT_EQ(unit->Read64(vtd::kIqa), kRing.value());
}

// The good prefix is done, the head stays on the bad descriptor, nothing behind it happens, tail
// writes do not fetch while IQE is set, and fetching goes on by itself when IQE is cleared
// (6.5.2.10).
TEST_F(QueueTest, BadDescriptorStopsTheQueueUntilTheErrorIsCleared) {
  EnableQueue();
  Put(0, Global());
  Put(1, Wait(1, kStatus));
  Put(2, {0, 0});  // type 0
  Put(3, Wait(2, kStatus + 4));
  Tail(0x40);
  EXPECT_THAT(backend.offered[0], ElementsAre(Global(), Wait(1, kStatus)));
  EXPECT_EQ(Head(), 0x20u);
  EXPECT_TRUE(QueueStopped());
  EXPECT_EQ(ErrorInfo(), Iqei::kBadType);
  EXPECT_EQ(StatusWord(0), 1u);
  EXPECT_EQ(StatusWord(1), 0u);
  EXPECT_TRUE(unit->last_status().ok());

  Put(4, Global());
  Tail(0x50);
  EXPECT_THAT(backend.offered, SizeIs(1));
  EXPECT_EQ(Head(), 0x20u);

  Put(2, Global());
  ClearQueueError();
  EXPECT_EQ(Head(), 0x50u);
  EXPECT_EQ(Fsts(), 0u);
  EXPECT_EQ(ErrorInfo(), Iqei::kNone);
  EXPECT_EQ(StatusWord(1), 2u);
  ASSERT_THAT(backend.offered, SizeIs(2));
  EXPECT_THAT(backend.offered[1], SizeIs(3));
}

TEST_F(QueueTest, ClearingWithoutMendingRaisesTheSameErrorAgain) {
  EnableQueue();
  Put(0, {0, 0});
  Tail(0x10);
  ClearQueueError();
  EXPECT_TRUE(QueueStopped());
  EXPECT_EQ(ErrorInfo(), Iqei::kBadType);
  EXPECT_EQ(Head(), 0u);
  EXPECT_THAT(backend.offered, IsEmpty());
}

// 11.4.9.9, codes of single descriptors: the offender in slot 1, behind a good one.
struct BadDescriptor {
  const char* name;
  vtd::RawDescriptor raw;
  Iqei error;
};
class BadDescriptorTest : public UnitTest, public ::testing::WithParamInterface<BadDescriptor> {};

TEST_P(BadDescriptorTest, RaisesItsCodeWithTheHeadOnIt) {
  EnableQueue();
  Put(0, Global());
  Put(1, GetParam().raw);
  Tail(0x20);
  EXPECT_EQ(Head(), 0x10u);
  EXPECT_TRUE(QueueStopped());
  EXPECT_EQ(ErrorInfo(), GetParam().error);
  EXPECT_EQ(fault_events, 0);  // IM is set after reset
  EXPECT_EQ(unit->Read32(vtd::kFectl), 0xc0000000u);
}

INSTANTIATE_TEST_SUITE_P(
    Codes, BadDescriptorTest,
    ::testing::Values(
        BadDescriptor{"type0", {0, 0}, Iqei::kBadType},
        BadDescriptor{"type_high_bits", {0x202, 0}, Iqei::kBadType},
        BadDescriptor{"device_tlb_without_capability", {0x3, 0}, Iqei::kBadType},
        BadDescriptor{"pasid_iotlb_in_legacy_mode", {0x6, 0}, Iqei::kBadType},
        BadDescriptor{"context_granularity_0", {0x1, 0}, Iqei::kReservedField},
        BadDescriptor{"iotlb_reserved_bit", {0x12 | 1ull << 40, 0}, Iqei::kReservedField},
        BadDescriptor{"mask_above_mamv", {0x32, 0x1000 | 19}, Iqei::kReservedField},
        BadDescriptor{"wait_bit_7", {0xa5, 0x200000}, Iqei::kReservedField},
        BadDescriptor{"wait_unaligned_status", {0x25, 0x200001}, Iqei::kReservedField},
        BadDescriptor{"wait_status_not_memory", {0x25, 0x90000000}, Iqei::kReservedField}),
    [](const auto& test) { return test.param.name; });

TEST_F(QueueTest, Iqei1TailBeyondTheRingAndTheWayOut) {
  EnableQueue();
  Put(0, Wait(3));
  Tail(0x1010);
  EXPECT_TRUE(QueueStopped());
  EXPECT_EQ(ErrorInfo(), Iqei::kBadTail);
  EXPECT_EQ(Head(), 0u);
  EXPECT_EQ(unit->Read64(vtd::kIqt), 0x1010u);
  ClearQueueError();
  EXPECT_TRUE(QueueStopped()) << "the tail is still bad";
  Tail(0x10);
  ClearQueueError();
  EXPECT_FALSE(QueueStopped());
  EXPECT_EQ(Head(), 0x10u);
  EXPECT_EQ(StatusWord(), 3u);
}

TEST_F(QueueTest, Iqei2RingThatIsNotMemory) {
  EnableQueue(kNotRam.value());
  Tail(0x10);
  EXPECT_EQ(ErrorInfo(), Iqei::kFetchError);
  EXPECT_EQ(Head(), 0u);
}

TEST_F(QueueTest, Iqei2RingThatLeavesMemoryHalfway) {
  // The ring is 8 KiB and RAM ends after the first 4.
  constexpr uint64_t kLastPage = 0x80000000 - 0x1000;
  for (uint64_t i = 0; i < 256; ++i) {
    memory.Write64(PhysAddr(kLastPage + i * 16), Global().qw0);
  }
  EnableQueue(kLastPage | 1);
  Tail(0x1010);
  EXPECT_EQ(ErrorInfo(), Iqei::kFetchError);
  EXPECT_EQ(Head(), 0x1000u);
  EXPECT_THAT(backend.offered[0], SizeIs(256));
}

TEST_F(QueueTest, Iqei5WideDescriptorsWithoutScalableMode) {
  EnableQueue(kRing.value() | vtd::iqa::Dw::kMask);
  PutWide(0, Global());
  Tail(0x20);
  EXPECT_EQ(ErrorInfo(), Iqei::kBadWidth);
  EXPECT_EQ(Head(), 0u);
}

TEST_F(QueueTest, Iqei7TableModeThatIsNotLegacy) {
  unit->Write64(vtd::kRtaddr, 0x400000 | vtd::rtaddr::Ttm::Make(2));
  unit->Write32(vtd::kGcmd, vtd::gcmd::Srtp::kMask);
  EnableQueue();
  Put(0, Global());
  Tail(0x10);
  EXPECT_EQ(ErrorInfo(), Iqei::kBadTtm);
  EXPECT_THAT(backend.offered, IsEmpty());
}

TEST_F(QueueTest, ErrorOfTheBackendIsTheQueuesError) {
  EnableQueue();
  Put(0, Wait(1, kStatus));
  Put(1, Global());
  Put(2, Wait(2, kStatus + 4));
  backend.answer = UnitBackend::Outcome{1, Iqei::kReservedField};
  Tail(0x30);
  EXPECT_EQ(Head(), 0x10u);
  EXPECT_EQ(ErrorInfo(), Iqei::kReservedField);
  EXPECT_EQ(StatusWord(0), 1u);
  EXPECT_EQ(StatusWord(1), 0u);
  EXPECT_TRUE(unit->last_status().ok());
}

class WideQueueTest : public UnitTest {
 protected:
  WideQueueTest() {
    VtdUnitOptions options = DefaultOptions();
    options.caps.ecap |= kSmts;
    Make(options);
    EnableQueue(kRing.value() | vtd::iqa::Dw::kMask);
  }
};

TEST_F(WideQueueTest, HoldsHalfAsManyDescriptorsOf32Bytes) {  // 11.4.8.3: 2^(QS+7)
  for (uint32_t i = 0; i < 127; ++i) PutWide(i, Page(1, i * 0x1000ull));
  Tail(127 * 32);
  EXPECT_EQ(Head(), 127u * 32);
  EXPECT_THAT(backend.offered[0], SizeIs(127));
  PutWide(127, Wait(4));
  Tail(0);
  EXPECT_EQ(Head(), 0u);
  EXPECT_EQ(StatusWord(), 4u);
}

TEST_F(WideQueueTest, Iqei6TailOnAHalfDescriptor) {
  PutWide(0, Global());
  Tail(0x10);
  EXPECT_EQ(ErrorInfo(), Iqei::kTailMisaligned);
  EXPECT_EQ(Head(), 0u);
}

TEST_F(WideQueueTest, UpperHalfOfALegacyTypeMustBeZero) {
  vtd::RawDescriptor d = Global();
  d.qw3 = 1;
  PutWide(0, d);
  Tail(0x20);
  EXPECT_EQ(ErrorInfo(), Iqei::kReservedField);
}

// 6.5.2.8
TEST_F(QueueTest, WaitWritesOnlyItsDword) {
  memory.Write64(kStatus, 0x1111111122222222);
  EnableQueue();
  Put(0, Wait(0x33333333, kStatus + 4));
  Tail(0x10);
  EXPECT_EQ(*memory.Read64(kStatus), 0x3333333322222222u);
}

TEST_F(QueueTest, WaitWithFenceOrWithNothingIsNoError) {
  EnableQueue();
  Put(0, vtd::Encode(vtd::InvalidationWait{.fence = true, .status_address = {}}));
  Put(1, vtd::Encode(vtd::InvalidationWait{}));
  Tail(0x20);
  EXPECT_EQ(Head(), 0x20u);
  EXPECT_FALSE(QueueStopped());
  EXPECT_EQ(unit->Read32(vtd::kIcs), 0u);
}

TEST_F(QueueTest, StatusIsWrittenOnlyAfterTheBackendIsDone) {
  EnableQueue();
  Put(0, Wait(1));
  backend.during = [this] { EXPECT_EQ(StatusWord(), 0u); };
  Tail(0x10);
  EXPECT_EQ(StatusWord(), 1u);
}

TEST_F(QueueTest, CompletionInterruptOncePerServicedStatus) {  // 11.4.8.4, 11.4.8.5
  EnableQueue();
  unit->Write32(vtd::kIectl, 0);
  Put(0, WaitInterrupt());
  Put(1, WaitInterrupt());
  Tail(0x20);
  EXPECT_EQ(invalidation_events, 1);
  EXPECT_EQ(unit->Read32(vtd::kIcs), 1u);
  unit->Write32(vtd::kIcs, 1);
  EXPECT_EQ(unit->Read32(vtd::kIcs), 0u);
  Put(2, WaitInterrupt());
  Tail(0x30);
  EXPECT_EQ(invalidation_events, 2);
}

TEST_F(QueueTest, MaskedCompletionInterruptIsPendingUntilUnmaskedOrServiced) {
  EnableQueue();
  Put(0, WaitInterrupt());
  Tail(0x10);
  EXPECT_EQ(unit->Read32(vtd::kIectl), 0xc0000000u);
  EXPECT_EQ(invalidation_events, 0);
  unit->Write32(vtd::kIectl, 0);
  EXPECT_EQ(invalidation_events, 1);
  EXPECT_EQ(unit->Read32(vtd::kIectl), 0u);

  unit->Write32(vtd::kIcs, 1);
  unit->Write32(vtd::kIectl, 0x80000000);
  Put(1, WaitInterrupt());
  Tail(0x20);
  EXPECT_EQ(unit->Read32(vtd::kIectl), 0xc0000000u);
  unit->Write32(vtd::kIcs, 1);
  EXPECT_EQ(unit->Read32(vtd::kIectl), 0x80000000u);
  unit->Write32(vtd::kIectl, 0);
  EXPECT_EQ(invalidation_events, 1);
}

TEST_F(QueueTest, HandlerThatRingsTheDoorbellIsServedByTheSameRun) {
  VtdUnitOptions options = DefaultOptions();
  options.invalidation_event = [this] {
    Put(1, Wait(8));
    Tail(0x20);
  };
  Make(options);
  EnableQueue();
  unit->Write32(vtd::kIectl, 0);
  Put(0, WaitInterrupt());
  Tail(0x10);
  EXPECT_EQ(Head(), 0x20u);
  EXPECT_EQ(StatusWord(), 8u);
  EXPECT_THAT(backend.offered, SizeIs(2));
}

TEST_F(QueueTest, HandlerThatMendsTheDescriptorAndClearsTheErrorResumesTheQueue) {
  VtdUnitOptions options = DefaultOptions();
  options.fault_event = [this] {
    Put(0, Wait(8));
    ClearQueueError();
  };
  Make(options);
  EnableQueue();
  unit->Write32(vtd::kFectl, 0);
  Put(0, {0, 0});
  Tail(0x10);
  EXPECT_EQ(Head(), 0x10u);
  EXPECT_EQ(StatusWord(), 8u);
  EXPECT_TRUE(unit->last_status().ok());
}

TEST_F(QueueTest, HandlerThatClearsTheErrorAndMendsNothingDoesNotLoop) {
  VtdUnitOptions options = DefaultOptions();
  options.fault_event = [this] {
    ++fault_events;
    ClearQueueError();
  };
  Make(options);
  EnableQueue();
  unit->Write32(vtd::kFectl, 0);
  Put(0, {0, 0});
  Tail(0x10);
  EXPECT_EQ(fault_events, 2);
  EXPECT_FALSE(unit->last_status().ok());
  EXPECT_EQ(Head(), 0u);
}

TEST_F(QueueTest, TransportFailureKeepsTheHeadAndOffersTheSameDescriptorsAgain) {
  EnableQueue();
  Put(0, Global());
  Put(1, Wait(6));
  backend.failure = absl::UnavailableError("gone");
  Tail(0x20);
  EXPECT_EQ(Head(), 0u);
  EXPECT_EQ(StatusWord(), 0u);
  EXPECT_FALSE(QueueStopped());
  EXPECT_EQ(unit->last_status().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(unit->Resume().code(), absl::StatusCode::kUnavailable);

  Put(0, {0, 0});  // too late: it was checked before
  Put(2, Wait(7, kStatus + 4));
  Tail(0x30);
  backend.failure = absl::OkStatus();
  EXPECT_TRUE(unit->Resume().ok());
  EXPECT_EQ(Head(), 0x30u);
  EXPECT_EQ(StatusWord(0), 6u);
  EXPECT_EQ(StatusWord(1), 7u);
  ASSERT_THAT(backend.offered, SizeIs(5));
  for (int i = 0; i < 4; ++i) EXPECT_THAT(backend.offered[i], ElementsAre(Global(), Wait(6)));
  EXPECT_THAT(backend.offered[4], ElementsAre(Wait(7, kStatus + 4)));
  EXPECT_TRUE(unit->last_status().ok());
}

TEST_F(QueueTest, DisablingWaitsForAnOutstandingBatch) {
  EnableQueue();
  Put(0, Wait(6));
  backend.failure = absl::DeadlineExceededError("late");
  Tail(0x10);
  unit->Write32(vtd::kGcmd, 0);
  EXPECT_EQ(unit->Read32(vtd::kGsts), vtd::gcmd::Qie::kMask);
  backend.failure = absl::OkStatus();
  EXPECT_TRUE(unit->Resume().ok());
  EXPECT_EQ(unit->Read32(vtd::kGsts), 0u);
  EXPECT_EQ(StatusWord(), 6u);
  EXPECT_EQ(Head(), 0u);
}

TEST_F(QueueTest, BackendThatDoesNothingIsAnInternalErrorNotALoop) {
  EnableQueue();
  Put(0, Global());
  backend.answer = UnitBackend::Outcome{};
  Tail(0x10);
  EXPECT_EQ(unit->last_status().code(), absl::StatusCode::kInternal);
  EXPECT_EQ(Head(), 0u);
}

// QEMU's departures (recorded in its iq cases; README.md of the folder).
class QuirksTest : public UnitTest {
 protected:
  QuirksTest() {
    VtdUnitOptions options = DefaultOptions();
    options.qemu_quirks = true;
    Make(options);
    EnableQueue();
  }
};

TEST_F(QuirksTest, ClearingTheErrorDoesNotResumeAndThereIsNoErrorInfo) {
  Put(0, {0, 0});
  Tail(0x10);
  EXPECT_TRUE(QueueStopped());
  EXPECT_EQ(ErrorInfo(), Iqei::kNone);
  Put(0, Wait(1));
  ClearQueueError();
  EXPECT_EQ(Head(), 0u);
  EXPECT_EQ(StatusWord(), 0u);
  Tail(0x10);
  EXPECT_EQ(Head(), 0x10u);
  EXPECT_EQ(StatusWord(), 1u);
}

TEST_F(QuirksTest, DescriptorsWithoutTheirCapabilityAreAccepted) {
  Put(0, {0x3, 0x1000});
  Put(1, {0x4, 0});
  Tail(0x20);
  EXPECT_EQ(Head(), 0x20u);
}

TEST_F(QuirksTest, DeviceTlbReservedBitsAreStillChecked) {
  Put(0, {0x0020001800000003, 0x1000});  // PFSID without ECAP.DIT
  Tail(0x10);
  EXPECT_TRUE(QueueStopped());
}

TEST_F(QuirksTest, WaitThatAsksForNothingIsAnError) {
  Put(0, vtd::Encode(vtd::InvalidationWait{}));
  Tail(0x10);
  EXPECT_TRUE(QueueStopped());
  EXPECT_EQ(Head(), 0u);
}

TEST_F(QuirksTest, DisablingIsRefusedUnlessEmptyAndTheLastWasAWait) {
  Put(0, Wait(1));
  Put(1, Global());
  Tail(0x20);
  unit->Write32(vtd::kGcmd, 0);
  EXPECT_EQ(unit->Read32(vtd::kGsts), vtd::gcmd::Qie::kMask);
  EXPECT_EQ(Head(), 0x20u);
  Put(2, Wait(2));
  Tail(0x30);
  unit->Write32(vtd::kGcmd, 0);
  EXPECT_EQ(unit->Read32(vtd::kGsts), 0u);
  EXPECT_EQ(Head(), 0u);
}

TEST_F(QuirksTest, MisalignedTailOfAWideQueueKeepsTheTailItHad) {
  VtdUnitOptions options = DefaultOptions();
  options.qemu_quirks = true;
  options.caps.ecap |= kSmts;
  Make(options);
  EnableQueue(kRing.value() | vtd::iqa::Dw::kMask);
  PutWide(0, Global());
  Tail(0x10);
  EXPECT_TRUE(QueueStopped());
  ClearQueueError();
  Tail(0x20);
  EXPECT_EQ(Head(), 0x20u);
}

TEST_F(QuirksTest, WideQueueNeedsScalableMode) {
  Put(0, Wait(1));
  Tail(0x10);
  unit->Write32(vtd::kGcmd, 0);
  unit->Write64(vtd::kIqa, kRing.value() | vtd::iqa::Dw::kMask);
  EXPECT_EQ(unit->Read64(vtd::kIqa), kRing.value());
}

}  // namespace
}  // namespace viommu
