// A remote guest's memory over a real server's stream: what an honest guest gets counted, and what
// becomes of one that answers wrongly, too late or unasked.
#include "hypervisor_svc/guest_pages.h"

#include <gmock/gmock.h>
#include <grpcpp/create_channel.h>
#include <gtest/gtest.h>

#include <functional>
#include <thread>

#include "hypervisor_svc/hypervisor_server.h"
#include "svc_common/conversions.h"
#include "svc_common/service_host.h"
#include "tests/fakes/temp_folder.h"
#include "tests/iommu_core/shadow/test_guest.h"

namespace viommu {
namespace {

using ::testing::HasSubstr;

const SourceId kDevice = MakeSourceId(0, 3, 0);
constexpr uint16_t kDid = 5;
constexpr uint64_t kRam = uint64_t{64} << 20;
constexpr uint64_t kBuffer = 0x2000000;  // guest-physical

v1::InvalidateRequest AnswerTo(TestGuest& guest, const v1::InvalidateResponse& question) {
  v1::InvalidateRequest answer;
  if (question.has_memory_write()) {
    const v1::MemoryWrite& write = question.memory_write();
    answer.mutable_memory_written()->set_request_id(write.request_id());
    answer.mutable_memory_written()->set_stored(guest.memory().WriteBytes(
        PhysAddr(write.guest_pa()), std::as_bytes(std::span(write.data()))));
    return answer;
  }
  v1::TablePages& pages = *answer.mutable_table_pages();
  pages.set_request_id(question.table_page_request().request_id());
  for (const uint64_t address : question.table_page_request().page_addresses()) {
    pages.add_page_addresses(address);
    pages.add_present(true);
    pages.mutable_content()->append(
        reinterpret_cast<const char*>(guest.memory().PageInPlace(PhysAddr(address))), kPageSize);
  }
  return answer;
}

// One Invalidate call of a guest that answers as the test says.
class RemoteStream {
 public:
  RemoteStream(v1::HypervisorService::Stub& stub, TestGuest& guest) : guest_(guest) {
    context_.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(60));
    call_ = stub.Invalidate(&context_);
  }
  ~RemoteStream() { Cancel(); }
  void Cancel() {
    if (std::exchange(finished_, true)) return;
    context_.TryCancel();
    call_->Finish();
  }
  void Send(const v1::InvalidateRequest& request) { call_->Write(request); }
  std::optional<v1::InvalidateResponse> Next() {
    v1::InvalidateResponse response;
    if (!call_->Read(&response)) return std::nullopt;
    return response;
  }
  // The next message that is no question; questions before it are answered.
  v1::InvalidateResponse NextAnswered() {
    while (auto response = Next()) {
      if (!response->has_table_page_request() && !response->has_memory_write()) return *response;
      questions.push_back(*response);
      Send(AnswerTo(guest_, *response));
    }
    ADD_FAILURE() << "the stream ended";
    return {};
  }
  absl::Status End() {
    while (Next()) {
    }
    finished_ = true;
    return FromGrpcStatus(call_->Finish());
  }
  std::vector<v1::InvalidateResponse> questions;

 private:
  TestGuest& guest_;
  grpc::ClientContext context_;
  std::unique_ptr<grpc::ClientReaderWriter<v1::InvalidateRequest, v1::InvalidateResponse>> call_;
  bool finished_ = false;
};

class GuestPagesTest : public ::testing::Test {
 protected:
  void StartServer(const std::function<void(HypervisorOptions&)>& change = [](auto&) {}) {
    HypervisorOptions options;
    options.host.listen = "unix:" + folder_.File("hv.sock");
    options.host.metrics = "off";
    options.session.verify = Verify::kOff;
    change(options);
    auto server = HypervisorServer::Start(options);
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
    stub_ = v1::HypervisorService::NewStub(grpc::CreateCustomChannel(
        options.host.listen, grpc::InsecureChannelCredentials(), ClientChannelArguments()));
  }
  void SetUp() override {
    StartServer();
    table_ = guest_.NewPage();
    guest_.Map(table_, 4, 0x1000, kBuffer);
    guest_.SetContext(kDevice, vtd::ContextEntry::Make(table_, 4, DomainId(kDid),
                                                       vtd::TranslationType::kUntranslatedOnly));
  }

