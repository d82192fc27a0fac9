// A guest whose memory the hypervisor cannot map: everything goes over the one TCP connection, and
// nothing else differs from a guest that shares its memory.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <random>

#include "svc_common/conversions.h"
#include "tests/integration/load_client.h"
#include "tests/integration/probes.h"
#include "tests/integration/service_pair.h"

namespace viommu {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr uint32_t kDevice = 0x18;

class RemoteMemoryTest : public ::testing::Test {
 protected:
  RemoteMemoryTest() { pair_.hypervisor_address = "127.0.0.1:0"; }

  // With a memory socket that is nowhere.
  void StartRemoteGuest(std::vector<std::string> more = {}) {
    more.push_back("--memory=remote");
    more.push_back("--memory_socket=" + pair_.folder().File("nowhere"));
    pair_.StartGuest(more);
  }
  uint32_t AttachedDomain() { return MakeTarget(pair_.guest(), kDevice).domain; }
  std::string SessionId() { return pair_.guest().Status()->session_ids(0); }

  ServicePair pair_;
};

absl::StatusOr<v1::WorkloadResult> RunWorkload(GuestCalls& guest, const std::string& policy,
                                               const std::string& strategy) {
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(kCallSeconds));
  const auto stream = guest.stub().RunWorkload(&context);
  v1::RunWorkloadRequest request;
  v1::WorkloadSpec& spec = *request.mutable_spec();
  spec.set_workload("nvme-4k-rr");
  spec.set_op_count(150);
  spec.set_live_pages(600);
  spec.set_seed(7);
  spec.set_policy(policy);
  spec.set_force_lazy(true);
  spec.set_strategy(strategy);
  spec.set_touch_after_unmap(true);
  stream->Write(request);
  stream->WritesDone();
  v1::RunWorkloadResponse response;
  v1::WorkloadResult result;
  while (stream->Read(&response)) {
    if (response.has_result()) result = response.result();
  }
  if (const grpc::Status status = stream->Finish(); !status.ok()) return FromGrpcStatus(status);
  return result;
}

// What must not differ, as text.
std::string Comparable(v1::WorkloadResult result) {
  result.clear_session_id();
  result.clear_wall_seconds();
  result.clear_wall_ns_per_unmap_p50();
  result.clear_wall_ns_per_unmap_p99();
  result.mutable_sync()->clear_remote_pages();
  result.mutable_sync()->clear_remote_bytes();
  result.mutable_sync()->clear_remote_round_trips();
  return result.DebugString();
}

TEST_F(RemoteMemoryTest, EveryCountIsThatOfSharedMemory) {
  pair_.StartHypervisor();
  StartRemoteGuest();
  const std::unique_ptr<ServiceProcess> shared_process =
      pair_.Run("guest_svc",
                {"--listen=unix:" + pair_.folder().File("shared.sock"),
                 "--hypervisor=" + pair_.hypervisor_address, "--ram_bytes=64m",
                 "--memory_socket=" + pair_.folder().File("hv.mem")},
                "shared.log");
  ASSERT_NE(shared_process->Ready(), "") << shared_process->Log();
  GuestCalls shared("unix:" + pair_.folder().File("shared.sock"));
  for (const char* strategy : {"walk", "walk-shared", "snapshot", "nested"}) {
    for (const char* policy : {"strict", "lazy"}) {
      const auto near = RunWorkload(shared, policy, strategy);
      const auto far = RunWorkload(pair_.guest(), policy, strategy);
      ASSERT_TRUE(near.ok()) << near.status();
      ASSERT_TRUE(far.ok()) << far.status();
      EXPECT_EQ(Comparable(*far), Comparable(*near)) << strategy << " " << policy;
      EXPECT_EQ(near->sync().remote_round_trips(), 0u);
      // `nested` reads no tables at an invalidation.
      const bool pulls = std::string(strategy) != "nested";
      EXPECT_EQ(far->sync().remote_pages() > 0, pulls) << strategy;
      EXPECT_EQ(far->sync().remote_bytes(), far->sync().remote_pages() * 4096);
      EXPECT_EQ(far->sync().shadow_mismatches(), 0u);
    }
  }
  const auto metrics = Scrape(pair_.hypervisor_metrics());
  EXPECT_GT(metrics.at("viommu_remote_pages_total{use=\"sync\"}"), 0);
  EXPECT_EQ(metrics.at("viommu_remote_failures_total{reason=\"timeout\"}"), 0);
}

