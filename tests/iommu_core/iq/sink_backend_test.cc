// A virtual unit whose doorbells go to a sink: what is sent once, what is awaited again, what is
// sent again.
#include "iommu_core/iq/sink_backend.h"

#include <memory>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "iommu_core/mem/sparse_memory.h"
#include "tests/fakes/recording_sink.h"
#include "tests/iommu_core/iq/unit_fixture.h"

namespace viommu {
namespace {

using ::testing::ElementsAre;

// Remembers which tickets were awaited and for how long, and can stop on a bad descriptor.
class TicketSink final : public InvalidationSink {
 public:
  absl::StatusOr<uint64_t> Post(std::span<const vtd::RawDescriptor> descriptors,
                                std::span<const DeviceTouch> touches, TableClaim claim) override {
    return inner.Post(descriptors, touches, claim);
  }
  absl::StatusOr<SinkCompletion> Await(uint64_t ticket, absl::Duration timeout) override {
    awaited.push_back(ticket);
    last_timeout = timeout;
    auto done = inner.Await(ticket, timeout);
    if (done.ok() && error != vtd::Iqei::kNone) {
      done->consumed = consumed;
      done->error = std::exchange(error, vtd::Iqei::kNone);
    }
    return done;
  }
  absl::Status UpdateRegisters(const UnitRegisters& registers) override {
    return inner.UpdateRegisters(registers);
  }
  absl::Status UpdateDevice(SourceId, bool, bool) override { return absl::OkStatus(); }

  RecordingSink inner;
  std::vector<uint64_t> awaited;
  absl::Duration last_timeout;
  uint32_t consumed = 0;
  vtd::Iqei error = vtd::Iqei::kNone;
};

class SinkBackendTest : public UnitTest {
 protected:
  SinkBackendTest() {
    unit = std::make_unique<VtdUnit>(DefaultOptions(), memory, sink_backend);
    EnableQueue();
    Put(0, Page(7, 0x1000));
    Put(1, Wait(1));
  }
  const std::vector<RecordingSink::Doorbell>& doorbells() const { return sink.inner.doorbells; }

