// The two services as real processes: a device's data, its exposure, and what a crash does.
#include <gmock/gmock.h>
#include <grpcpp/create_channel.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <functional>

#include "svc_common/conversions.h"
#include "svc_common/service_host.h"
#include "tests/fakes/service_process.h"
#include "tests/fakes/temp_folder.h"
#include "viommu/v1/guest_service.grpc.pb.h"
#include "viommu/v1/hypervisor_service.grpc.pb.h"

namespace viommu {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

constexpr uint32_t kDevice = 0x18;                // 00:03.0
constexpr uint32_t kReadDeniedOrNotMapped = 0x6;  // VT-d 7.1.3: no read permission

bool Eventually(const std::function<bool()>& condition) {
  for (int i = 0; i < 2000; ++i) {
    if (condition()) return true;
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  return false;
}

class ServicesTest : public ::testing::Test {
 protected:
  std::unique_ptr<ServiceProcess> Run(const std::string& name, std::vector<std::string> args) {
    return std::make_unique<ServiceProcess>(std::string(VIOMMU_BIN) + "/" + name, std::move(args),
                                            folder_.File(name + ".log"));
  }
  void StartHypervisor(std::vector<std::string> more = {}) {
    std::vector<std::string> args = {"--listen=" + hypervisor_address_, "--verify=full",
                                     "--session_ttl_ms=500"};
    args.insert(args.end(), more.begin(), more.end());
    hypervisor_process_ = Run("hypervisor_svc", args);
    ASSERT_THAT(hypervisor_ready_ = hypervisor_process_->Ready(),
                StartsWith("READY grpc=" + hypervisor_address_ + " metrics=127.0.0.1:"))
        << hypervisor_process_->Log();
    hypervisor_ = v1::HypervisorService::NewStub(grpc::CreateCustomChannel(
        hypervisor_address_, grpc::InsecureChannelCredentials(), ClientChannelArguments()));
  }
  void StartGuest(std::vector<std::string> more = {}) {
    std::vector<std::string> args = {"--listen=" + guest_address_,
                                     "--hypervisor=" + hypervisor_address_, "--ram_bytes=64m"};
    args.insert(args.end(), more.begin(), more.end());
    guest_process_ = Run("guest_svc", args);
    ASSERT_THAT(guest_ready_ = guest_process_->Ready(), StartsWith("READY grpc="))
        << guest_process_->Log();
    guest_ = v1::GuestService::NewStub(grpc::CreateCustomChannel(
        guest_address_, grpc::InsecureChannelCredentials(), ClientChannelArguments()));
  }

  template <typename Request, typename Response>
  absl::Status Call(grpc::Status (v1::GuestService::Stub::*method)(grpc::ClientContext*,
                                                                   const Request&, Response*),
                    const Request& request, Response* response) {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(15));
    return FromGrpcStatus((guest_.get()->*method)(&context, request, response));
  }

  // A domain with the device in it.
  uint32_t Attach() {
    v1::Domain domain;
    EXPECT_TRUE(
        Call(&v1::GuestService::Stub::CreateDomain, v1::CreateDomainRequest(), &domain).ok());
    v1::AttachDeviceRequest attach;
    attach.set_domain(domain.domain());
    attach.set_source_id(kDevice);
    v1::AttachDeviceResponse attached;
    const absl::Status status = Call(&v1::GuestService::Stub::AttachDevice, attach, &attached);
    EXPECT_TRUE(status.ok()) << status;
    return domain.domain();
  }
  absl::StatusOr<v1::MapResponse> Map(uint32_t domain) {
    v1::MapRequest request;
    request.set_domain(domain);
    request.set_access(v1::ACCESS_KIND_READ_WRITE);
    request.set_allocate_bytes(8192);
    v1::MapResponse response;
    const absl::Status status = Call(&v1::GuestService::Stub::Map, request, &response);
    if (!status.ok()) return status;
    return response;
  }
  absl::StatusOr<v1::UnmapResponse> Unmap(uint32_t domain, const v1::MapResponse& mapped) {
    v1::UnmapRequest request;
    request.set_domain(domain);
    request.set_iova(mapped.iova());
    request.set_size_bytes(mapped.size_bytes());
    v1::UnmapResponse response;
    const absl::Status status = Call(&v1::GuestService::Stub::Unmap, request, &response);
    if (!status.ok()) return status;
    return response;
  }
  absl::StatusOr<v1::AccessResponse> Write(uint64_t iova, const std::string& data) {
    v1::AccessRequest request;
    request.set_source_id(kDevice);
    request.set_iova(iova);
    request.set_write_data(data);
    v1::AccessResponse response;
    const absl::Status status = Call(&v1::GuestService::Stub::Access, request, &response);
    if (!status.ok()) return status;
    return response;
  }
  absl::StatusOr<v1::AccessResponse> Read(uint64_t iova, uint32_t size) {
    v1::AccessRequest request;
    request.set_source_id(kDevice);
    request.set_iova(iova);
    request.set_read_size_bytes(size);
    v1::AccessResponse response;
    const absl::Status status = Call(&v1::GuestService::Stub::Access, request, &response);
    if (!status.ok()) return status;
    return response;
  }
  v1::ListSessionsResponse Sessions() {
    v1::ListSessionsResponse response;
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(5));
    hypervisor_->ListSessions(&context, v1::ListSessionsRequest(), &response);
    return response;
  }

