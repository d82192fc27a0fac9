// One vIOMMU's end of the stream, against a real hypervisor service that comes and goes.
#include "guest_svc/remote_sink.h"

#include <gmock/gmock.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/server_builder.h>
#include <gtest/gtest.h>

#include "hypervisor_svc/hypervisor_server.h"
#include "iommu_core/vtd/inv_descriptor.h"
#include "svc_common/service_host.h"
#include "tests/fakes/temp_folder.h"

namespace viommu {
namespace {

using ::testing::HasSubstr;

constexpr uint64_t kRam = uint64_t{8} << 20;
constexpr absl::Duration kLong = absl::Seconds(20);
const SourceId kDevice = MakeSourceId(0, 3, 0);

class RemoteSinkTest : public ::testing::Test {
 protected:
  RemoteSinkTest() { StartHypervisor(); }

  void StartHypervisor() {
    HypervisorOptions options;
    options.host.listen = address_;
    options.host.metrics = "off";
    auto server = HypervisorServer::Start(options);
    ASSERT_TRUE(server.ok()) << server.status();
    hypervisor_ = *std::move(server);
  }
  void Connect(bool recover = true) {
    auto memory = GuestMemory::Create(folder_.File("hv.sock.mem"), kRam);
    ASSERT_TRUE(memory.ok()) << memory.status();
    memory_ = *std::move(memory);
    RemoteSinkOptions options;
    options.hypervisor = address_;
    options.caps = vtd::QemuCapabilities(39, true);
    options.recover = recover;
    options.call_timeout = absl::Seconds(2);
    sink_ = std::make_unique<RemoteSink>(
        grpc::CreateCustomChannel(address_, grpc::InsecureChannelCredentials(),
                                  ClientChannelArguments()),
        *memory_, metrics_, options);
    ASSERT_TRUE(sink_->Open().ok());
  }
  absl::StatusOr<uint64_t> PostWait() {
    const vtd::RawDescriptor wait = vtd::Encode(vtd::InvalidationWait{});
    return sink_->Post({&wait, 1}, {}, TableClaim::kNone);
  }
  // A write at 0x7000 of a device behind an empty root table: blocked, one fault record.
  void MakeFault() {
    ASSERT_TRUE(sink_->UpdateDevice(kDevice, true, false).ok());
    ASSERT_TRUE(sink_->UpdateRegisters({PhysAddr(0x3000), true}).ok());
    std::byte data[8] = {};
    uint32_t recorded = 0;
    const auto result = Session()->Dma(kDevice, Iova(0x7000), true, data, &recorded);
    ASSERT_TRUE(result.ok());
    EXPECT_EQ(result->reason, vtd::FaultReason::kRootNotPresent);  // 7.1.3
    EXPECT_EQ(recorded, 1u);
  }
  // The hypervisor's only session.
  std::shared_ptr<GuestSession> Session() {
    const auto sessions = hypervisor_->registry().ListAll();
    EXPECT_EQ(sessions.size(), 1u);
    return sessions.empty() ? nullptr : sessions.front();
  }

