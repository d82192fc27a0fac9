// The session protocol over a real server: what resumes, what is fenced, what is refused.
#include <gmock/gmock.h>
#include <grpcpp/create_channel.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <functional>
#include <thread>

#include "hypervisor_svc/hypervisor_server.h"
#include "iommu_core/vtd/inv_descriptor.h"
#include "svc_common/conversions.h"
#include "svc_common/memory_channel.h"
#include "tests/fakes/temp_folder.h"

namespace viommu {
namespace {

using ::testing::HasSubstr;

constexpr uint64_t kRam = uint64_t{1} << 20;

bool Eventually(const std::function<bool()>& condition) {
  for (int i = 0; i < 1000; ++i) {
    if (condition()) return true;
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  return false;
}

v1::InvalidateRequest Batch(uint64_t sequence, const std::vector<vtd::RawDescriptor>& descriptors) {
  v1::InvalidateRequest request;
  request.mutable_batch()->set_sequence(sequence);
  for (const vtd::RawDescriptor& d : descriptors) {
    request.mutable_batch()->add_descriptor_words(d.qw0);
    request.mutable_batch()->add_descriptor_words(d.qw1);
  }
  return request;
}

const vtd::RawDescriptor kWait = vtd::Encode(vtd::InvalidationWait{});
const vtd::RawDescriptor kGlobal = vtd::Encode(vtd::IotlbInvalidate{});

// One Invalidate call from the guest's side.
class Stream {
 public:
  explicit Stream(v1::HypervisorService::Stub& stub) {
    context_.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(20));
    call_ = stub.Invalidate(&context_);
  }
  ~Stream() {
    if (finished_) return;
    context_.TryCancel();
    call_->Finish();
  }

  void Send(const v1::InvalidateRequest& request) { call_->Write(request); }
  v1::InvalidateResponse Next() {
    v1::InvalidateResponse response;
    EXPECT_TRUE(call_->Read(&response)) << "the stream ended";
    return response;
  }
  absl::Status End() {
    v1::InvalidateResponse ignored;
    while (call_->Read(&ignored)) {
    }
    finished_ = true;
    return FromGrpcStatus(call_->Finish());
  }

 private:
  grpc::ClientContext context_;
  std::unique_ptr<grpc::ClientReaderWriter<v1::InvalidateRequest, v1::InvalidateResponse>> call_;
  bool finished_ = false;
};

// A session whose oracle finds what the test says.
class DoubtfulSession final : public HypervisorSession {
 public:
  DoubtfulSession(std::unique_ptr<HypervisorSession> real, std::shared_ptr<std::atomic<int>> wrong)
      : real_(std::move(real)), wrong_(std::move(wrong)) {}

  absl::Status AddDevice(SourceId sid, bool ats) override { return real_->AddDevice(sid, ats); }
  absl::Status RemoveDevice(SourceId sid) override { return real_->RemoveDevice(sid); }
  absl::Status UpdateRegisters(const UnitRegisters& r) override {
    return real_->UpdateRegisters(r);
  }
  SinkCompletion Apply(std::span<const vtd::RawDescriptor> descriptors,
                       std::span<const DeviceTouch> touches, TableClaim claim) override {
    SinkCompletion done = real_->Apply(descriptors, touches, claim);
    done.cost.verified_pages = 10;
    done.cost.shadow_mismatches = static_cast<uint64_t>(wrong_->load());
    return done;
  }
  DmaResult Dma(SourceId sid, Iova iova, bool write, std::span<std::byte> data,
                bool probe) override {
    return real_->Dma(sid, iova, write, data, probe);
  }
  absl::StatusOr<std::vector<LeafMapping>> FlattenShadow(SourceId sid) const override {
    return real_->FlattenShadow(sid);
  }
  uint64_t VerifyAll() override { return real_->VerifyAll(); }
  SessionStats stats() const override { return real_->stats(); }
  std::vector<vtd::FaultRecord> TakeFaults() override { return real_->TakeFaults(); }