  TicketSink sink;
  SinkBackend sink_backend{sink};
};

// One doorbell, one message, its wait included; the status word comes after the completion.
TEST_F(SinkBackendTest, DoorbellIsOneMessage) {
  Tail(32);
  ASSERT_EQ(doorbells().size(), 1u);
  EXPECT_THAT(doorbells()[0].raw, ElementsAre(Page(7, 0x1000), Wait(1)));
  EXPECT_EQ(Head(), 32u);
  EXPECT_EQ(StatusWord(), 1u);
  EXPECT_EQ(sink.last_timeout, absl::Seconds(10));
}

TEST_F(SinkBackendTest, CompletionIsTakenOnce) {
  sink.inner.cost.ptes_read = 5;
  EXPECT_FALSE(sink_backend.TakeCompletion());
  Tail(32);
  const auto done = sink_backend.TakeCompletion();
  ASSERT_TRUE(done);
  EXPECT_EQ(done->consumed, 2u);
  EXPECT_EQ(done->cost.ptes_read, 5u);
  EXPECT_FALSE(sink_backend.TakeCompletion());
}

// What SetNext gave goes with one doorbell that is sent, and with no other.
TEST_F(SinkBackendTest, TouchesGoWithTheNextMessageSent) {
  sink_backend.SetNext({{SourceId(0x18), Iova(0x1000), true}}, TableClaim::kSettled);
  sink.inner.post_status = absl::UnavailableError("no stream");
  Tail(32);
  EXPECT_TRUE(doorbells().empty());
  sink.inner.post_status = absl::OkStatus();
  ASSERT_TRUE(unit->Resume().ok());
  ASSERT_EQ(doorbells().size(), 1u);
  EXPECT_EQ(doorbells()[0].touches.size(), 1u);
  EXPECT_EQ(doorbells()[0].claim, TableClaim::kSettled);

  Put(2, Wait(2));
  Tail(48);
  ASSERT_EQ(doorbells().size(), 2u);
  EXPECT_TRUE(doorbells()[1].touches.empty());
  EXPECT_EQ(doorbells()[1].claim, TableClaim::kNone);
}

// Not sent: the unit keeps its head, writes no status, sets no error bit, and sends it on Resume.
TEST_F(SinkBackendTest, UnavailablePostSendsNothing) {
  sink.inner.post_status = absl::UnavailableError("no stream");
  Tail(32);
  EXPECT_TRUE(absl::IsUnavailable(unit->last_status()));
  EXPECT_EQ(Head(), 0u);
  EXPECT_EQ(StatusWord(), 0u);
  EXPECT_FALSE(QueueStopped());
  EXPECT_TRUE(sink.awaited.empty());
  sink.inner.post_status = absl::OkStatus();
  EXPECT_TRUE(unit->Resume().ok());
  EXPECT_EQ(StatusWord(), 1u);
}

// Sent but not complete in time: awaited again, never sent twice.
TEST_F(SinkBackendTest, TimeoutAwaitsTheSameTicket) {
  sink_backend.set_timeout(absl::Milliseconds(3));
  sink.inner.await_status = absl::DeadlineExceededError("slow");
  Tail(32);
  EXPECT_TRUE(absl::IsDeadlineExceeded(unit->last_status()));
  EXPECT_EQ(sink.last_timeout, absl::Milliseconds(3));
  EXPECT_TRUE(absl::IsDeadlineExceeded(unit->Resume()));
  EXPECT_EQ(Head(), 0u);
  EXPECT_EQ(StatusWord(), 0u);
  sink.inner.await_status = absl::OkStatus();
  EXPECT_TRUE(unit->Resume().ok());
  EXPECT_EQ(doorbells().size(), 1u);
  EXPECT_THAT(sink.awaited, ElementsAre(1, 1, 1));
  EXPECT_EQ(Head(), 32u);
  EXPECT_EQ(StatusWord(), 1u);
  // The next doorbell has a ticket of its own.
  Put(2, Wait(2));
  Tail(48);
  EXPECT_THAT(sink.awaited, ElementsAre(1, 1, 1, 2));
}

// Refused after it was sent: the ticket is over, so waiting for it would never end. It is sent
// anew.
TEST_F(SinkBackendTest, RefusedTicketIsNotAwaitedAgain) {
  for (const absl::Status& refusal :
       {absl::UnavailableError("the session is over"), absl::ResourceExhaustedError("a limit")}) {
    SCOPED_TRACE(refusal.ToString());
    sink.awaited.clear();
    const size_t sent = doorbells().size();
    const uint64_t head = Head();
    sink.inner.await_status = refusal;
    Put(static_cast<uint32_t>(head / 16), Wait(9));
    Tail(head + 16);
    EXPECT_EQ(unit->last_status(), refusal);
    EXPECT_EQ(Head(), head);
    sink.inner.await_status = absl::OkStatus();
    EXPECT_TRUE(unit->Resume().ok());
    EXPECT_EQ(Head(), head + 16);
    ASSERT_EQ(doorbells().size(), sent + 2);
    EXPECT_EQ(doorbells()[sent].raw, doorbells()[sent + 1].raw);
    EXPECT_THAT(sink.awaited, ElementsAre(sent + 1, sent + 2));
  }
}

// The hypervisor's verdict on a descriptor is the guest's queue error (6.5.2.10).
TEST_F(SinkBackendTest, RefusedDescriptorBecomesQueueError) {
  sink.consumed = 1;
  sink.error = vtd::Iqei::kReservedField;
  Tail(32);
  EXPECT_TRUE(unit->last_status().ok());
  EXPECT_EQ(Head(), 16u);
  EXPECT_TRUE(QueueStopped());
  EXPECT_EQ(ErrorInfo(), vtd::Iqei::kReservedField);
  EXPECT_EQ(StatusWord(), 0u);
  ClearQueueError();
  EXPECT_EQ(Head(), 32u);
  EXPECT_EQ(StatusWord(), 1u);
}

TEST_F(SinkBackendTest, RegistersAreForwarded) {
  unit->Write64(vtd::kRtaddr, 0x5000);
  unit->Write32(vtd::kGcmd, vtd::gcmd::Srtp::kMask | vtd::gcmd::Qie::kMask);
  unit->Write32(vtd::kGcmd, vtd::gcmd::Te::kMask | vtd::gcmd::Qie::kMask);
  EXPECT_EQ(sink.inner.registers, (UnitRegisters{PhysAddr(0x5000), true}));
}

}  // namespace
}  // namespace viommu