  v1::InvalidateRequest Open(const std::string& session = "", uint64_t epoch = 1,
                             const std::string& strategy = "") {
    v1::InvalidateRequest request;
    v1::OpenSession* open = request.mutable_open();
    open->set_session_id(session);
    open->set_guest_instance_id("remote-guest");
    open->set_stream_epoch(epoch);
    open->set_oldest_retained_sequence(sequence_ + 1);
    open->set_next_sequence(sequence_ + 1);
    open->set_guest_ram_bytes(kRam);
    open->set_memory_kind(v1::GUEST_MEMORY_KIND_REMOTE);
    const vtd::Capabilities caps = vtd::QemuCapabilities(48, true);
    open->set_guest_cap(caps.cap);
    open->set_guest_ecap(caps.ecap);
    open->set_guest_haw_bits(48);
    open->set_strategy(strategy);
    return request;
  }
  v1::InvalidateRequest Batch(const std::vector<vtd::RawDescriptor>& descriptors) {
    v1::InvalidateRequest request;
    request.mutable_batch()->set_sequence(++sequence_);
    for (const vtd::RawDescriptor& d : descriptors) {
      request.mutable_batch()->add_descriptor_words(d.qw0);
      request.mutable_batch()->add_descriptor_words(d.qw1);
    }
    return request;
  }
  v1::InvalidateRequest Registers() {
    v1::InvalidateRequest request;
    request.mutable_registers()->set_sequence(++sequence_);
    request.mutable_registers()->set_root_table(guest_.root().value());
    request.mutable_registers()->set_translation_enabled(true);
    return request;
  }
  v1::InvalidateRequest Device() {
    v1::InvalidateRequest request;
    request.mutable_device()->set_sequence(++sequence_);
    request.mutable_device()->set_source_id(kDevice.value());
    request.mutable_device()->set_present(true);
    return request;
  }
  // A stream with an open session, translation on and the device behind it.
  std::unique_ptr<RemoteStream> Connect() {
    auto stream = std::make_unique<RemoteStream>(*stub_, guest_);
    stream->Send(Open());
    session_ = stream->NextAnswered().opened().session_id();
    stream->Send(Registers());
    EXPECT_EQ(stream->NextAnswered().completion().sequence(), sequence_);
    stream->Send(Device());
    EXPECT_EQ(stream->NextAnswered().completion().sequence(), sequence_);
    stream->questions.clear();
    return stream;
  }
  // After its stream ended for the guest's fault: a new one must replay from an empty state, and
  // then all is well.
  void ExpectResumesWithReset() {
    RemoteStream stream(*stub_, guest_);
    --sequence_;  // not acknowledged
    stream.Send(Open(session_, 2));
    const v1::SessionOpened opened = stream.NextAnswered().opened();
    EXPECT_EQ(opened.session_id(), session_);
    EXPECT_TRUE(opened.reset_follows());
    const v1::ResetRequired reset = stream.NextAnswered().reset_required();
    EXPECT_EQ(reset.reason(), v1::ResetRequired::REASON_SEQUENCE_GAP);
    EXPECT_EQ(reset.resume_sequence(), sequence_ + 1);
    stream.Send(Device());
    stream.NextAnswered();
    stream.Send(Registers());
    stream.NextAnswered();
    stream.Send(Batch({ContextGlobal(), GlobalIotlb()}));
    EXPECT_EQ(stream.NextAnswered().completion().sequence(), sequence_);
    EXPECT_EQ(Session()->stats().live_pages, 1u);
  }
  std::shared_ptr<GuestSession> Session() { return *server_->registry().Find(session_, ""); }
  uint64_t Failures(RemoteFailure failure) {
    return server_->registry().counters().remote_failures[static_cast<size_t>(failure)].load();
  }
  absl::StatusOr<v1::DmaResponse> Dma(uint64_t iova, const std::string& write, uint32_t read) {
    v1::DmaRequest request;
    request.set_session_id(session_);
    request.set_source_id(kDevice.value());
    request.set_iova(iova);
    request.set_write_data(write);
    request.set_read_size_bytes(read);
    grpc::ClientContext context;
    v1::DmaResponse response;
    const grpc::Status status = stub_->Dma(&context, request, &response);
    if (!status.ok()) return FromGrpcStatus(status);
    return response;
  }

