// What a guest with --memory=remote answers about its memory while nobody calls it, and what not.
#include <gmock/gmock.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/server_builder.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "absl/synchronization/notification.h"
#include "guest_svc/remote_sink.h"
#include "svc_common/service_host.h"
#include "tests/fakes/temp_folder.h"

namespace viommu {
namespace {

using ::testing::ElementsAre;

constexpr uint64_t kRam = uint64_t{8} << 20;
constexpr size_t kMaxPages = 256;

// A hypervisor that opens a session and asks what the test says.
class AskingHypervisor final : public v1::HypervisorService::Service {
 public:
  grpc::Status Invalidate(
      grpc::ServerContext*,
      grpc::ServerReaderWriter<v1::InvalidateResponse, v1::InvalidateRequest>* stream) override {
    v1::InvalidateRequest request;
    if (!stream->Read(&request)) return grpc::Status::CANCELLED;
    open = request.open();
    v1::InvalidateResponse opened;
    opened.mutable_opened()->set_session_id("session");
    stream->Write(opened);
    for (const v1::InvalidateResponse& question : questions) {
      stream->Write(question);
      if (!stream->Read(&answers.emplace_back())) return grpc::Status::CANCELLED;
    }
    answered.Notify();
    while (stream->Read(&request) && !request.has_close()) {
    }
    return grpc::Status::OK;
  }

  std::vector<v1::InvalidateResponse> questions;
  v1::OpenSession open;
  std::vector<v1::InvalidateRequest> answers;
  absl::Notification answered;
};

class RemoteMemoryAnswersTest : public ::testing::Test {
 protected:
  RemoteMemoryAnswersTest() : memory_(*GuestMemory::CreateRemote(kRam)) {}
  static void SetUpTestSuite() {
    // With its last object gRPC ends, and now and then waits ten seconds for a thread of its own.
    static const auto* const kept = new std::shared_ptr<grpc::Channel>(
        grpc::CreateChannel("unix:/nowhere", grpc::InsecureChannelCredentials()));
    ASSERT_NE(*kept, nullptr);
  }

  v1::MemoryWrite* AskWrite(uint64_t guest_pa, const std::string& data) {
    v1::MemoryWrite* write = hypervisor_.questions.emplace_back().mutable_memory_write();
    write->set_request_id(hypervisor_.questions.size());
    write->set_guest_pa(guest_pa);
    write->set_data(data);
    return write;
  }
  v1::TablePageRequest* AskPages(const std::vector<uint64_t>& addresses) {
    v1::TablePageRequest* pages = hypervisor_.questions.emplace_back().mutable_table_page_request();
    pages->set_request_id(hypervisor_.questions.size());
    for (const uint64_t address : addresses) pages->add_page_addresses(address);
    return pages;
  }
  // Connects and waits for all answers; nobody calls the sink meanwhile.
  void Run() {
    const std::string address = "unix:" + folder_.File("hv.sock");
    grpc::ServerBuilder builder;
    builder.AddListeningPort(address, grpc::InsecureServerCredentials());
    builder.RegisterService(&hypervisor_);
    const std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
    RemoteSinkOptions options;
    options.hypervisor = address;
    options.dirty_log_base = 0x1000;
    RemoteSink sink(grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(),
                                              ClientChannelArguments()),
                    *memory_, metrics_, options);
    ASSERT_TRUE(sink.Open().ok());
    EXPECT_TRUE(hypervisor_.answered.WaitForNotificationWithTimeout(absl::Seconds(20)));
    EXPECT_TRUE(sink.Poll(absl::ZeroDuration()).empty());  // a call gets the stream at once
    EXPECT_TRUE(sink.Close().ok());
    server->Shutdown();
    ASSERT_EQ(hypervisor_.answers.size(), hypervisor_.questions.size());
    for (size_t i = 0; i < hypervisor_.answers.size(); ++i) {
      const v1::InvalidateRequest& answer = hypervisor_.answers[i];
      EXPECT_EQ(answer.has_table_pages() ? answer.table_pages().request_id()
                                         : answer.memory_written().request_id(),
                i + 1);
    }
  }

  TempFolder folder_;
  GuestMetrics metrics_;
  std::unique_ptr<GuestMemory> memory_;
  AskingHypervisor hypervisor_;
};

TEST_F(RemoteMemoryAnswersTest, PagesComeAsTheyAreAndOnlyThoseOfTheGuest) {
  ASSERT_TRUE(memory_->Write64(PhysAddr(0x3008), 0x1122334455667788));
  ASSERT_TRUE(memory_->Write64(PhysAddr(kRam - 8), 5));
  AskPages({0x3000, kRam, 0x3008, ~uint64_t{0} << kPageShift, kRam - kPageSize});
  Run();
  EXPECT_EQ(hypervisor_.open.memory_kind(), v1::GUEST_MEMORY_KIND_REMOTE);
  EXPECT_EQ(hypervisor_.open.memory_token(), "");
  EXPECT_EQ(hypervisor_.open.dirty_log_base(), 0u);  // a log that cannot be shared is not offered
  const v1::TablePages& pages = hypervisor_.answers[0].table_pages();
  EXPECT_THAT(pages.present(), ElementsAre(true, false, false, false, true));
  ASSERT_EQ(pages.content().size(), 2 * kPageSize);
  EXPECT_EQ(pages.content().substr(8, 8), "\x88\x77\x66\x55\x44\x33\x22\x11");
  EXPECT_EQ(pages.content()[2 * kPageSize - 8], 5);
}

TEST_F(RemoteMemoryAnswersTest, OneQuestionIsAnsweredForSoManyPagesOnly) {
  AskPages(std::vector<uint64_t>(kMaxPages + 1, 0x1000));
  Run();
  EXPECT_EQ(hypervisor_.answers[0].table_pages().present_size(), static_cast<int>(kMaxPages));
  EXPECT_EQ(hypervisor_.answers[0].table_pages().content().size(), kMaxPages * kPageSize);
}

TEST_F(RemoteMemoryAnswersTest, StoresLieWithinOnePageOfTheGuest) {
  AskWrite(0x2ffc, "good");
  AskWrite(0x3ffd, "over");
  AskWrite(kRam - 2, "over");
  AskWrite(kRam, "beyond");
  AskWrite(~uint64_t{0}, "x");
  AskWrite(0x5000, "");
  Run();
  std::vector<bool> stored;
  for (const v1::InvalidateRequest& answer : hypervisor_.answers) {
    stored.push_back(answer.memory_written().stored());
  }
  EXPECT_THAT(stored, ElementsAre(true, false, false, false, false, false));
  EXPECT_EQ(memory_->Read32(PhysAddr(0x2ffc)), 0x646f6f67u);
  EXPECT_EQ(memory_->Read64(PhysAddr(0x3ff8)), 0u);
  EXPECT_EQ(memory_->Read64(PhysAddr(kRam - 8)), 0u);
}

}  // namespace
}  // namespace viommu