 private:
  const std::unique_ptr<HypervisorSession> real_;
  const std::shared_ptr<std::atomic<int>> wrong_;  // pages that differ
};

class SessionTest : public ::testing::Test {
 protected:
  void StartServer(
      const std::function<void(HypervisorOptions&)>& change = [](auto&) {},
      SessionRegistry::CoreFactory factory = &HypervisorSession::Create) {
    server_.reset();
    HypervisorOptions options;
    options.host.listen = "unix:" + folder_.File("hv.sock");
    options.host.metrics = "off";
    change(options);
    auto server = HypervisorServer::Start(options, std::move(factory));
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
    auto memory = GrantedMemory::Request(server_->memory_socket(), kRam);
    ASSERT_TRUE(memory.ok()) << memory.status();
    memory_ = *std::move(memory);
    stub_ = v1::HypervisorService::NewStub(
        grpc::CreateChannel(options.host.listen, grpc::InsecureChannelCredentials()));
  }
  void SetUp() override { StartServer(); }

  v1::InvalidateRequest Open(const std::string& session, uint64_t epoch, uint64_t oldest = 1,
                             uint64_t next = 1) {
    v1::InvalidateRequest request;
    v1::OpenSession* open = request.mutable_open();
    open->set_session_id(session);
    open->set_guest_instance_id("guest-a");
    open->set_stream_epoch(epoch);
    open->set_oldest_retained_sequence(oldest);
    open->set_next_sequence(next);
    open->set_guest_ram_bytes(kRam);
    open->set_memory_kind(v1::GUEST_MEMORY_KIND_SHARED);
    open->set_memory_token(memory_->token());
    const vtd::Capabilities caps = vtd::QemuCapabilities(39, true);
    open->set_guest_cap(caps.cap);
    open->set_guest_ecap(caps.ecap);
    open->set_guest_haw_bits(39);
    return request;
  }
  std::string OpenOn(Stream& stream, const std::string& session = "", uint64_t epoch = 1) {
    stream.Send(Open(session, epoch));
    const v1::InvalidateResponse response = stream.Next();
    EXPECT_TRUE(response.has_opened());
    return response.opened().session_id();
  }
  absl::StatusOr<v1::Session> GetSession(const std::string& id, bool mappings = false) {
    v1::GetSessionRequest request;
    request.set_session_id(id);
    request.set_include_mappings(mappings);
    v1::Session session;
    grpc::ClientContext context;
    const grpc::Status status = stub_->GetSession(&context, request, &session);
    if (!status.ok()) return FromGrpcStatus(status);
    return session;
  }