TEST_F(RemoteMemoryTest, ADevicesDataMovesAndStrictBlocksItOnceTheUnmapReturned) {
  pair_.StartHypervisor();
  StartRemoteGuest();
  const uint32_t domain = AttachedDomain();
  const auto mapped = pair_.guest().Map(domain, 8192);
  ASSERT_TRUE(mapped.ok()) << mapped.status();
  const std::string data(5000, 'x');  // over a page boundary
  const auto written = pair_.guest().Write(kDevice, mapped->iova() + 100, data);
  ASSERT_TRUE(written.ok()) << written.status();
  EXPECT_EQ(written->fault_reason(), 0u);
  const auto read = pair_.guest().Read(kDevice, mapped->iova() + 100, 5000);
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(read->read_data(), data);
  EXPECT_FALSE(read->stale());

  const auto unmapped = pair_.guest().Unmap(domain, mapped->iova(), mapped->size_bytes());
  ASSERT_TRUE(unmapped.ok()) << unmapped.status();
  EXPECT_FALSE(unmapped->deferred());
  const auto blocked = pair_.guest().Read(kDevice, mapped->iova(), 8);
  ASSERT_TRUE(blocked.ok()) << blocked.status();
  EXPECT_EQ(blocked->fault_reason(), 0x6u);  // VT-d 7.1.3: no read permission
  EXPECT_EQ(blocked->read_data(), "");
  const auto session = pair_.hypervisor().Session(SessionId(), false);
  ASSERT_TRUE(session.ok()) << session.status();
  EXPECT_EQ(session->memory_kind(), v1::GUEST_MEMORY_KIND_REMOTE);
  EXPECT_EQ(session->cost().shadow_mismatches(), 0u);
  EXPECT_GT(session->cost().verified_pages(), 0u);
  EXPECT_GT(session->remote_pages_pulled(), session->cost().remote_pages());
}