  TempFolder folder_;
  std::string hypervisor_address_ = "unix:" + folder_.File("hv.sock");
  std::string guest_address_ = "unix:" + folder_.File("guest.sock");
  std::unique_ptr<ServiceProcess> hypervisor_process_;
  std::unique_ptr<ServiceProcess> guest_process_;
  std::string hypervisor_ready_;
  std::string guest_ready_;
  std::unique_ptr<v1::HypervisorService::Stub> hypervisor_;
  std::unique_ptr<v1::GuestService::Stub> guest_;
};

TEST_F(ServicesTest, StrictBlocksTheDeviceOnceTheUnmapReturned) {
  StartHypervisor({"--debug_calls"});
  StartGuest();
  const uint32_t domain = Attach();
  const auto mapped = Map(domain);
  ASSERT_TRUE(mapped.ok()) << mapped.status();
  const std::string data(5000, 'x');  // over a page boundary
  const auto written = Write(mapped->iova() + 100, data);
  ASSERT_TRUE(written.ok()) << written.status();
  EXPECT_EQ(written->fault_reason(), 0u);
  const auto read = Read(mapped->iova() + 100, 5000);
  ASSERT_TRUE(read.ok());
  EXPECT_EQ(read->read_data(), data);

  v1::TranslateRequest translate;
  translate.set_session_id(Sessions().sessions(0).session_id());
  translate.set_source_id(kDevice);
  translate.set_iova(mapped->iova() + 100);
  translate.set_access(v1::ACCESS_KIND_READ);
  v1::TranslateResponse translated;
  grpc::ClientContext translate_context;
  ASSERT_TRUE(hypervisor_->Translate(&translate_context, translate, &translated).ok());
  EXPECT_EQ(translated.fault_reason(), 0u);
  EXPECT_EQ(translated.guest_pa(), mapped->guest_pa() + 100);
  v1::GetSessionRequest get;
  get.set_session_id(translate.session_id());
  get.set_include_mappings(true);
  v1::Session session;
  grpc::ClientContext get_context;
  ASSERT_TRUE(hypervisor_->GetSession(&get_context, get, &session).ok());
  ASSERT_EQ(session.mappings_size(), 1);
  EXPECT_EQ(session.mappings(0).iova(), mapped->iova());
  EXPECT_EQ(session.mappings(0).iova_end(), mapped->iova() + 8192);
  EXPECT_EQ(session.mappings(0).guest_pa(), mapped->guest_pa());
  EXPECT_TRUE(session.mappings(0).read() && session.mappings(0).write());

  const auto unmapped = Unmap(domain, *mapped);
  ASSERT_TRUE(unmapped.ok()) << unmapped.status();
  EXPECT_FALSE(unmapped->deferred());
  const auto blocked = Read(mapped->iova(), 8);
  ASSERT_TRUE(blocked.ok());
  EXPECT_EQ(blocked->fault_reason(), kReadDeniedOrNotMapped);
  EXPECT_EQ(blocked->read_data(), "");

  v1::ReadFaultsResponse faults;
  ASSERT_TRUE(Call(&v1::GuestService::Stub::ReadFaults, v1::ReadFaultsRequest(), &faults).ok());
  ASSERT_EQ(faults.faults_size(), 1);
  EXPECT_EQ(faults.faults(0).source_id(), kDevice);
  EXPECT_EQ(faults.faults(0).iova(), mapped->iova());
  EXPECT_TRUE(faults.faults(0).read());
  v1::ReadFaultsResponse cleared;
  ASSERT_TRUE(Call(&v1::GuestService::Stub::ReadFaults, v1::ReadFaultsRequest(), &cleared).ok());
  EXPECT_EQ(cleared.faults_size(), 0);

  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(10));
  const auto watch = hypervisor_->WatchFaults(&context, v1::WatchFaultsRequest());
  v1::WatchFaultsResponse watched;
  ASSERT_TRUE(watch->Read(&watched));
  ASSERT_EQ(watched.faults_size(), 1);
  EXPECT_EQ(watched.faults(0).iova(), mapped->iova());
  context.TryCancel();

  const v1::ListSessionsResponse sessions = Sessions();
  ASSERT_EQ(sessions.sessions_size(), 1);
  EXPECT_EQ(sessions.sessions(0).cost().shadow_mismatches(), 0u);
  EXPECT_GT(sessions.sessions(0).cost().verified_pages(), 0u);
  EXPECT_EQ(sessions.sessions(0).live_page_count(), 0u);
}