  TempFolder folder_;
  const std::string address_ = "unix:" + folder_.File("hv.sock");
  GuestMetrics metrics_;
  std::unique_ptr<HypervisorServer> hypervisor_;
  std::unique_ptr<GuestMemory> memory_;
  std::unique_ptr<RemoteSink> sink_;
};

TEST_F(RemoteSinkTest, ABatchComesBackWithItsCost) {
  Connect();
  const auto ticket = PostWait();
  ASSERT_TRUE(ticket.ok());
  const auto done = sink_->Await(*ticket, kLong);
  ASSERT_TRUE(done.ok()) << done.status();
  EXPECT_EQ(done->consumed, 1u);
  EXPECT_EQ(done->cost.descriptors, 1u);
  EXPECT_TRUE(sink_->UpdateDevice(MakeSourceId(0, 3, 0), true, false).ok());
  EXPECT_EQ(Session()->stats().devices, 1u);
  EXPECT_TRUE(sink_->Close().ok());
  EXPECT_TRUE(hypervisor_->registry().ListAll().empty());
  EXPECT_TRUE(absl::IsUnavailable(PostWait().status()));
}

TEST_F(RemoteSinkTest, TicketsMayBeAwaitedInAnyOrder) {
  Connect();
  const auto first = PostWait();
  const auto second = PostWait();
  ASSERT_TRUE(first.ok() && second.ok());
  EXPECT_TRUE(sink_->Await(*second, kLong).ok());
  const auto done = sink_->Await(*first, kLong);
  ASSERT_TRUE(done.ok());
  EXPECT_EQ(done->cost.descriptors, 1u);
}

TEST_F(RemoteSinkTest, WithoutAHypervisorAnAwaitEndsAtItsTimeoutAndSaysWhatToDo) {
  Connect();
  hypervisor_.reset();
  const auto ticket = PostWait();
  ASSERT_TRUE(ticket.ok());
  const auto begin = std::chrono::steady_clock::now();
  const absl::Status status = sink_->Await(*ticket, absl::Milliseconds(200)).status();
  EXPECT_TRUE(absl::IsDeadlineExceeded(status)) << status;
  EXPECT_THAT(status.message(), HasSubstr("is hypervisor_svc running"));
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(5));
  EXPECT_FALSE(sink_->state().connected);
}

TEST_F(RemoteSinkTest, ARestartedHypervisorGetsTheWholeStateAndTheMemory) {
  Connect();
  ASSERT_TRUE(sink_->UpdateDevice(MakeSourceId(0, 3, 0), true, false).ok());
  ASSERT_TRUE(sink_->UpdateDevice(MakeSourceId(0, 4, 0), true, false).ok());
  ASSERT_TRUE(sink_->UpdateDevice(MakeSourceId(0, 4, 0), false, false).ok());
  ASSERT_TRUE(sink_->UpdateRegisters({PhysAddr(0x3000), true}).ok());
  ASSERT_TRUE(memory_->Write64(PhysAddr(0x5008), 0xabcdef));
  const std::string token = memory_->token();
  const uint64_t* const in_place = memory_->PageInPlace(PhysAddr(0x5000));
  hypervisor_.reset();
  const auto ticket = PostWait();
  ASSERT_TRUE(ticket.ok());
  EXPECT_TRUE(absl::IsDeadlineExceeded(sink_->Await(*ticket, absl::Milliseconds(20)).status()));
  StartHypervisor();
  const auto done = sink_->Await(*ticket, kLong);
  ASSERT_TRUE(done.ok()) << done.status();
  EXPECT_EQ(done->consumed, 1u);
  EXPECT_EQ(Session()->stats().devices, 1u);
  EXPECT_EQ(Session()->info().id, sink_->state().session_id);
  EXPECT_NE(memory_->token(), token);
  EXPECT_EQ(memory_->Read64(PhysAddr(0x5008)), 0xabcdefu);
  // Pointers into the memory stay good, and show what the new hypervisor sees.
  EXPECT_EQ(memory_->PageInPlace(PhysAddr(0x5000)), in_place);
  ASSERT_TRUE(memory_->Write64(PhysAddr(0x5010), 77));
  EXPECT_EQ(in_place[2], 77u);
  EXPECT_EQ(
      hypervisor_->registry().counters().resyncs[v1::ResetRequired::REASON_UNKNOWN_SESSION].load(),
      1u);
}

TEST_F(RemoteSinkTest, ABrokenStreamResumesWithoutAReset) {
  Connect();
  ASSERT_TRUE(sink_->UpdateDevice(MakeSourceId(0, 3, 0), true, false).ok());
  const auto session = Session();
  // Another stream of the same guest takes the session: this one is fenced and comes back.
  const std::string id = session->info().id;
  {
    auto stub = v1::HypervisorService::NewStub(
        grpc::CreateChannel(address_, grpc::InsecureChannelCredentials()));
    grpc::ClientContext context;
    auto call = stub->Invalidate(&context);
    v1::InvalidateRequest request;
    request.mutable_open()->set_session_id(id);
    request.mutable_open()->set_guest_instance_id(session->info().guest_instance_id);
    request.mutable_open()->set_stream_epoch(2);
    request.mutable_open()->set_oldest_retained_sequence(2);
    request.mutable_open()->set_next_sequence(2);
    call->Write(request);
    v1::InvalidateResponse response;
    ASSERT_TRUE(call->Read(&response));
    context.TryCancel();
    call->Finish();
  }
  const auto ticket = PostWait();
  ASSERT_TRUE(ticket.ok());
  const auto done = sink_->Await(*ticket, kLong);
  ASSERT_TRUE(done.ok()) << done.status();
  EXPECT_EQ(Session()->info().id, id);
  EXPECT_EQ(Session()->stats().devices, 1u);
  EXPECT_EQ(session->progress().completed_sequence, 2u);
}

TEST_F(RemoteSinkTest, WhatWaitsIsBounded) {
  Connect();
  hypervisor_.reset();
  size_t posted = 0;
  while (PostWait().ok() && posted < 1000) ++posted;
  EXPECT_EQ(posted, HypervisorOptions().max_outstanding_batches);
}

TEST_F(RemoteSinkTest, ARunsSessionEndsWithItsStream) {
  Connect(/*recover=*/false);
  hypervisor_.reset();
  const auto ticket = PostWait();
  const absl::Status status = ticket.ok() ? sink_->Await(*ticket, kLong).status() : ticket.status();
  EXPECT_TRUE(absl::IsUnavailable(status)) << status;
  StartHypervisor();
  EXPECT_TRUE(absl::IsUnavailable(PostWait().status()));
}

TEST_F(RemoteSinkTest, FaultsOutsideACompletionArriveByThemselves) {
  Connect();
  ASSERT_NO_FATAL_FAILURE(MakeFault());
  const std::vector<vtd::FaultRecord> faults = sink_->Poll(absl::Seconds(5));
  ASSERT_EQ(faults.size(), 1u);
  EXPECT_EQ(faults[0].source_id, kDevice);
  EXPECT_EQ(faults[0].page, Iova(0x7000));
  EXPECT_FALSE(faults[0].read);
}

TEST_F(RemoteSinkTest, FaultsThatCameBesideAnAwaitedCompletionAreNotWaitedFor) {
  Connect();
  ASSERT_NO_FATAL_FAILURE(MakeFault());
  const auto ticket = PostWait();
  ASSERT_TRUE(ticket.ok());
  ASSERT_TRUE(sink_->Await(*ticket, kLong).ok());
  const auto begin = std::chrono::steady_clock::now();
  EXPECT_EQ(sink_->Poll(kLong).size(), 1u);
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(10));
}

