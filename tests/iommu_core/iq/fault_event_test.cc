// Fault recording and fault events, VT-d 5.10 sections 7.2, 7.3 and 11.4.7.
#include "unit_fixture.h"

namespace viommu {
namespace {

constexpr uint32_t kPfo = vtd::fsts::Pfo::kMask;
constexpr uint32_t kPpf = vtd::fsts::Ppf::kMask;
constexpr uint32_t kIqe = vtd::fsts::Iqe::kMask;
constexpr uint64_t kF = vtd::FaultRecord::F::kMask;

vtd::FaultRecord Fault(uint16_t sid, uint64_t page = 0x5000) {
  return {SourceId(sid), Iova(page), vtd::FaultReason::kReadDenied, true};
}

// Three records at 0x220, 0x230, 0x240.
class FaultTest : public UnitTest {
 protected:
  FaultTest() {
    VtdUnitOptions options = DefaultOptions();
    options.caps.cap = vtd::cap::Nfr::Set(options.caps.cap, 2);
    Make(options);
  }
  uint64_t RecordHi(uint32_t index) { return unit->Read64(0x228 + 16 * index); }
  void ClearRecord(uint32_t index) { unit->Write64(0x228 + 16 * index, kF); }
  uint32_t FirstRecord() { return static_cast<uint32_t>(vtd::fsts::Fri::Get(Fsts())); }
};

TEST_F(FaultTest, RecordCarriesPageReasonSourceAndType) {  // 11.4.7.6
  unit->RecordFault(Fault(0x4200, 0x7000));
  EXPECT_EQ(unit->Read64(0x220), 0x7000u);
  EXPECT_EQ(RecordHi(0), kF | 1ull << 62 | 6ull << 32 | 0x4200);
  EXPECT_EQ(Fsts(), kPpf);
}

TEST_F(FaultTest, WritingOnesClearsOnlyTheFaultBit) {
  unit->RecordFault(Fault(0x4200));
  unit->Write64(0x228, ~uint64_t{0});
  EXPECT_EQ(RecordHi(0), 1ull << 62 | 6ull << 32 | 0x4200);
}

TEST_F(FaultTest, RecordsAreUsedInTurnAndTheIndexStaysOnTheFirst) {
  unit->RecordFault(Fault(1));
  unit->RecordFault(Fault(2));
  EXPECT_EQ(FirstRecord(), 0u);
  ClearRecord(0);
  EXPECT_EQ(Fsts() & kPpf, kPpf) << "record 1 is still pending";
  ClearRecord(1);
  EXPECT_EQ(Fsts() & kPpf, 0u);
  unit->RecordFault(Fault(3));
  EXPECT_EQ(FirstRecord(), 2u);
  EXPECT_EQ(RecordHi(2) & 0xffff, 3u);
  unit->RecordFault(Fault(4));  // wraps
  EXPECT_EQ(RecordHi(0), Fault(4).hi());
}

TEST_F(FaultTest, SameSourceIsCompressedWhilePending) {  // 7.2.1
  unit->RecordFault(Fault(1, 0x1000));
  unit->RecordFault(Fault(1, 0x2000));
  EXPECT_EQ(RecordHi(1), 0u);
  EXPECT_EQ(unit->Read64(0x220), 0x1000u);
  ClearRecord(0);
  unit->RecordFault(Fault(1, 0x2000));
  EXPECT_EQ(unit->Read64(0x230), 0x2000u);
}

TEST_F(FaultTest, OverflowStopsRecordingUntilCleared) {
  for (uint16_t sid = 1; sid <= 4; ++sid) unit->RecordFault(Fault(sid));
  EXPECT_EQ(Fsts() & (kPfo | kPpf), kPfo | kPpf);
  ClearRecord(0);
  unit->RecordFault(Fault(5));
  EXPECT_EQ(RecordHi(0), Fault(1).hi() & ~kF) << "nothing is recorded while PFO is set";
  unit->Write32(vtd::kFsts, kPfo);
  EXPECT_EQ(Fsts() & kPfo, 0u);
  unit->RecordFault(Fault(5));
  EXPECT_EQ(RecordHi(0), Fault(5).hi());
}

TEST_F(FaultTest, OneEventUntilEverythingIsServiced) {  // 7.3
  unit->Write32(vtd::kFectl, 0);
  unit->RecordFault(Fault(1));
  unit->RecordFault(Fault(2));
  EXPECT_EQ(fault_events, 1);
  ClearRecord(0);
  unit->RecordFault(Fault(3));
  EXPECT_EQ(fault_events, 1);
  ClearRecord(1);
  ClearRecord(2);
  unit->RecordFault(Fault(4));
  EXPECT_EQ(fault_events, 2);
}

TEST_F(FaultTest, QueueErrorMakesAnEventUnlessAFaultIsPending) {
  unit->Write32(vtd::kFectl, 0);
  EnableQueue();
  Put(0, {0, 0});
  Tail(0x10);
  EXPECT_EQ(fault_events, 1);
  unit->RecordFault(Fault(1));
  EXPECT_EQ(fault_events, 1);
  EXPECT_EQ(Fsts(), kIqe | kPpf);

  Put(0, Global());
  ClearQueueError();
  Put(1, {0, 0});
  Tail(0x20);
  EXPECT_EQ(Fsts(), kIqe | kPpf);
  EXPECT_EQ(fault_events, 1) << "PPF was still set";
}

TEST_F(FaultTest, MaskedEventIsPendingAndSentOnUnmasking) {  // 11.4.7.2
  unit->RecordFault(Fault(1));
  EXPECT_EQ(fault_events, 0);
  EXPECT_EQ(unit->Read32(vtd::kFectl), 0xc0000000u);
  unit->Write32(vtd::kFectl, 0);
  EXPECT_EQ(fault_events, 1);
  EXPECT_EQ(unit->Read32(vtd::kFectl), 0u);
}

TEST_F(FaultTest, ServicingEveryStatusDropsThePendingEvent) {
  unit->RecordFault(Fault(1));
  EnableQueue();
  Put(0, {0, 0});
  Tail(0x10);
  ClearRecord(0);
  EXPECT_EQ(unit->Read32(vtd::kFectl), 0xc0000000u) << "IQE is still set";
  Put(0, Global());
  ClearQueueError();
  EXPECT_EQ(unit->Read32(vtd::kFectl), 0x80000000u);
  unit->Write32(vtd::kFectl, 0);
  EXPECT_EQ(fault_events, 0);
}

TEST_F(FaultTest, QuirkHasOneRecordWhateverNfrSays) {
  VtdUnitOptions options = DefaultOptions();
  options.caps.cap = vtd::cap::Nfr::Set(options.caps.cap, 2);
  options.qemu_quirks = true;
  Make(options);
  unit->RecordFault(Fault(1));
  unit->RecordFault(Fault(2));
  EXPECT_EQ(Fsts(), kPfo | kPpf);
  EXPECT_EQ(unit->Read64(0x238), 0u);
}

}  // namespace
}  // namespace viommu
