// What stands still, fills up or loses packets: a named outcome each, no hang, nothing lost.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/socket.h>

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <thread>

#include "svc_common/conversions.h"
#include "svc_common/memory_channel.h"
#include "tests/integration/load_client.h"
#include "tests/integration/probes.h"
#include "tests/integration/service_pair.h"

namespace viommu {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using std::chrono::steady_clock;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr uint32_t kDevice = 0x18;
constexpr uint64_t kPage = 4096;
constexpr uint64_t kMiB = uint64_t{1} << 20;

class StallTest : public ::testing::Test {
 protected:
  // One map, a device's write and read, one unmap, and the device is blocked.
  void ExpectServes(GuestCalls& guest, const Target& target) {
    const auto mapped = guest.Map(target.domain, kPage);
    ASSERT_TRUE(mapped.ok()) << mapped.status();
    EXPECT_EQ(guest.Write(target.source_id, mapped->iova(), "ok")->fault_reason(), 0u);
    EXPECT_EQ(guest.Read(target.source_id, mapped->iova(), 2)->read_data(), "ok");
    const auto unmapped = guest.Unmap(target.domain, mapped->iova(), kPage);
    ASSERT_TRUE(unmapped.ok()) << unmapped.status();
    EXPECT_NE(guest.Read(target.source_id, mapped->iova(), 2)->fault_reason(), 0u);
  }
  std::unique_ptr<ServiceProcess> SecondGuest(std::unique_ptr<GuestCalls>& calls) {
    auto process =
        pair_.Run("guest_svc",
                  {"--listen=unix:" + pair_.folder().File("second.sock"), "--metrics=off",
                   "--hypervisor=" + pair_.hypervisor_address, "--ram_bytes=64m",
                   "--memory_socket=" + pair_.folder().File("hv.mem")},
                  "second.log");
    EXPECT_NE(process->Ready(), "") << process->Log();
    calls = std::make_unique<GuestCalls>("unix:" + pair_.folder().File("second.sock"));
    return process;
  }
  std::vector<std::string> Sweep(const std::vector<Target>& targets,
                                 const std::vector<LiveMapping>& live) {
    return SweepMappings(pair_.hypervisor(), pair_.guest().Status()->session_ids(0), targets, live);
  }

