// What nobody should send: refused with the right status, counted, and the service goes on serving.
#include <gmock/gmock.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/generic/generic_stub.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <chrono>
#include <cstring>
#include <random>

#include "svc_common/conversions.h"
#include "svc_common/memory_channel.h"
#include "svc_common/service_host.h"
#include "tests/integration/probes.h"
#include "tests/integration/service_pair.h"

namespace viommu {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr uint32_t kDevice = 0x18;
constexpr uint64_t kPage = 4096;
constexpr uint64_t kMiB = uint64_t{1} << 20;

class HostileTest : public ::testing::Test {
 protected:
  void SetUp() override {
    pair_.hypervisor_address = "127.0.0.1:0";
    pair_.StartHypervisor({"--open_timeout_ms=500"});
    pair_.StartGuest();
    domain_ = *pair_.guest().CreateDomain();
    ASSERT_TRUE(pair_.guest().Attach(domain_, kDevice).ok());
    const auto kept = pair_.guest().Map(domain_, kPage);
    ASSERT_TRUE(kept.ok()) << kept.status();
    live_ = {{domain_, 0, kept->iova(), kPage, kept->guest_pa()}};
  }
  void TearDown() override {
    if (IsSkipped()) return;
    // The well-behaved guest: its session was not touched, and it is served.
    const auto mapped = pair_.guest().Map(domain_, kPage);
    ASSERT_TRUE(mapped.ok()) << mapped.status();
    EXPECT_TRUE(pair_.guest().Unmap(domain_, mapped->iova(), kPage).ok());
    EXPECT_THAT(SweepMappings(pair_.hypervisor(), session(), {{domain_, kDevice}}, live_),
                IsEmpty());
    EXPECT_THAT(pair_.guest_process().Log(), ::testing::Not(HasSubstr("lost the hypervisor")));
  }
  std::string session() { return pair_.guest().Status()->session_ids(0); }
  double Refused(const std::string& code) {
    return Scrape(
        pair_.hypervisor_metrics())["viommu_stream_refusals_total{code=\"" + code + "\"}"];
  }
  static v1::InvalidateRequest Open(const std::string& session, const std::string& instance,
                                    uint64_t epoch, const std::string& token = "") {
    v1::InvalidateRequest request;
    v1::OpenSession* open = request.mutable_open();
    open->set_session_id(session);
    open->set_guest_instance_id(instance);
    open->set_stream_epoch(epoch);
    open->set_next_sequence(1);
    open->set_guest_ram_bytes(kMiB);
    open->set_memory_kind(v1::GUEST_MEMORY_KIND_SHARED);
    open->set_memory_token(token);
    open->set_guest_haw_bits(39);
    return request;
  }
  // How a stream ends that sends these.
  absl::Status EndOf(const std::vector<v1::InvalidateRequest>& requests) {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(20 * kPatience));
    const auto call = pair_.hypervisor().stub().Invalidate(&context);
    for (const v1::InvalidateRequest& request : requests) call->Write(request);
    v1::InvalidateResponse response;
    while (call->Read(&response)) {
    }
    return FromGrpcStatus(call->Finish());
  }

  ServicePair pair_;
  uint32_t domain_ = 0;
  std::vector<LiveMapping> live_;
};

std::string RandomBytes(std::mt19937_64& random, size_t size) {
  std::string bytes(size, '\0');
  for (char& byte : bytes) byte = static_cast<char>(random());
  return bytes;
}