  TempFolder folder_;
  TestGuest guest_{kRam};
  PhysAddr table_;
  std::unique_ptr<HypervisorServer> server_;
  std::unique_ptr<v1::HypervisorService::Stub> stub_;
  std::string session_;
  uint64_t sequence_ = 0;
};

TEST_F(GuestPagesTest, ASyncPullsTheTablesOnTheWayAndCountsThem) {
  const auto stream = Connect();
  guest_.Map(table_, 4, 0x2000, kBuffer + 0x1000);
  stream->Send(Batch({Psi(kDid, 0x2000)}));
  const v1::Completion done = stream->NextAnswered().completion();
  EXPECT_EQ(done.sequence(), sequence_);
  EXPECT_EQ(done.cost().ptes_changed(), 1u);
  EXPECT_EQ(done.cost().remote_pages(), 6u);  // root, context, four levels
  EXPECT_EQ(done.cost().remote_bytes(), 6 * kPageSize);
  EXPECT_EQ(done.cost().remote_round_trips(), stream->questions.size());
  const SessionStats stats = Session()->stats();
  EXPECT_EQ(stats.live_pages, 2u);
  EXPECT_GE(stats.pulled.pages, stats.cost.remote_pages);
}

TEST_F(GuestPagesTest, MoreThanOneQuestionHoldsIsAskedInSeveralAtOnce) {
  const auto stream = Connect();
  constexpr uint64_t kTables = 300;
  for (uint64_t i = 0; i < kTables; ++i) guest_.Map(table_, 4, i << 21, kBuffer);
  stream->Send(Batch({Dsi(kDid)}));
  const v1::Completion done = stream->NextAnswered().completion();
  EXPECT_EQ(Session()->stats().live_pages, kTables + 1);  // one was there
  ASSERT_GE(stream->questions.size(), 2u);
  const auto& last = stream->questions.back().table_page_request();
  const auto& before = stream->questions[stream->questions.size() - 2].table_page_request();
  EXPECT_EQ(before.page_addresses_size(), 256);
  EXPECT_EQ(last.page_addresses_size(), static_cast<int>(kTables) - 1 - 256);  // one came along
  // Both with one wait.
  EXPECT_EQ(done.cost().remote_round_trips(), stream->questions.size() - 1);
}

TEST_F(GuestPagesTest, RequestsSentOnDoNotHoldUpTheAnswers) {
  const auto stream = Connect();
  for (int i = 0; i < 10; ++i) stream->Send(Batch({Psi(kDid, 0x1000)}));
  uint64_t completed = 0;
  while (completed < sequence_) completed = stream->NextAnswered().completion().sequence();
  EXPECT_EQ(Session()->progress().batches, 10u);
}

TEST_F(GuestPagesTest, ADevicesDataMovesWhileNoDoorbellRings) {
  const auto stream = Connect();
  std::thread guest([&] { stream->NextAnswered(); });  // until the fault below
  const std::string data(200, 'x');
  const auto written = Dma(0x1100, data, 0);
  ASSERT_TRUE(written.ok()) << written.status();
  EXPECT_EQ(written->moved_bytes(), data.size());
  const auto read = Dma(0x1100, "", 200);
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(read->read_data(), data);
  EXPECT_FALSE(read->stale());
  EXPECT_EQ(guest_.memory().Read64(PhysAddr(kBuffer + 0x100)), 0x7878787878787878u);
  const auto blocked = Dma(0x9000, "", 8);
  ASSERT_TRUE(blocked.ok()) << blocked.status();
  EXPECT_NE(blocked->fault_reason(), 0u);
  guest.join();
  EXPECT_GT(Session()->stats().pulled.pages, Session()->stats().cost.remote_pages);
}

TEST_F(GuestPagesTest, ADoorbellThatComesWhileADeviceWaitsDoesNotKeepItsAnswerOut) {
  const auto stream = Connect();
  absl::StatusOr<v1::DmaResponse> read = absl::UnknownError("");
  std::thread device([&] { read = Dma(0x1000, "", 8); });
  const auto question = stream->Next();
  ASSERT_TRUE(question.has_value() && question->has_table_page_request());
  stream->Send(Batch({Psi(kDid, 0x1000)}));  // waits for the access, which waits for the answer
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  stream->Send(AnswerTo(guest_, *question));
  EXPECT_EQ(stream->NextAnswered().completion().sequence(), sequence_);
  device.join();
  EXPECT_TRUE(read.ok()) << read.status();
}

struct WrongAnswer {
  const char* name;
  std::function<void(v1::InvalidateRequest&)> change;
  const char* message;
};

class WrongAnswerTest : public GuestPagesTest, public ::testing::WithParamInterface<WrongAnswer> {};

TEST_P(WrongAnswerTest, EndsTheStreamAndTheNextOneReplays) {
  const auto stream = Connect();
  stream->Send(Batch({Psi(kDid, 0x1000)}));
  const auto question = stream->Next();
  ASSERT_TRUE(question.has_value() && question->has_table_page_request());
  v1::InvalidateRequest answer = AnswerTo(guest_, *question);
  GetParam().change(answer);
  stream->Send(answer);
  const absl::Status end = stream->End();
  EXPECT_TRUE(absl::IsInvalidArgument(end)) << end;
  EXPECT_EQ(ErrorReason(end), "WRONG_PAGES");
  EXPECT_THAT(end.message(), HasSubstr(GetParam().message));
  EXPECT_EQ(Failures(RemoteFailure::kWrongAnswer), 1u);
  ExpectResumesWithReset();
}

INSTANTIATE_TEST_SUITE_P(
    Answers, WrongAnswerTest,
    ::testing::Values(
        WrongAnswer{"OtherId", [](auto& a) { a.mutable_table_pages()->set_request_id(99'999); },
                    "was answered as request 99999"},
        WrongAnswer{"OtherPage",
                    [](auto& a) { a.mutable_table_pages()->set_page_addresses(0, kBuffer); },
                    "other pages"},
        WrongAnswer{"NoPage", [](auto& a) { a.mutable_table_pages()->clear_page_addresses(); },
                    "other pages"},
        WrongAnswer{"Absent", [](auto& a) { a.mutable_table_pages()->set_present(0, false); },
                    "not to be there"},
        WrongAnswer{"PresentMissing", [](auto& a) { a.mutable_table_pages()->clear_present(); },
                    "not to be there"},
        WrongAnswer{"ShortPage",
                    [](auto& a) { a.mutable_table_pages()->mutable_content()->resize(4095); },
                    "4095 bytes came"},
        WrongAnswer{"TwoPages",
                    [](auto& a) { a.mutable_table_pages()->mutable_content()->resize(8192); },
                    "8192 bytes came"},
        WrongAnswer{"OtherKind", [](auto& a) { a.mutable_memory_written()->set_stored(true); },
                    "a write was acknowledged"}),
    [](const auto& param_info) { return std::string(param_info.param.name); });

TEST_F(GuestPagesTest, AGuestThatDoesNotAnswerEndsItsStreamAndHarmsNobodyElse) {
  server_ = nullptr;
  StartServer([](HypervisorOptions& o) { o.remote_page_timeout_ms = 300; });
  const auto neighbour = Connect();
  const std::string neighbour_session = session_;
  const uint64_t neighbour_sequence = sequence_;
  sequence_ = 0;
  const auto silent = Connect();
  silent->Send(Batch({Psi(kDid, 0x1000)}));
  ASSERT_TRUE(silent->Next()->has_table_page_request());
  // While that one is waited for, another session is served.
  const uint64_t silent_sequence = std::exchange(sequence_, neighbour_sequence);
  neighbour->Send(Batch({Psi(kDid, 0x1000)}));
  EXPECT_EQ(neighbour->NextAnswered().completion().sequence(), sequence_);
  sequence_ = silent_sequence;
  EXPECT_NE(Session()->work().BusyWallNs(), 0u);
  const absl::Status end = silent->End();
  EXPECT_TRUE(absl::IsDeadlineExceeded(end)) << end;
  EXPECT_EQ(ErrorReason(end), "PAGES_NOT_ANSWERED");
  EXPECT_EQ(Failures(RemoteFailure::kTimeout), 1u);
  ExpectResumesWithReset();
}

TEST_F(GuestPagesTest, AStreamThatBreaksDoesNotHoldItsSessionUntilTheTimeout) {
  const auto stream = Connect();
  stream->Send(Batch({Psi(kDid, 0x1000)}));
  ASSERT_TRUE(stream->Next()->has_table_page_request());
  const auto begin = std::chrono::steady_clock::now();
  stream->Cancel();
  ExpectResumesWithReset();
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(4));
  EXPECT_EQ(Failures(RemoteFailure::kTimeout), 0u);
}

TEST_F(GuestPagesTest, ANewerStreamDoesNotWaitForWhatTheOlderOneOwes) {
  const auto half_open = Connect();
  half_open->Send(Batch({Psi(kDid, 0x1000)}));
  ASSERT_TRUE(half_open->Next()->has_table_page_request());
  const auto begin = std::chrono::steady_clock::now();
  ExpectResumesWithReset();
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(4));
  EXPECT_EQ(ErrorReason(half_open->End()), "FENCED");
  EXPECT_EQ(Failures(RemoteFailure::kTimeout), 0u);
}

TEST_F(GuestPagesTest, AnOldEpochDoesNotDisturbTheStreamThatIsThere) {
  const auto stream = Connect();
  stream->Send(Batch({Psi(kDid, 0x1000)}));
  const auto question = stream->Next();
  ASSERT_TRUE(question.has_value() && question->has_table_page_request());
  std::thread replay([&] {
    RemoteStream old(*stub_, guest_);
    old.Send(Open(session_, 1));
    EXPECT_EQ(ErrorReason(old.End()), "STALE_EPOCH");
  });
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  stream->Send(AnswerTo(guest_, *question));
  EXPECT_EQ(stream->NextAnswered().completion().sequence(), sequence_);
  replay.join();
}

TEST_F(GuestPagesTest, AShutdownDoesNotWaitForASilentGuest) {
  const auto stream = Connect();
  stream->Send(Batch({Psi(kDid, 0x1000)}));
  ASSERT_TRUE(stream->Next()->has_table_page_request());
  const auto begin = std::chrono::steady_clock::now();
  server_->Shutdown();
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(4));
  EXPECT_EQ(ErrorReason(stream->End()), "DRAINING");
}

