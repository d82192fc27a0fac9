// Over TCP with certificates: both sides show one, and a session belongs to its owner's.
#include <gmock/gmock.h>
#include <grpcpp/create_channel.h>
#include <gtest/gtest.h>

#include <cstdlib>

#include "svc_common/conversions.h"
#include "svc_common/credentials.h"
#include "svc_common/service_host.h"
#include "tests/fakes/service_process.h"
#include "tests/fakes/temp_folder.h"
#include "tests/integration/probes.h"
#include "tests/integration/service_pair.h"
#include "viommu/v1/guest_service.grpc.pb.h"
#include "viommu/v1/hypervisor_service.grpc.pb.h"

namespace viommu {
namespace {

class MutualTlsTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (std::system("command -v openssl > /dev/null") != 0) GTEST_SKIP() << "no openssl";
    Authority("ca");
    Authority("stranger");
    Certificate("hypervisor", "ca", 1);
    Certificate("guest", "ca", 1);
    Certificate("other", "ca", 1);
    Certificate("stranger-guest", "stranger", 1);
    Certificate("expired", "ca", -1);
  }
  void Shell(const std::string& command) {
    ASSERT_EQ(
        std::system(("cd " + folder_.path() + " && { " + command + "; } > /dev/null 2>&1").c_str()),
        0)
        << command;
  }
  void Authority(const std::string& name) {
    Shell(
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1 -subj /CN=" +
        name + " -keyout " + name + ".key -out " + name + ".pem");
  }
  void Certificate(const std::string& name, const std::string& authority, int days) {
    Shell("echo subjectAltName=DNS:" + name + ",IP:127.0.0.1 > " + name + ".ext");
    Shell("openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=" + name +
          " -keyout " + name + ".key -out " + name + ".csr && openssl x509 -req -in " + name +
          ".csr -CA " + authority + ".pem -CAkey " + authority + ".key -CAcreateserial -days " +
          std::to_string(days) + " -extfile " + name + ".ext -out " + name + ".pem");
  }
  TlsFlags Tls(const std::string& name, const std::string& authority = "ca") {
    TlsFlags tls;
    tls.cert = folder_.File(name + ".pem");
    tls.key = folder_.File(name + ".key");
    tls.ca = folder_.File(authority + ".pem");
    return tls;
  }
  std::vector<std::string> Args(std::vector<std::string> args, const TlsFlags& tls) {
    args.push_back("--tls_cert=" + tls.cert);
    args.push_back("--tls_key=" + tls.key);
    args.push_back("--tls_ca=" + tls.ca);
    args.push_back("--metrics=127.0.0.1:0");
    args.push_back("--memory_socket=" + folder_.File("mem.sock"));
    return args;
  }
  absl::StatusOr<v1::ListSessionsResponse> List(
      const std::string& address, const std::shared_ptr<grpc::ChannelCredentials>& credentials) {
    auto stub = v1::HypervisorService::NewStub(
        grpc::CreateCustomChannel(address, credentials, ClientChannelArguments()));
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(5));
    v1::ListSessionsResponse response;
    const grpc::Status status = stub->ListSessions(&context, v1::ListSessionsRequest(), &response);
    if (!status.ok()) return FromGrpcStatus(status);
    return response;
  }

  TempFolder folder_;
};