TEST_F(HostileTest, RandomBytesOnEveryPort) {
  const uint64_t rounds = NumberFromEnvironment("VIOMMU_HOSTILE_ROUNDS", 20);
  std::mt19937_64 random(NumberFromEnvironment("VIOMMU_HOSTILE_SEED", 1));
  const std::string guest_socket = pair_.guest_address.substr(std::strlen("unix:"));
  const std::string memory_socket = pair_.folder().File("hv.mem");
  const uint64_t before = FiguresOf(pair_.hypervisor_process().pid()).resident_bytes;
  EXPECT_TRUE(pair_.hypervisor().Sessions().ok());
  const uint64_t descriptors = FiguresOf(pair_.hypervisor_process().pid()).descriptors;
  for (uint64_t round = 0; round < rounds; ++round) {
    std::vector<RawConnection> ports;
    ports.push_back(RawConnection::Tcp(pair_.hypervisor_address));
    ports.push_back(RawConnection::Tcp(pair_.hypervisor_metrics()));
    ports.push_back(RawConnection::Tcp(pair_.guest_metrics()));
    ports.push_back(RawConnection::Unix(guest_socket, SOCK_STREAM));
    ports.push_back(RawConnection::Unix(memory_socket, SOCK_SEQPACKET));
    for (RawConnection& port : ports) {
      ASSERT_TRUE(port.connected());
      // Sometimes behind what the protocol begins with; what follows may not be taken any more.
      if (round % 3 == 0) port.Send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
      if (round % 3 == 1) port.Send("GET /metrics HTTP/1.1\r\n");
      port.Send(RandomBytes(random, 1 + random() % 4'000));
    }
    ports.back().ReadAll(100);
    EXPECT_TRUE(ports.back().ClosedWithin(20'000 * kPatience)) << "memory socket";
  }
  EXPECT_GE(Scrape(pair_.hypervisor_metrics())["viommu_memory_requests_refused_total"],
            static_cast<double>(rounds));
  EXPECT_TRUE(Eventually(
      [&] { return FiguresOf(pair_.hypervisor_process().pid()).descriptors <= descriptors; }));
  if (!kSanitized) {
    EXPECT_LT(FiguresOf(pair_.hypervisor_process().pid()).resident_bytes, before + 16 * kMiB);
  }
}

TEST_F(HostileTest, AnotherGuestsSessionAndAReplayedEpoch) {
  EXPECT_EQ(Refused("permission_denied"), 0);
  const absl::Status foreign = EndOf({Open(session(), "thief", 1'000'000)});
  EXPECT_TRUE(absl::IsPermissionDenied(foreign)) << foreign;
  EXPECT_EQ(ErrorReason(foreign), "FOREIGN_SESSION");
  EXPECT_EQ(Refused("permission_denied"), 1);

  // The victim's own first message once more: its instance id is no secret to who lists sessions.
  const auto victim = pair_.hypervisor().Session(session(), false);
  ASSERT_TRUE(victim.ok());
  const absl::Status replayed = EndOf({Open(session(), victim->guest_instance_id(), 1)});
  EXPECT_TRUE(absl::IsAborted(replayed)) << replayed;
  EXPECT_EQ(ErrorReason(replayed), "STALE_EPOCH");
  EXPECT_EQ(Refused("aborted"), 1);

  const absl::Status guessed = EndOf({Open("", "guesser", 1, "0123456789abcdef")});
  EXPECT_EQ(ErrorReason(guessed), "UNKNOWN_MEMORY");
  EXPECT_EQ(Refused("failed_precondition"), 1);
}

TEST_F(HostileTest, OversizedMalformedAndTruncatedMessages) {
  v1::InvalidateRequest oversized = Open("", "big", 1);
  oversized.mutable_open()->set_memory_token(std::string(kMaxMessageBytes + 1, 'x'));
  EXPECT_TRUE(absl::IsResourceExhausted(EndOf({oversized})));
  v1::InvalidateRequest batch;
  batch.mutable_batch()->set_sequence(1);
  const absl::Status unopened = EndOf({batch});
  EXPECT_EQ(ErrorReason(unopened), "MALFORMED_MESSAGE");
  EXPECT_TRUE(absl::IsInvalidArgument(EndOf({Open("", "", 1)})));
  EXPECT_EQ(Refused("invalid_argument"), 2);

  // Bytes that are no message, or only its beginning.
  grpc::GenericStub generic(grpc::CreateCustomChannel(
      pair_.hypervisor_address, grpc::InsecureChannelCredentials(), ClientChannelArguments()));
  std::mt19937_64 random(1);
  const std::string whole = Open("", "cut", 1, "token").SerializeAsString();
  for (const std::string method : {"Invalidate", "Dma", "Translate", "GetSession"}) {
    for (const std::string& bytes :
         {whole.substr(0, whole.size() - 3), "\xff" + RandomBytes(random, 100)}) {
      grpc::ClientContext context;
      context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(20 * kPatience));
      grpc::CompletionQueue queue;
      const auto call =
          generic.PrepareCall(&context, "/viommu.v1.HypervisorService/" + method, &queue);
      void* tag = nullptr;
      bool ok = false;
      const auto wait = [&] { return queue.Next(&tag, &ok) && ok; };
      call->StartCall(nullptr);
      wait();
      grpc::Slice slice(bytes);
      call->WriteLast(grpc::ByteBuffer(&slice, 1), grpc::WriteOptions(), nullptr);
      wait();
      grpc::ByteBuffer answer;
      call->Read(&answer, nullptr);
      EXPECT_FALSE(wait()) << method << " answered";
      grpc::Status status;
      call->Finish(&status, nullptr);
      wait();
      EXPECT_TRUE(method == "Invalidate" || !status.ok()) << method;
    }
  }
  EXPECT_EQ(pair_.hypervisor().Sessions()->sessions_size(), 1);
}

// A descriptor that a guest sends along is never looked at, not even kept open: it might be a
// region that shrinks under its reader.
TEST_F(HostileTest, ADescriptorFromAGuestIsNotTaken) {
  const uint64_t before = FiguresOf(pair_.hypervisor_process().pid()).descriptors;
  for (int i = 0; i < 20; ++i) {
    const int unsealed = memfd_create("hostile", MFD_CLOEXEC);
    ASSERT_EQ(ftruncate(unsealed, 4096), 0);
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::strncpy(address.sun_path, pair_.folder().File("hv.mem").c_str(),
                 sizeof(address.sun_path) - 1);
    const int connection = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    ASSERT_EQ(connect(connection, reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
    MemoryRequest request;
    request.size_bytes = kMiB;
    iovec iov{&request, sizeof(request)};
    alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
    msghdr message{};
    message.msg_iov = &iov;
    message.msg_iovlen = 1;
    message.msg_control = control;
    message.msg_controllen = sizeof(control);
    cmsghdr* c = CMSG_FIRSTHDR(&message);
    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    c->cmsg_len = CMSG_LEN(sizeof(int));
    std::memcpy(CMSG_DATA(c), &unsealed, sizeof(unsealed));
    ASSERT_EQ(sendmsg(connection, &message, MSG_NOSIGNAL), static_cast<ssize_t>(sizeof(request)));
    // The answer is a region of the hypervisor's own, which cannot shrink.
    MemoryReply reply;
    alignas(cmsghdr) char received[CMSG_SPACE(sizeof(int))] = {};
    iovec reply_iov{&reply, sizeof(reply)};
    msghdr answer{};
    answer.msg_iov = &reply_iov;
    answer.msg_iovlen = 1;
    answer.msg_control = received;
    answer.msg_controllen = sizeof(received);
    ASSERT_EQ(recvmsg(connection, &answer, 0), static_cast<ssize_t>(sizeof(reply)));
    EXPECT_EQ(reply.code, 0u) << reply.message;
    const cmsghdr* handed = CMSG_FIRSTHDR(&answer);
    ASSERT_NE(handed, nullptr);
    int region = -1;
    std::memcpy(&region, CMSG_DATA(handed), sizeof(region));
    EXPECT_EQ(ftruncate(region, 0), -1);
    struct stat of_unsealed {};
    struct stat of_region {};
    fstat(unsealed, &of_unsealed);
    fstat(region, &of_region);
    EXPECT_NE(of_unsealed.st_ino, of_region.st_ino);
    EXPECT_EQ(of_region.st_size, static_cast<off_t>(kMiB));
    close(region);
    close(connection);
    close(unsealed);
  }
  EXPECT_TRUE(Eventually(
      [&] { return FiguresOf(pair_.hypervisor_process().pid()).descriptors <= before; }));
}

}  // namespace
}  // namespace viommu