TEST_F(ServicesTest, LazyLeavesTheDeviceItsAccessUntilTheFlush) {
  StartHypervisor();
  // One ring, 1 s: the flush below comes long before the timer.
  StartGuest({"--policy=lazy-single", "--force_lazy"});
  const uint32_t domain = Attach();
  const auto mapped = Map(domain);
  ASSERT_TRUE(mapped.ok()) << mapped.status();
  ASSERT_EQ(Write(mapped->iova(), "secret")->fault_reason(), 0u);
  EXPECT_TRUE(Unmap(domain, *mapped)->deferred());
  const auto stale = Read(mapped->iova(), 6);
  ASSERT_TRUE(stale.ok());
  EXPECT_EQ(stale->fault_reason(), 0u);
  EXPECT_EQ(stale->read_data(), "secret");
  EXPECT_TRUE(stale->stale());
  v1::FlushResponse flushed;
  ASSERT_TRUE(Call(&v1::GuestService::Stub::Flush, v1::FlushRequest(), &flushed).ok());
  EXPECT_EQ(flushed.entry_count(), 1u);
  EXPECT_NE(Read(mapped->iova(), 6)->fault_reason(), 0u);
}

TEST_F(ServicesTest, CachingModeOnAnyUnitDecidesBeforeADeviceIsThere) {
  StartGuest({"--policy=lazy", "--iommus=nocm,cm"});  // and before there is a hypervisor
  v1::PolicyState state;
  ASSERT_TRUE(Call(&v1::GuestService::Stub::GetPolicy, v1::GetPolicyRequest(), &state).ok());
  EXPECT_EQ(state.requested_policy(), "lazy");
  EXPECT_EQ(state.effective_policy(), "strict");
  EXPECT_NE(state.reason(), "");
  v1::SetPolicyRequest forced;
  forced.set_policy("lazy");
  forced.set_force_lazy(true);
  ASSERT_TRUE(Call(&v1::GuestService::Stub::SetPolicy, forced, &state).ok());
  EXPECT_EQ(state.effective_policy(), "lazy");
}

TEST_F(ServicesTest, ABatchAnswersOperationByOperation) {
  StartHypervisor();
  StartGuest();
  const uint32_t domain = Attach();
  v1::BatchRequest request;
  v1::MapRequest* map = request.add_ops()->mutable_map();
  map->set_domain(domain);
  map->set_allocate_bytes(4096);
  map->set_access(v1::ACCESS_KIND_READ);
  request.add_ops()->mutable_unmap()->set_domain(domain + 7);
  request.add_ops();
  v1::BatchResponse response;
  ASSERT_TRUE(Call(&v1::GuestService::Stub::Batch, request, &response).ok());
  ASSERT_EQ(response.results_size(), 3);
  EXPECT_EQ(response.results(0).status().code(), 0);
  EXPECT_EQ(response.results(0).map().size_bytes(), 4096u);
  EXPECT_EQ(response.results(1).status().code(), static_cast<int>(absl::StatusCode::kNotFound));
  EXPECT_EQ(response.results(2).status().code(),
            static_cast<int>(absl::StatusCode::kInvalidArgument));
  for (int i = 0; i < 4096; ++i) request.add_ops();
  EXPECT_TRUE(absl::IsInvalidArgument(Call(&v1::GuestService::Stub::Batch, request, &response)));
}