  TempFolder folder_;
  std::unique_ptr<HypervisorServer> server_;
  std::unique_ptr<GrantedMemory> memory_;
  std::unique_ptr<v1::HypervisorService::Stub> stub_;
};

TEST_F(SessionTest, ABatchIsAnsweredByACompletionWithItsCost) {
  Stream stream(*stub_);
  stream.Send(Open("", 1));
  const v1::InvalidateResponse opened = stream.Next();
  EXPECT_EQ(opened.opened().resume_sequence(), 1u);
  EXPECT_EQ(opened.opened().strategy(), "walk");
  EXPECT_GT(opened.opened().limits().max_outstanding_batches(), 0u);
  stream.Send(Batch(1, {kGlobal, kWait}));
  const v1::Completion completion = stream.Next().completion();
  EXPECT_EQ(completion.sequence(), 1u);
  EXPECT_EQ(completion.consumed_descriptor_count(), 2u);
  EXPECT_EQ(completion.iqei(), 0u);
  EXPECT_EQ(completion.cost().descriptor_count(), 2u);
  const auto session = GetSession(opened.opened().session_id());
  ASSERT_TRUE(session.ok());
  EXPECT_EQ(session->completed_sequence(), 1u);
  EXPECT_TRUE(session->connected());
}

TEST_F(SessionTest, ADuplicateIsAcknowledgedAgainAndNotCountedTwice) {
  Stream stream(*stub_);
  const std::string id = OpenOn(stream);
  stream.Send(Batch(1, {kWait}));
  const v1::Completion first = stream.Next().completion();
  stream.Send(Batch(1, {kWait}));
  const v1::Completion again = stream.Next().completion();
  EXPECT_EQ(again.SerializeAsString(), first.SerializeAsString());
  EXPECT_EQ(GetSession(id)->cost().descriptor_count(), 1u);
}

TEST_F(SessionTest, AGapAsksForAReplayFromTheMissingSequence) {
  Stream stream(*stub_);
  const std::string id = OpenOn(stream);
  stream.Send(Batch(1, {kWait}));
  stream.Next();
  stream.Send(Batch(3, {kWait}));
  stream.Send(Batch(4, {kWait}));  // sent before the guest heard of the gap: dropped
  const v1::InvalidateResponse reset = stream.Next();
  ASSERT_TRUE(reset.has_reset_required());
  EXPECT_EQ(reset.reset_required().reason(), v1::ResetRequired::REASON_SEQUENCE_GAP);
  EXPECT_EQ(reset.reset_required().resume_sequence(), 2u);
  stream.Send(Batch(2, {kGlobal}));
  EXPECT_EQ(stream.Next().completion().sequence(), 2u);
  EXPECT_EQ(GetSession(id)->cost().descriptor_count(), 2u);
}

TEST_F(SessionTest, AResumedStreamHearsTheCompletionsItMissed) {
  std::string id;
  {
    Stream stream(*stub_);
    id = OpenOn(stream);
    stream.Send(Batch(1, {kGlobal, kWait}));
    ASSERT_TRUE(Eventually([&] { return GetSession(id)->completed_sequence() == 1; }));
  }
  Stream stream(*stub_);
  stream.Send(Open(id, 2, /*oldest=*/1, /*next=*/2));
  const v1::InvalidateResponse opened = stream.Next();
  EXPECT_EQ(opened.opened().session_id(), id);
  EXPECT_EQ(opened.opened().resume_sequence(), 2u);
  EXPECT_FALSE(opened.opened().reset_follows());
  const v1::Completion missed = stream.Next().completion();
  EXPECT_EQ(missed.sequence(), 1u);
  EXPECT_EQ(missed.consumed_descriptor_count(), 2u);
}

TEST_F(SessionTest, AGuestThatNoLongerHoldsWhatIsMissingMustReplayItsState) {
  std::string id;
  {
    Stream stream(*stub_);
    id = OpenOn(stream);
  }
  Stream stream(*stub_);
  stream.Send(Open(id, 2, /*oldest=*/5, /*next=*/6));
  EXPECT_TRUE(stream.Next().opened().reset_follows());
  EXPECT_EQ(stream.Next().reset_required().reason(), v1::ResetRequired::REASON_SEQUENCE_GAP);
}

TEST_F(SessionTest, AHigherEpochFencesTheOlderStream) {
  Stream older(*stub_);
  const std::string id = OpenOn(older);
  Stream newer(*stub_);
  EXPECT_EQ(OpenOn(newer, id, 2), id);
  const absl::Status end = older.End();
  EXPECT_EQ(end.code(), absl::StatusCode::kAborted) << end;
  EXPECT_EQ(ErrorReason(end), "FENCED");
  newer.Send(Batch(1, {kWait}));
  EXPECT_EQ(newer.Next().completion().sequence(), 1u);
  EXPECT_TRUE(GetSession(id)->connected());  // the older one's end took nothing along

  Stream replayed(*stub_);
  replayed.Send(Open(id, 2));
  const absl::Status stale = replayed.End();
  EXPECT_EQ(stale.code(), absl::StatusCode::kAborted) << stale;
  EXPECT_EQ(ErrorReason(stale), "STALE_EPOCH");
}

TEST_F(SessionTest, AnUnknownSessionBecomesAFreshOneThatAsksForTheState) {
  Stream stream(*stub_);
  stream.Send(Open(std::string(32, 'a'), 7, 40, 41));
  const v1::InvalidateResponse opened = stream.Next();
  EXPECT_NE(opened.opened().session_id(), std::string(32, 'a'));
  EXPECT_TRUE(opened.opened().reset_follows());
  const v1::InvalidateResponse reset = stream.Next();
  EXPECT_EQ(reset.reset_required().reason(), v1::ResetRequired::REASON_UNKNOWN_SESSION);
  EXPECT_EQ(reset.reset_required().resume_sequence(), 1u);
}

// A device is blocked from the reset on, and the guest must not take that for its own doing.
TEST_F(SessionTest, AnAccessBeforeTheReplayIsDoneIsNoFaultOfTheGuest) {
  constexpr uint32_t kDevice = 0x18;
  Stream stream(*stub_);
  stream.Send(Open(std::string(32, 'a'), 7, 40, 41));
  const std::string id = stream.Next().opened().session_id();
  ASSERT_TRUE(stream.Next().has_reset_required());
  const auto access = [&]() -> absl::StatusOr<v1::DmaResponse> {
    v1::DmaRequest request;
    request.set_session_id(id);
    request.set_source_id(kDevice);
    request.set_iova(0x5000);
    request.set_read_size_bytes(8);
    v1::DmaResponse response;
    grpc::ClientContext context;
    const grpc::Status status = stub_->Dma(&context, request, &response);
    if (!status.ok()) return FromGrpcStatus(status);
    return response;
  };
  const auto expect_rebuilding = [&] {
    const absl::Status status = access().status();
    EXPECT_TRUE(absl::IsUnavailable(status)) << status;
    EXPECT_EQ(ErrorReason(status), "REBUILDING");
  };
  expect_rebuilding();
  v1::InvalidateRequest device;
  device.mutable_device()->set_sequence(1);
  device.mutable_device()->set_source_id(kDevice);
  device.mutable_device()->set_present(true);
  stream.Send(device);
  EXPECT_EQ(stream.Next().completion().sequence(), 1u);
  expect_rebuilding();
  v1::InvalidateRequest registers;
  registers.mutable_registers()->set_sequence(2);
  registers.mutable_registers()->set_root_table(0x3000);
  registers.mutable_registers()->set_translation_enabled(true);
  stream.Send(registers);
  EXPECT_EQ(stream.Next().completion().sequence(), 2u);
  expect_rebuilding();
  stream.Send(Batch(3, {kGlobal}));
  const v1::Completion done = stream.Next().completion();
  EXPECT_EQ(done.sequence(), 3u);
  EXPECT_EQ(done.faults_size(), 0);
  // The guest's root table is empty: that is its own doing.
  const auto blocked = access();
  ASSERT_TRUE(blocked.ok()) << blocked.status();
  EXPECT_EQ(blocked->recorded_fault_count(), 1u);
}

TEST_F(SessionTest, AnotherGuestCannotTakeTheSession) {
  Stream stream(*stub_);
  const std::string id = OpenOn(stream);
  v1::InvalidateRequest foreign = Open(id, 9);
  foreign.mutable_open()->set_guest_instance_id("guest-b");
  Stream thief(*stub_);
  thief.Send(foreign);
  EXPECT_EQ(thief.End().code(), absl::StatusCode::kPermissionDenied);
  stream.Send(Batch(1, {kWait}));
  EXPECT_EQ(stream.Next().completion().sequence(), 1u);
}

TEST_F(SessionTest, AMalformedMessageEndsTheStreamAndNothingOfItIsApplied) {
  const auto malformed = [&](const v1::InvalidateRequest& request,
                             absl::StatusCode code = absl::StatusCode::kInvalidArgument,
                             const std::string& reason = "MALFORMED_MESSAGE") {
    Stream stream(*stub_);
    const std::string id = OpenOn(stream);
    stream.Send(request);
    const absl::Status end = stream.End();
    EXPECT_EQ(end.code(), code) << end;
    EXPECT_EQ(ErrorReason(end), reason);
    EXPECT_EQ(GetSession(id)->completed_sequence(), 0u);
    EXPECT_EQ(GetSession(id)->cost().descriptor_count(), 0u);
  };
  v1::InvalidateRequest odd = Batch(1, {kWait});
  odd.mutable_batch()->add_descriptor_words(1);
  malformed(odd);
  v1::InvalidateRequest half_wide = Batch(1, {kWait});
  half_wide.mutable_batch()->set_wide(true);
  malformed(half_wide);
  malformed(Batch(1, std::vector<vtd::RawDescriptor>(4097, kWait)),
            absl::StatusCode::kResourceExhausted, "RESOURCE_EXHAUSTED");
  v1::InvalidateRequest touch = Batch(1, {kWait});
  touch.mutable_batch()->add_touch_words(1);
  malformed(touch);
  malformed(Batch(0, {kWait}));
  malformed(v1::InvalidateRequest());
  malformed(Open("", 3));
  v1::InvalidateRequest device;
  device.mutable_device()->set_sequence(1);
  device.mutable_device()->set_source_id(0x10000);
  malformed(device);
}

TEST_F(SessionTest, TheFirstMessageMustOpen) {
  Stream stream(*stub_);
  stream.Send(Batch(1, {kWait}));
  EXPECT_EQ(stream.End().code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(SessionTest, ABadDescriptorIsNoTransportError) {
  Stream stream(*stub_);
  OpenOn(stream);
  vtd::RawDescriptor bad;
  bad.qw0 = 0xf;  // no such type (6.5.2)
  stream.Send(Batch(1, {kWait, bad, kWait}));
  const v1::Completion completion = stream.Next().completion();
  EXPECT_EQ(completion.sequence(), 1u);
  EXPECT_NE(completion.iqei(), 0u);
  EXPECT_EQ(completion.consumed_descriptor_count(), 1u);
  stream.Send(Batch(2, {kWait}));
  EXPECT_EQ(stream.Next().completion().iqei(), 0u);
}

TEST_F(SessionTest, AShadowThatTheOracleFindsWrongIsBuiltAnew) {
  const auto wrong = std::make_shared<std::atomic<int>>(3);
  StartServer([](HypervisorOptions&) {},
              [&](SessionConfig config,
                  PhysicalMemory& memory) -> absl::StatusOr<std::unique_ptr<HypervisorSession>> {
                auto real = HypervisorSession::Create(std::move(config), memory);
                if (!real.ok()) return real.status();
                return std::make_unique<DoubtfulSession>(*std::move(real), wrong);
              });
  Stream stream(*stub_);
  const std::string session = OpenOn(stream);
  stream.Send(Batch(1, {kGlobal}));
  const v1::Completion first = stream.Next().completion();
  EXPECT_EQ(first.sequence(), 1u);
  EXPECT_EQ(first.cost().shadow_mismatches(), 3u);
  const v1::InvalidateResponse reset = stream.Next();
  ASSERT_TRUE(reset.has_reset_required());
  EXPECT_EQ(reset.reset_required().reason(), v1::ResetRequired::REASON_SHADOW_MISMATCH);
  // What the guest had sent on by then is not taken for its replay, nor the replay for that.
  stream.Send(Batch(2, {kGlobal}));
  const uint64_t resume = reset.reset_required().resume_sequence();
  EXPECT_EQ(resume, 2u + HypervisorOptions().max_outstanding_batches);
  v1::InvalidateRequest device;
  device.mutable_device()->set_sequence(resume);
  device.mutable_device()->set_source_id(0x18);
  device.mutable_device()->set_present(true);
  stream.Send(device);
  EXPECT_EQ(stream.Next().completion().sequence(), resume);
  EXPECT_EQ(GetSession(session)->device_count(), 1u);
  // The replay is no better: nothing is gained by asking for another one.
  stream.Send(Batch(resume + 1, {kGlobal}));
  EXPECT_EQ(stream.Next().completion().sequence(), resume + 1);
  // A clean verification, and the next mismatch asks again.
  wrong->store(0);
  stream.Send(Batch(resume + 2, {kGlobal}));
  EXPECT_EQ(stream.Next().completion().sequence(), resume + 2);
  wrong->store(1);
  stream.Send(Batch(resume + 3, {kGlobal}));
  EXPECT_EQ(stream.Next().completion().sequence(), resume + 3);
  EXPECT_EQ(stream.Next().reset_required().reason(), v1::ResetRequired::REASON_SHADOW_MISMATCH);
  const auto& resyncs = server_->registry().counters().resyncs;
  EXPECT_EQ(resyncs[v1::ResetRequired::REASON_SHADOW_MISMATCH].load(), 2u);
}

TEST_F(SessionTest, AStreamThatOpensNothingEnds) {
  StartServer([](HypervisorOptions& o) { o.open_timeout_ms = 50; });
  Stream silent(*stub_);
  const absl::Status end = silent.End();
  EXPECT_TRUE(absl::IsDeadlineExceeded(end)) << end;
  EXPECT_EQ(ErrorReason(end), "NOT_OPENED");
  // One that opened in time stays.
  Stream stream(*stub_);
  OpenOn(stream);
  std::this_thread::sleep_for(std::chrono::milliseconds(120));
  stream.Send(Batch(1, {kWait}));
  EXPECT_EQ(stream.Next().completion().sequence(), 1u);
}

TEST_F(SessionTest, AGuestThatSendsOnGetsFewerButCompleteAnswers) {
  Stream stream(*stub_);
  const std::string id = OpenOn(stream);
  constexpr uint64_t kBatches = 60;
  for (uint64_t i = 1; i <= kBatches; ++i) stream.Send(Batch(i, {kGlobal, kWait}));
  uint64_t sequence = 0;
  uint64_t descriptors = 0;
  while (sequence < kBatches) {
    const v1::Completion completion = stream.Next().completion();
    ASSERT_GT(completion.sequence(), sequence);
    sequence = completion.sequence();
    descriptors += completion.cost().descriptor_count();
  }
  EXPECT_EQ(sequence, kBatches);
  EXPECT_EQ(descriptors, 2 * kBatches);
  EXPECT_EQ(GetSession(id)->cost().descriptor_count(), 2 * kBatches);
}

TEST_F(SessionTest, ManySessionsAtOnce) {
  constexpr int kSessions = 40;
  std::vector<std::unique_ptr<Stream>> streams;
  for (int i = 0; i < kSessions; ++i) {
    OpenOn(*streams.emplace_back(std::make_unique<Stream>(*stub_)));
  }
  for (uint64_t round = 1; round <= 3; ++round) {
    for (const auto& stream : streams) stream->Send(Batch(round, {kGlobal, kWait}));
    for (const auto& stream : streams) {
      EXPECT_EQ(stream->Next().completion().sequence(), round);
    }
  }
  EXPECT_EQ(server_->registry().ListAll().size(), static_cast<size_t>(kSessions));
}

TEST_F(SessionTest, ADeviceThatALimitRefusesIsToldInBand) {
  StartServer([](HypervisorOptions& o) { o.session.max_devices = 1; });
  Stream stream(*stub_);
  OpenOn(stream);
  for (uint64_t i = 1; i <= 2; ++i) {
    v1::InvalidateRequest device;
    device.mutable_device()->set_sequence(i);
    device.mutable_device()->set_source_id(static_cast<uint32_t>(i) << 3);
    device.mutable_device()->set_present(true);
    stream.Send(device);
    const v1::Completion completion = stream.Next().completion();
    EXPECT_EQ(completion.sequence(), i);
    EXPECT_EQ(
        completion.status().code(),
        static_cast<int>(i == 1 ? absl::StatusCode::kOk : absl::StatusCode::kResourceExhausted));
  }
}

TEST_F(SessionTest, AGuestThatStaysAwayIsReleased) {
  StartServer([](HypervisorOptions& o) { o.session_ttl_ms = 50; });
  std::string id;
  {
    Stream stream(*stub_);
    id = OpenOn(stream);
    EXPECT_TRUE(GetSession(id).ok());
  }
  EXPECT_TRUE(Eventually([&] { return absl::IsNotFound(GetSession(id).status()); }));
  EXPECT_TRUE(server_->registry().ListAll().empty());
}

TEST_F(SessionTest, CloseEndsTheSessionAtOnce) {
  Stream stream(*stub_);
  const std::string id = OpenOn(stream);
  stream.Send(Batch(1, {kWait}));
  stream.Next();
  v1::InvalidateRequest close;
  close.mutable_close();
  stream.Send(close);
  EXPECT_TRUE(stream.End().ok());
  EXPECT_TRUE(absl::IsNotFound(GetSession(id).status()));
  EXPECT_EQ(server_->registry().retired().stats.cost.descriptors, 1u);
}

TEST_F(SessionTest, RefusedAtTheDoor) {
  StartServer([](HypervisorOptions& o) {
    o.max_sessions = 1;
    o.max_guest_ram_bytes = kRam;
    o.session.verify = Verify::kOff;
  });
  const auto refused = [&](const std::function<void(v1::OpenSession&)>& change) {
    v1::InvalidateRequest request = Open("", 1);
    change(*request.mutable_open());
    Stream stream(*stub_);
    stream.Send(request);
    return stream.End();
  };
  using v1::OpenSession;
  EXPECT_EQ(ErrorReason(refused([](OpenSession& o) { o.set_memory_token("0"); })),
            "UNKNOWN_MEMORY");
  EXPECT_TRUE(
      absl::IsInvalidArgument(refused([](OpenSession& o) { o.set_guest_ram_bytes(8192); })));
  EXPECT_TRUE(
      absl::IsResourceExhausted(refused([](OpenSession& o) { o.set_guest_ram_bytes(2 * kRam); })));
  EXPECT_TRUE(absl::IsPermissionDenied(refused([](OpenSession& o) { o.set_verify("full"); })));
  EXPECT_TRUE(absl::IsInvalidArgument(refused([](OpenSession& o) { o.set_strategy("guess"); })));
  EXPECT_TRUE(absl::IsInvalidArgument(refused([](OpenSession& o) { o.set_guest_haw_bits(57); })));
  EXPECT_TRUE(absl::IsInvalidArgument(refused([](OpenSession& o) { o.set_stream_epoch(0); })));
  EXPECT_TRUE(
      absl::IsInvalidArgument(refused([](OpenSession& o) { o.set_guest_instance_id(""); })));
  EXPECT_TRUE(server_->registry().ListAll().empty());
  Stream first(*stub_);
  OpenOn(first);
  const absl::Status second = refused([](OpenSession&) {});
  EXPECT_TRUE(absl::IsResourceExhausted(second)) << second;
  EXPECT_THAT(second.message(), HasSubstr("--max_sessions"));
}

TEST_F(SessionTest, MappingsAreADebugCall) {
  Stream stream(*stub_);
  const std::string id = OpenOn(stream);
  EXPECT_TRUE(absl::IsPermissionDenied(GetSession(id, true).status()));
}

TEST_F(SessionTest, ShutdownEndsTheStreamAndSaysSo) {
  Stream stream(*stub_);
  OpenOn(stream);
  server_->Shutdown();
  EXPECT_EQ(stream.End().code(), absl::StatusCode::kUnavailable);
}

}  // namespace
}  // namespace viommu