  ServicePair pair_;
};

// A stopped guest is not a dead one: its session stays, its neighbour is served, it goes on.
TEST_F(StallTest, AStoppedGuestKeepsItsSessionAndHoldsNobodyUp) {
  pair_.StartHypervisor();
  pair_.StartGuest();
  const Target own = MakeTarget(pair_.guest(), kDevice);
  const auto kept = pair_.guest().Map(own.domain, kPage);
  ASSERT_TRUE(kept.ok());
  std::unique_ptr<GuestCalls> second;
  const auto second_process = SecondGuest(second);
  const Target other = MakeTarget(*second, kDevice);

  pair_.guest_process().Signal(SIGSTOP);
  const auto until = steady_clock::now() + milliseconds(1'500);  // three times to live
  do {
    ExpectServes(*second, other);
  } while (steady_clock::now() < until && !HasFatalFailure());
  EXPECT_EQ(pair_.hypervisor().Sessions()->sessions_size(), 2);
  pair_.guest_process().Signal(SIGCONT);

  ExpectServes(pair_.guest(), own);
  EXPECT_THAT(Sweep({own}, {{own.domain, 0, kept->iova(), kPage, kept->guest_pa()}}), IsEmpty());
  EXPECT_EQ(Scrape(pair_.guest_metrics())["viommu_stream_reconnects_total{reason=\"unavailable\"}"],
            0);
}

// The hypervisor does not answer: the guest does, before its caller's deadline. What was asked for
// is neither lost nor taken for done.
TEST_F(StallTest, AStoppedHypervisorIsSaidInTimeAndCatchesUp) {
  pair_.StartHypervisor({"--session_ttl_ms=60000"});
  pair_.StartGuest();
  const Target target = MakeTarget(pair_.guest(), kDevice);
  const auto first = pair_.guest().Map(target.domain, kPage);
  const auto second = pair_.guest().Map(target.domain, kPage);
  ASSERT_TRUE(first.ok() && second.ok());
  const uint64_t held = pair_.guest().Status()->iova_allocated_bytes();

  pair_.hypervisor_process().Signal(SIGSTOP);
  const auto unmap = [&](uint64_t iova) {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + seconds(3));
    v1::UnmapRequest request;
    request.set_domain(target.domain);
    request.set_iova(iova);
    request.set_size_bytes(kPage);
    v1::UnmapResponse response;
    return FromGrpcStatus(pair_.guest().stub().Unmap(&context, request, &response));
  };
  const absl::Status outstanding = unmap(first->iova());
  EXPECT_TRUE(absl::IsDeadlineExceeded(outstanding));
  EXPECT_THAT(std::string(outstanding.message()), HasSubstr("hypervisor_svc"));
  const absl::Status refused = unmap(second->iova());
  EXPECT_TRUE(absl::IsDeadlineExceeded(refused));
  EXPECT_THAT(std::string(refused.message()), HasSubstr("nothing was done"));
  EXPECT_EQ(pair_.guest().Status()->iova_allocated_bytes(), held);
  pair_.hypervisor_process().Signal(SIGCONT);

  // Without any further call.
  EXPECT_TRUE(Eventually([&] {
    const auto read = pair_.guest().Read(kDevice, first->iova(), 8);
    return read.ok() && read->fault_reason() != 0;
  }));
  EXPECT_EQ(pair_.guest().Read(kDevice, second->iova(), 8)->fault_reason(), 0u);
  ExpectServes(pair_.guest(), target);
  EXPECT_THAT(Sweep({target}, {{target.domain, 0, second->iova(), kPage, second->guest_pa()}}),
              IsEmpty());
  EXPECT_EQ(pair_.guest().Status()->iova_allocated_bytes(), kPage);
}

// A guest that does not read its completions costs the hypervisor no more than a window of them,
// holds up nobody, and gets every answer once it reads.
TEST_F(StallTest, ASlowReaderCostsAWindowAndLosesNothing) {
  pair_.StartHypervisor({"--max_outstanding_batches=8"});
  pair_.StartGuest();
  const Target target = MakeTarget(pair_.guest(), kDevice);
  const auto memory = GrantedMemory::Request(pair_.folder().File("hv.mem"), kMiB);
  ASSERT_TRUE(memory.ok()) << memory.status();
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + seconds(60 * kPatience));
  const auto call = pair_.hypervisor().stub().Invalidate(&context);
  v1::InvalidateRequest request;
  v1::OpenSession* open = request.mutable_open();
  open->set_guest_instance_id("slow");
  open->set_stream_epoch(1);
  open->set_next_sequence(1);
  open->set_guest_ram_bytes(kMiB);
  open->set_memory_kind(v1::GUEST_MEMORY_KIND_SHARED);
  open->set_memory_token((*memory)->token());
  open->set_guest_haw_bits(39);
  ASSERT_TRUE(call->Write(request));
  const uint64_t before = FiguresOf(pair_.hypervisor_process().pid()).resident_bytes;
  constexpr uint64_t kBatches = 20'000;
  std::atomic<uint64_t> sent{0};
  std::thread writer([&] {
    // Of no known type: each has an answer of its own, which is never joined with the next one's.
    v1::InvalidateRequest batch;
    batch.mutable_batch()->add_descriptor_words(0);
    batch.mutable_batch()->add_descriptor_words(0);
    for (uint64_t i = 1; i <= kBatches; ++i) {
      batch.mutable_batch()->set_sequence(i);
      if (!call->Write(batch)) break;
      ++sent;
    }
    call->WritesDone();
  });
  // All of it, if what gRPC buffers on both sides is enough, or until it is held back.
  EXPECT_TRUE(Eventually([&] {
    const uint64_t seen = sent;
    std::this_thread::sleep_for(milliseconds(500));
    return seen != 0 && sent == seen;
  }));
  ExpectServes(pair_.guest(), target);
  if (!kSanitized) {
    EXPECT_LT(FiguresOf(pair_.hypervisor_process().pid()).resident_bytes, before + 16 * kMiB);
  }
  uint64_t completed = 0;
  for (v1::InvalidateResponse response; call->Read(&response);) {
    if (response.has_completion()) completed = response.completion().sequence();
  }
  writer.join();
  EXPECT_TRUE(call->Finish().ok());
  EXPECT_EQ(sent, kBatches);
  EXPECT_EQ(completed, kBatches);
}