TEST_F(ServicesTest, AKilledHypervisorIsWaitedForAndRebuilt) {
  StartHypervisor();
  StartGuest();
  const uint32_t domain = Attach();
  const auto kept = Map(domain);
  ASSERT_TRUE(kept.ok()) << kept.status();
  ASSERT_EQ(Write(kept->iova(), "still here")->fault_reason(), 0u);
  hypervisor_process_->Signal(SIGKILL);
  EXPECT_EQ(hypervisor_process_->Wait(), -SIGKILL);

  // Nothing hangs: the caller's deadline holds, and the text says what to do.
  EXPECT_TRUE(absl::IsUnavailable(Read(kept->iova(), 4).status()));
  v1::MapRequest request;
  request.set_domain(domain);
  request.set_access(v1::ACCESS_KIND_READ);
  request.set_allocate_bytes(4096);
  v1::MapResponse mapped;
  const auto begin = std::chrono::steady_clock::now();
  const absl::Status away = Call(&v1::GuestService::Stub::Map, request, &mapped);
  EXPECT_TRUE(absl::IsDeadlineExceeded(away)) << away;
  EXPECT_THAT(away.message(), HasSubstr("hypervisor_svc"));
  // 10 s whatever happens to be outstanding (machine_host.cc), and what a loaded machine adds.
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(14));
  EXPECT_THAT(guest_process_->Log(), HasSubstr("lost the hypervisor at " + hypervisor_address_));

  StartHypervisor();  // over the socket file that the crash left behind
  ASSERT_TRUE(Eventually([&] {
    const auto read = Read(kept->iova(), 10);
    return read.ok() && read->fault_reason() == 0 && read->read_data() == "still here";
  })) << guest_process_->Log();
  const auto more = Map(domain);
  EXPECT_TRUE(more.ok()) << more.status();
  EXPECT_TRUE(Unmap(domain, *kept).ok());
  EXPECT_NE(Read(kept->iova(), 4)->fault_reason(), 0u);
  EXPECT_EQ(Sessions().sessions(0).cost().shadow_mismatches(), 0u);
}

TEST_F(ServicesTest, AKilledGuestIsReleasedWithinItsTimeToLive) {
  StartHypervisor();
  StartGuest();
  ASSERT_TRUE(Map(Attach()).ok());
  ASSERT_EQ(Sessions().sessions_size(), 1);
  EXPECT_GT(Sessions().sessions(0).pinned_bytes(), 0u);
  guest_process_->Signal(SIGKILL);
  EXPECT_EQ(guest_process_->Wait(), -SIGKILL);
  EXPECT_TRUE(Eventually([&] { return Sessions().sessions_size() == 0; }));
  EXPECT_THAT(hypervisor_process_->Log(), HasSubstr("did not come back"));
}

TEST_F(ServicesTest, BothEndOrderlyOnSigtermAndSigint) {
  StartHypervisor();
  StartGuest();
  ASSERT_TRUE(Map(Attach()).ok());
  guest_process_->Signal(SIGTERM);
  EXPECT_EQ(guest_process_->Wait(), 0) << guest_process_->Log();
  EXPECT_EQ(Sessions().sessions_size(), 0);  // closed, not left to its time to live
  hypervisor_process_->Signal(SIGINT);
  EXPECT_EQ(hypervisor_process_->Wait(), 0) << hypervisor_process_->Log();
  EXPECT_NE(access(folder_.File("hv.sock").c_str(), F_OK), 0);
  EXPECT_NE(access(folder_.File("hv.sock.mem").c_str(), F_OK), 0);
}

TEST_F(ServicesTest, AGuestWithoutAHypervisorSaysSoAndServesOnceThereIsOne) {
  StartGuest();
  v1::FlushResponse flushed;
  const absl::Status none = Call(&v1::GuestService::Stub::Flush, v1::FlushRequest(), &flushed);
  EXPECT_TRUE(absl::IsUnavailable(none)) << none;
  EXPECT_THAT(none.message(), HasSubstr("start hypervisor_svc --listen=" + hypervisor_address_));
  EXPECT_THAT(guest_process_->Log(), HasSubstr("no hypervisor at"));
  StartHypervisor();
  EXPECT_TRUE(Eventually([&] {
    v1::FlushResponse response;
    return Call(&v1::GuestService::Stub::Flush, v1::FlushRequest(), &response).ok();
  }));
}