TEST_F(RemoteMemoryTest, NothingIsLostWhenTheHypervisorIsKilledUnderLoad) {
  const uint64_t rounds = NumberFromEnvironment("VIOMMU_CHAOS_ROUNDS", 3);
  const uint64_t seed = NumberFromEnvironment("VIOMMU_CHAOS_SEED", 1);
  static constexpr const char* kStrategies[] = {"walk", "snapshot", "nested", "walk-shared"};
  std::mt19937_64 random(seed);
  pair_.StartHypervisor();
  StartRemoteGuest({"--vcpus=4"});
  const std::vector<Target> targets = {{AttachedDomain(), kDevice}};
  LoadClient load({.guest_address = pair_.guest_address, .targets = targets, .seed = seed});
  History history;
  for (uint64_t round = 0; round < rounds; ++round) {
    load.Start();
    const uint64_t until = load.done() + random() % 100;
    ASSERT_TRUE(Eventually([&] { return load.done() >= until; }));
    std::this_thread::sleep_for(std::chrono::microseconds(random() % 5'000));
    history.outages.push_back(
        RestartHypervisor(pair_, std::chrono::milliseconds(random() % 100),
                          {"--strategy=" + std::string(kStrategies[round % 4])}));
    ASSERT_FALSE(HasFatalFailure());
    const uint64_t before = load.done();
    ASSERT_TRUE(Eventually([&] { return load.done() > before + 40; }))
        << pair_.guest_process().Log();
    load.Stop();
    const std::vector<Op> ops = load.TakeOps();
    history.ops.insert(history.ops.end(), ops.begin(), ops.end());
    EXPECT_THAT(SweepMappings(pair_.hypervisor(), SessionId(), targets, LiveMappings(history)),
                IsEmpty())
        << "round " << round << "\n"
        << pair_.guest_process().Log() << pair_.hypervisor_process().Log();
  }
  EXPECT_THAT(CheckHistory(history), IsEmpty());
  const auto status = pair_.guest().Status();
  ASSERT_TRUE(status.ok());
  EXPECT_THAT(CheckTotals(history, {status->map_count(), status->unmap_count(),
                                    status->iova_allocated_bytes()}),
              IsEmpty());
}

TEST_F(RemoteMemoryTest, AStoppedGuestEndsItsStreamHarmsNobodyAndComesBack) {
  pair_.StartHypervisor({"--remote_page_timeout_ms=300", "--session_ttl_ms=60000"});
  StartRemoteGuest();
  const uint32_t domain = AttachedDomain();
  const auto mapped = pair_.guest().Map(domain, 4096);
  ASSERT_TRUE(mapped.ok()) << mapped.status();
  const std::string session = SessionId();
  const std::unique_ptr<ServiceProcess> other_process =
      pair_.Run("guest_svc",
                {"--listen=unix:" + pair_.folder().File("other.sock"),
                 "--hypervisor=" + pair_.hypervisor_address, "--ram_bytes=64m", "--memory=remote"},
                "other.log");
  ASSERT_NE(other_process->Ready(), "") << other_process->Log();
  GuestCalls other("unix:" + pair_.folder().File("other.sock"));

  pair_.guest_process().Signal(SIGSTOP);
  // Where an access goes the shadow says without the guest; the data are the guest's.
  const absl::Status shadow =
      pair_.hypervisor().Translate(session, kDevice, mapped->iova()).status();
  EXPECT_TRUE(shadow.ok()) << shadow;
  v1::DmaRequest read;
  read.set_session_id(session);
  read.set_source_id(kDevice);
  read.set_iova(mapped->iova());
  read.set_read_size_bytes(8);
  v1::DmaResponse answer;
  {
    grpc::ClientContext context;
    const absl::Status status =
        FromGrpcStatus(pair_.hypervisor().stub().Dma(&context, read, &answer));
    EXPECT_TRUE(absl::IsUnavailable(status)) << status;
    EXPECT_EQ(ErrorReason(status), "REMOTE_MEMORY");
    EXPECT_THAT(status.message(), HasSubstr("--remote_page_timeout_ms"));
  }
  EXPECT_EQ(
      Scrape(pair_.hypervisor_metrics()).at("viommu_remote_failures_total{reason=\"timeout\"}"), 1);
  const auto other_domain = other.CreateDomain();
  ASSERT_TRUE(other_domain.ok()) << other_domain.status();
  EXPECT_TRUE(other.Attach(*other_domain, kDevice).ok());
  EXPECT_TRUE(other.Map(*other_domain, 4096).ok());

  pair_.guest_process().Signal(SIGCONT);
  const auto more = pair_.guest().Map(domain, 4096);
  ASSERT_TRUE(more.ok()) << more.status();
  grpc::ClientContext context;
  const absl::Status back = FromGrpcStatus(pair_.hypervisor().stub().Dma(&context, read, &answer));
  EXPECT_TRUE(back.ok()) << back;
  EXPECT_EQ(answer.read_data().size(), 8u);
}

TEST_F(RemoteMemoryTest, TheStrategyThatNeedsASharedLogIsRefusedByName) {
  pair_.StartHypervisor();
  StartRemoteGuest({"--strategy=dirty-log"});
  const absl::Status refused = pair_.guest().CreateDomain().status();
  EXPECT_TRUE(absl::IsUnavailable(refused)) << refused;
  EXPECT_THAT(refused.message(), HasSubstr("use snapshot for a guest with --memory=remote"));
}

}  // namespace
}  // namespace viommu