// Connections whose other end says nothing more cost a descriptor each and hold nobody up.
TEST_F(StallTest, HalfOpenConnectionsHoldNobodyUp) {
  pair_.hypervisor_address = "127.0.0.1:0";
  pair_.StartHypervisor({"--open_timeout_ms=200"});
  pair_.StartGuest();
  const Target target = MakeTarget(pair_.guest(), kDevice);
  EXPECT_TRUE(pair_.hypervisor().Sessions().ok());  // this test's own connection
  const uint64_t before = FiguresOf(pair_.hypervisor_process().pid()).descriptors;
  {
    std::vector<RawConnection> silent;
    for (int i = 0; i < 64; ++i) {
      silent.push_back(RawConnection::Tcp(pair_.hypervisor_address));
      ASSERT_TRUE(silent.back().connected());
      if (i % 2 == 0) silent.back().Send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
      silent.push_back(RawConnection::Unix(pair_.folder().File("hv.mem"), SOCK_SEQPACKET));
    }
    ExpectServes(pair_.guest(), target);
    // A stream that opens no session is ended by name.
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + seconds(20 * kPatience));
    const auto call = pair_.hypervisor().stub().Invalidate(&context);
    v1::InvalidateResponse response;
    EXPECT_FALSE(call->Read(&response));
    const absl::Status end = FromGrpcStatus(call->Finish());
    EXPECT_TRUE(absl::IsDeadlineExceeded(end)) << end;
    EXPECT_EQ(ErrorReason(end), "NOT_OPENED");
  }
  EXPECT_TRUE(Eventually(
      [&] { return FiguresOf(pair_.hypervisor_process().pid()).descriptors <= before; }));
  ExpectServes(pair_.guest(), target);
}

// Log lines are lost, work is not.
TEST_F(StallTest, AFullDiskForLogsStopsNothing) {
  const std::string bin = VIOMMU_BIN;
  const std::string address = "unix:" + pair_.folder().File("full.sock");
  const std::string guest_address = "unix:" + pair_.folder().File("full-guest.sock");
  ServiceProcess hypervisor(bin + "/hypervisor_svc",
                            {"--listen=" + address, "--session_ttl_ms=100", "--metrics=off"},
                            "/dev/full");
  ASSERT_NE(hypervisor.Ready(), "");
  for (int i = 0; i < 2; ++i) {
    ServiceProcess guest(bin + "/guest_svc",
                         {"--listen=" + guest_address, "--hypervisor=" + address, "--ram_bytes=16m",
                          "--metrics=off"},
                         "/dev/full");
    ASSERT_NE(guest.Ready(), "");
    GuestCalls calls(guest_address);
    ExpectServes(calls, MakeTarget(calls, kDevice));
    guest.Signal(SIGKILL);  // its release is a line in the hypervisor's log
    guest.Wait();
    HypervisorCalls operator_calls(address);
    EXPECT_TRUE(Eventually([&] {
      const auto sessions = operator_calls.Sessions();
      return sessions.ok() && sessions->sessions_size() == 0;
    }));
  }
  hypervisor.Signal(SIGTERM);
  EXPECT_EQ(hypervisor.Wait(), 0);
}