TEST_F(ServicesTest, ARunHasItsOwnSessionAndClosesIt) {
  StartHypervisor({"--strategy=walk-shared"});
  StartGuest();
  const auto run = [&](v1::WorkloadSpec spec) {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(60));
    const auto call = guest_->RunWorkload(&context);
    v1::RunWorkloadRequest request;
    *request.mutable_spec() = std::move(spec);
    call->Write(request);
    call->WritesDone();
    v1::RunWorkloadResponse response;
    v1::WorkloadResult result;
    while (call->Read(&response)) {
      if (response.has_result()) result = response.result();
    }
    const grpc::Status status = call->Finish();
    EXPECT_TRUE(status.ok()) << status.error_message();
    return result;
  };
  v1::WorkloadSpec spec;
  spec.set_workload("nvme-4k-rr");
  spec.set_policy("strict");
  spec.set_op_count(200);
  spec.set_seed(7);
  spec.set_live_pages(100);
  spec.set_verify("full");
  spec.set_touch_after_unmap(true);
  v1::WorkloadResult first = run(spec);
  EXPECT_EQ(first.policy(), "strict");
  EXPECT_EQ(first.strategy(), "walk-shared");
  EXPECT_EQ(first.unmaps(), 200u);
  EXPECT_EQ(first.sync().shadow_mismatches(), 0u);
  EXPECT_GT(first.sync().verified_pages(), 0u);
  EXPECT_EQ(first.stale_dma_hits(), 0u);
  EXPECT_GE(first.pinned_pages_max(), 100u);
  EXPECT_EQ(Sessions().sessions_size(), 1);  // the real-time guest's

  v1::WorkloadResult second = run(spec);
  for (v1::WorkloadResult* result : {&first, &second}) {
    result->clear_session_id();
    result->clear_wall_seconds();
    result->clear_wall_ns_per_unmap_p50();
    result->clear_wall_ns_per_unmap_p99();
  }
  EXPECT_EQ(first.SerializeAsString(), second.SerializeAsString());
}

TEST_F(ServicesTest, MetricsAreAsPrometheusWantsThem) {
  if (std::system("command -v promtool curl > /dev/null") != 0) GTEST_SKIP() << "no promtool";
  StartHypervisor();
  StartGuest();
  ASSERT_TRUE(Map(Attach()).ok());
  for (const std::string& ready : {hypervisor_ready_, guest_ready_}) {
    const std::string command =
        "curl -sf http://" + ReadyField(ready, "metrics") + "/metrics | promtool check metrics";
    EXPECT_EQ(std::system(command.c_str()), 0) << ready;
  }
}

TEST_F(ServicesTest, OverTcpAPortIsPickedAndTheMemorySocketFollowsIt) {
  setenv("XDG_RUNTIME_DIR", folder_.path().c_str(), 1);
  hypervisor_process_ = Run("hypervisor_svc", {"--listen=127.0.0.1:0", "--metrics=off"});
  const std::string ready = hypervisor_process_->Ready();
  hypervisor_address_ = ReadyField(ready, "grpc");
  ASSERT_THAT(hypervisor_address_, StartsWith("127.0.0.1:")) << hypervisor_process_->Log();
  EXPECT_NE(hypervisor_address_, "127.0.0.1:0");
  EXPECT_EQ(ReadyField(ready, "metrics"), "off");
  StartGuest();
  EXPECT_TRUE(Map(Attach()).ok()) << guest_process_->Log();

  const auto second = Run("hypervisor_svc", {"--listen=" + hypervisor_address_});
  EXPECT_EQ(second->Wait(), 1);
  EXPECT_THAT(second->Log(), HasSubstr("Address already in use"));
  unsetenv("XDG_RUNTIME_DIR");
}

TEST_F(ServicesTest, WrongUseEndsWithTwoAndATakenAddressWithOne) {
  const auto ends = [&](const std::string& name, std::vector<std::string> args, int code,
                        const std::string& text) {
    const auto process = Run(name, std::move(args));
    EXPECT_EQ(process->Wait(), code) << name;
    const std::string log = process->Log();
    EXPECT_THAT(log, HasSubstr(text));
    EXPECT_EQ(std::count(log.begin(), log.end(), '\n'), 1) << log;
  };
  ends("hypervisor_svc", {"--strategy=guess"}, 2, "walk-shared");
  ends("hypervisor_svc", {"--no_such_flag"}, 2, "no_such_flag");
  ends("hypervisor_svc", {"--cost_preset=none-such"}, 2, "none-such");
  ends("guest_svc", {"--policy=relaxed"}, 2, "lazy-single");
  ends("guest_svc", {"--listen=0.0.0.0:0"}, 2, "--insecure");
  ends("guest_svc", {"--iommus=cm,maybe"}, 2, "maybe");
  ends("guest_svc", {"--hypervisor=nowhere"}, 2, "--hypervisor");
  ends("hypervisor_svc", {"--listen=unix:/no/such/folder/s"}, 1, "/no/such/folder");
  StartHypervisor();
  // Another log file, or the running one's would be overwritten.
  ServiceProcess second(std::string(VIOMMU_BIN) + "/hypervisor_svc",
                        {"--listen=" + hypervisor_address_}, folder_.File("second.log"));
  EXPECT_EQ(second.Wait(), 1);
  EXPECT_THAT(second.Log(), HasSubstr("in use"));
  EXPECT_EQ(Sessions().sessions_size(), 0);  // the first one still serves
}

}  // namespace
}  // namespace viommu