TEST_F(GuestPagesTest, AGuestThatSendsBeyondItsWindowKeepsItsOwnAnswersOut) {
  server_ = nullptr;
  StartServer([](HypervisorOptions& o) {
    o.remote_page_timeout_ms = 300;
    o.max_outstanding_batches = 4;
  });
  const auto stream = Connect();
  stream->Send(Batch({Psi(kDid, 0x1000)}));
  const auto question = stream->Next();
  ASSERT_TRUE(question.has_value() && question->has_table_page_request());
  for (int i = 0; i < 20; ++i) stream->Send(Batch({Psi(kDid, 0x1000)}));
  stream->Send(AnswerTo(guest_, *question));
  EXPECT_EQ(ErrorReason(stream->End()), "PAGES_NOT_ANSWERED");
}

TEST_F(GuestPagesTest, PagesThatNobodyAskedForAreMalformed) {
  const auto stream = Connect();
  v1::InvalidateRequest unasked;
  unasked.mutable_table_pages()->set_request_id(1);
  stream->Send(unasked);
  const absl::Status end = stream->End();
  EXPECT_TRUE(absl::IsInvalidArgument(end)) << end;
  EXPECT_EQ(ErrorReason(end), "MALFORMED_MESSAGE");
}

TEST_F(GuestPagesTest, ADeviceAccessSaysThatTheGuestIsOutOfReach) {
  auto stream = Connect();
  std::thread guest([&] {
    while (auto question = stream->Next()) {
      v1::InvalidateRequest answer = AnswerTo(guest_, *question);
      if (answer.has_memory_written()) answer.mutable_memory_written()->set_stored(false);
      stream->Send(answer);
    }
  });
  const absl::Status refused = Dma(0x1000, "data", 0).status();
  EXPECT_TRUE(absl::IsUnavailable(refused)) << refused;
  EXPECT_EQ(ErrorReason(refused), "REMOTE_MEMORY");
  guest.join();  // its stream ended
  EXPECT_EQ(ErrorReason(stream->End()), "WRONG_PAGES");
  const absl::Status away = Dma(0x1000, "", 4).status();
  EXPECT_TRUE(absl::IsUnavailable(away)) << away;
}