TEST_F(MutualTlsTest, OnlyTheRightCertificateServesAndSeesItsSession) {
  const std::string bin = VIOMMU_BIN;
  ServiceProcess hypervisor(bin + "/hypervisor_svc",
                            Args({"--listen=127.0.0.1:0"}, Tls("hypervisor")),
                            folder_.File("hv.log"));
  const std::string ready = hypervisor.Ready();
  const std::string address = ReadyField(ready, "grpc");
  ASSERT_NE(address, "") << hypervisor.Log();
  const auto refused = [&] {
    return Scrape(ReadyField(ready, "metrics"))["viommu_tls_handshakes_failed_total"];
  };
  ServiceProcess guest(bin + "/guest_svc",
                       Args({"--listen=unix:" + folder_.File("g.sock"), "--hypervisor=" + address,
                             "--ram_bytes=16m"},
                            Tls("guest")),
                       folder_.File("guest.log"));
  ASSERT_NE(guest.Ready(), "") << guest.Log();

  const Address target = *ParseAddress(address);
  const auto own = List(address, *MakeChannelCredentials(target, Tls("guest")));
  ASSERT_TRUE(own.ok()) << own.status();
  EXPECT_EQ(own->sessions_size(), 1) << guest.Log();
  const auto other = List(address, *MakeChannelCredentials(target, Tls("other")));
  ASSERT_TRUE(other.ok()) << other.status();
  EXPECT_EQ(other->sessions_size(), 0);  // another identity's session is not even seen

  EXPECT_EQ(refused(), 0);
  const auto expect_refused = [&](const std::shared_ptr<grpc::ChannelCredentials>& credentials) {
    const double before = refused();
    EXPECT_TRUE(absl::IsUnavailable(List(address, credentials).status()));
    // A client tries again until its call's deadline.
    EXPECT_TRUE(Eventually([&] { return refused() > before; }));
  };
  expect_refused(grpc::InsecureChannelCredentials());
  expect_refused(*MakeChannelCredentials(target, Tls("stranger-guest")));
  expect_refused(*MakeChannelCredentials(target, Tls("expired")));
  // The other way round: a client that trusts another authority does not talk to this server.
  EXPECT_TRUE(absl::IsUnavailable(
      List(address, *MakeChannelCredentials(target, Tls("guest", "stranger"))).status()));
  EXPECT_TRUE(List(address, *MakeChannelCredentials(target, Tls("guest"))).ok());
}

TEST_F(MutualTlsTest, ARemoteGuestsMemoryGoesOverItsOneConnection) {
  const std::string bin = VIOMMU_BIN;
  ServiceProcess hypervisor(bin + "/hypervisor_svc",
                            Args({"--listen=127.0.0.1:0", "--verify=full"}, Tls("hypervisor")),
                            folder_.File("hv.log"));
  const std::string address = ReadyField(hypervisor.Ready(), "grpc");
  ASSERT_NE(address, "") << hypervisor.Log();
  std::vector<std::string> args = Args(
      {"--listen=unix:" + folder_.File("g.sock"), "--hypervisor=" + address, "--memory=remote"},
      Tls("guest"));
  args.push_back("--memory_socket=" + folder_.File("nowhere"));
  ServiceProcess guest(bin + "/guest_svc", args, folder_.File("guest.log"));
  ASSERT_NE(guest.Ready(), "") << guest.Log();
  constexpr uint32_t kDevice = 0x18;
  GuestCalls calls("unix:" + folder_.File("g.sock"));
  const auto domain = calls.CreateDomain();
  ASSERT_TRUE(domain.ok()) << domain.status() << guest.Log();
  ASSERT_TRUE(calls.Attach(*domain, kDevice).ok());
  const auto mapped = calls.Map(*domain, 8192);
  ASSERT_TRUE(mapped.ok()) << mapped.status();
  ASSERT_TRUE(calls.Write(kDevice, mapped->iova(), "over TLS").ok());
  const auto read = calls.Read(kDevice, mapped->iova(), 8);
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(read->read_data(), "over TLS");
  ASSERT_TRUE(calls.Unmap(*domain, mapped->iova(), mapped->size_bytes()).ok());
  EXPECT_NE(calls.Read(kDevice, mapped->iova(), 8)->fault_reason(), 0u);
  const Address target = *ParseAddress(address);
  EXPECT_EQ(List(address, *MakeChannelCredentials(target, Tls("other")))->sessions_size(), 0);
  const auto own = List(address, *MakeChannelCredentials(target, Tls("guest")));
  ASSERT_EQ(own->sessions_size(), 1);
  EXPECT_EQ(own->sessions(0).memory_kind(), v1::GUEST_MEMORY_KIND_REMOTE);
  EXPECT_EQ(own->sessions(0).cost().shadow_mismatches(), 0u);
}

}  // namespace
}  // namespace viommu