// The guest in a network namespace of its own, the hypervisor across a link that drops packets.
class LinkTest : public StallTest, public ::testing::WithParamInterface<const char*> {
 protected:
  void SetUp() override {
    // The kernel takes its time to drop the last one's link.
    static int number = 0;
    const std::string id = std::to_string(getpid() % 10'000) + "-" + std::to_string(++number);
    space_ = "viommu-" + id;
    outside_ = "vout" + id;
    const std::string subnet = "10.91." + std::to_string((getpid() + number) % 250) + ".";
    if (geteuid() != 0 || !Shell("command -v ip iptables") || !Shell("ip netns add " + space_)) {
      GTEST_SKIP() << "needs root, ip and iptables for a network namespace";
    }
    const bool up =
        Shell("ip link add " + outside_ + " type veth peer name inside netns " + space_) &&
        Shell("ip addr add " + subnet + "1/24 dev " + outside_) &&
        Shell("ip link set " + outside_ + " up") &&
        Shell("ip -n " + space_ + " addr add " + subnet + "2/24 dev inside") &&
        Shell("ip -n " + space_ + " link set inside up") && Inside("iptables -L");
    if (!up) GTEST_SKIP() << "this kernel gives no veth link or no iptables";
    pair_.hypervisor_address = subnet + "1:0";
    pair_.StartHypervisor({"--insecure", "--session_ttl_ms=1000"});
    ASSERT_FALSE(HasFatalFailure());
    guest_process_ = std::make_unique<ServiceProcess>(
        "/usr/bin/env",
        std::vector<std::string>{
            "ip", "netns", "exec", space_, std::string(VIOMMU_BIN) + "/guest_svc",
            "--listen=" + pair_.guest_address, "--hypervisor=" + pair_.hypervisor_address,
            "--insecure", "--metrics=off", "--ram_bytes=64m", "--vcpus=4",
            "--memory=" + std::string(GetParam()),
            "--memory_socket=" +
                pair_.folder().File(GetParam() == std::string("remote") ? "nowhere" : "hv.mem")},
        pair_.folder().File("guest.log"));
    ASSERT_NE(guest_process_->Ready(), "") << guest_process_->Log();
    guest_ = std::make_unique<GuestCalls>(pair_.guest_address);
  }
  void TearDown() override {
    guest_process_.reset();
    Shell("ip netns del " + space_);
  }
  static bool Shell(const std::string& command) {
    return std::system(("{ " + command + "; } > /dev/null 2>&1").c_str()) == 0;
  }
  bool Inside(const std::string& command) {
    return Shell("ip netns exec " + space_ + " " + command);
  }
  // Under load while `disturb` goes on; then every record holds, and shadow and guest agree.
  void ExpectNothingLost(const std::function<void(LoadClient&)>& disturb) {
    const std::vector<Target> targets = {MakeTarget(*guest_, 0x18), MakeTarget(*guest_, 0x20)};
    LoadClient load({.guest_address = pair_.guest_address, .targets = targets});
    load.Start();
    ASSERT_TRUE(Eventually([&] { return load.done() > 50; }));
    disturb(load);
    const uint64_t before = load.done();
    ASSERT_TRUE(Eventually([&] { return load.done() > before + 40; })) << guest_process_->Log();
    load.Stop();
    History history;
    history.ops = load.TakeOps();
    EXPECT_THAT(CheckHistory(history), IsEmpty());
    const auto status = guest_->Status();
    ASSERT_TRUE(status.ok()) << status.status();
    EXPECT_THAT(CheckTotals(history, {status->map_count(), status->unmap_count(),
                                      status->iova_allocated_bytes()}),
                IsEmpty());
    EXPECT_THAT(
        SweepMappings(pair_.hypervisor(), status->session_ids(0), targets, LiveMappings(history)),
        IsEmpty());
    std::printf("%zu operations\n", history.ops.size());
  }

  std::string space_;
  std::string outside_;
  std::unique_ptr<ServiceProcess> guest_process_;
  std::unique_ptr<GuestCalls> guest_;
};

TEST_P(LinkTest, ACutLinkLosesNothing) {
  const uint64_t cut_seconds = NumberFromEnvironment("VIOMMU_CUT_SECONDS", 1);
  ExpectNothingLost([&](LoadClient&) {
    ASSERT_TRUE(Inside("iptables -A INPUT -i inside -j DROP"));
    ASSERT_TRUE(Inside("iptables -A OUTPUT -o inside -j DROP"));
    std::this_thread::sleep_for(seconds(cut_seconds));
    // The guest answers while the link is cut, too, before its caller's clock decides.
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + seconds(3));
    v1::MapRequest map;
    map.set_allocate_bytes(kPage);
    map.set_access(v1::ACCESS_KIND_READ);
    v1::MapResponse mapped;
    const absl::Status status = FromGrpcStatus(guest_->stub().Map(&context, map, &mapped));
    EXPECT_TRUE(absl::IsDeadlineExceeded(status)) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr("nothing was done"));
    ASSERT_TRUE(Inside("iptables -F"));
  });
}

TEST_P(LinkTest, AFifthOfThePacketsLostLosesNothing) {
  const uint64_t operations = NumberFromEnvironment("VIOMMU_LOSSY_OPS", 10);
  ExpectNothingLost([&](LoadClient& load) {
    const std::string lose = " -m statistic --mode random --probability 0.2 -j DROP";
    if (!Inside("iptables -A INPUT -i inside" + lose)) {
      GTEST_SKIP() << "this kernel's iptables has no statistic match";
    }
    ASSERT_TRUE(Inside("iptables -A OUTPUT -o inside" + lose));
    const uint64_t until = load.done() + operations;
    // A lost packet costs its sender 200 ms, one lost again twice that, and a remote guest's unmap
    // takes several round trips.
    EXPECT_TRUE(
        Eventually([&] { return load.done() >= until; }, seconds(20) + seconds(2) * operations))
        << guest_process_->Log();
    ASSERT_TRUE(Inside("iptables -F"));
  });
}

INSTANTIATE_TEST_SUITE_P(GuestMemory, LinkTest, ::testing::Values("shared", "remote"),
                         [](const auto& link) { return std::string(link.param); });

}  // namespace
}  // namespace viommu