TEST_F(GuestPagesTest, PagesOfOneRequestAreBounded) {
  server_ = nullptr;
  StartServer([](HypervisorOptions& o) { o.max_remote_pages_per_invalidation = 8; });
  const auto stream = Connect();
  for (uint64_t i = 0; i < 20; ++i) guest_.Map(table_, 4, i << 21, kBuffer);
  stream->Send(Batch({Dsi(kDid)}));
  std::thread guest([&] {
    while (auto question = stream->Next()) stream->Send(AnswerTo(guest_, *question));
  });
  guest.join();
  const absl::Status end = stream->End();
  EXPECT_TRUE(absl::IsResourceExhausted(end)) << end;
  EXPECT_THAT(end.message(), HasSubstr("--max_remote_pages_per_invalidation"));
  EXPECT_EQ(Failures(RemoteFailure::kLimit), 1u);
}

TEST_F(GuestPagesTest, ALogInSharedMemoryIsNotServedFromAfar) {
  RemoteStream stream(*stub_, guest_);
  stream.Send(Open("", 1, "dirty-log"));
  const absl::Status end = stream.End();
  EXPECT_TRUE(absl::IsFailedPrecondition(end)) << end;
  EXPECT_EQ(ErrorReason(end), "DIRTY_LOG_NOT_SHARED");
  EXPECT_THAT(end.message(), HasSubstr("use snapshot"));
}

}  // namespace
}  // namespace viommu