// A hypervisor whose first stream breaks with a batch unanswered.
class BreakingHypervisor final : public v1::HypervisorService::Service {
 public:
  grpc::Status Invalidate(
      grpc::ServerContext*,
      grpc::ServerReaderWriter<v1::InvalidateResponse, v1::InvalidateRequest>* stream) override {
    v1::InvalidateRequest request;
    if (!stream->Read(&request)) return grpc::Status::CANCELLED;
    v1::InvalidateResponse response;
    response.mutable_opened()->set_session_id("session");
    response.mutable_opened()->set_resume_sequence(1);
    response.mutable_opened()->mutable_limits()->set_max_outstanding_batches(8);
    stream->Write(response);
    while (stream->Read(&request) && request.has_batch()) {
      batches.push_back(request.batch());
      if (batches.size() == 1) return {grpc::StatusCode::UNAVAILABLE, "broken"};
      response.mutable_completion()->set_sequence(request.batch().sequence());
      stream->Write(response);
    }
    return grpc::Status::OK;
  }

  std::vector<v1::InvalidationBatch> batches;
};

// The guest may have gone on before a batch is sent again.
TEST_F(RemoteSinkTest, NothingIsClaimedOfTheTablesInWhatIsSentAgain) {
  hypervisor_.reset();
  BreakingHypervisor hypervisor;
  grpc::ServerBuilder builder;
  builder.AddListeningPort(address_, grpc::InsecureServerCredentials());
  builder.RegisterService(&hypervisor);
  const std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  memory_ = *GuestMemory::CreateRemote(kRam);
  RemoteSinkOptions options;
  options.hypervisor = address_;
  RemoteSink sink(grpc::CreateCustomChannel(address_, grpc::InsecureChannelCredentials(),
                                            ClientChannelArguments()),
                  *memory_, metrics_, options);
  ASSERT_TRUE(sink.Open().ok());
  const vtd::RawDescriptor wait = vtd::Encode(vtd::InvalidationWait{});
  for (const TableClaim claim : {TableClaim::kSettled, TableClaim::kQuiet, TableClaim::kNone}) {
    const auto ticket = sink.Post({&wait, 1}, {}, claim);
    ASSERT_TRUE(ticket.ok()) << ticket.status();
    EXPECT_TRUE(sink.Await(*ticket, kLong).ok());
  }
  EXPECT_TRUE(sink.Close().ok());
  server->Shutdown();
  const auto claims = [](const v1::InvalidationBatch& batch) {
    return std::pair(batch.quiet(), batch.settled());
  };
  ASSERT_EQ(hypervisor.batches.size(), 4u);
  EXPECT_EQ(claims(hypervisor.batches[0]), std::pair(true, true));
  EXPECT_EQ(claims(hypervisor.batches[1]), std::pair(false, false));
  EXPECT_EQ(claims(hypervisor.batches[2]), std::pair(true, false));
  EXPECT_EQ(claims(hypervisor.batches[3]), std::pair(false, false));
}

}  // namespace
}  // namespace viommu
