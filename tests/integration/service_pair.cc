#include "tests/integration/service_pair.h"

#include <grpcpp/create_channel.h>

#include <chrono>
#include <map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "svc_common/conversions.h"
#include "svc_common/service_host.h"
#include "tests/integration/probes.h"

namespace viommu {
namespace {

constexpr uint64_t kPage = 4096;
constexpr size_t kMaxDifferences = 20;

std::shared_ptr<grpc::Channel> Connect(const std::string& address) {
  grpc::ChannelArguments args = ClientChannelArguments();
  // A channel of its own: a restarted service is not met with another test's backoff.
  args.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  return grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), args);
}

template <typename Stub, typename Request, typename Response>
absl::StatusOr<Response> Call(Stub& stub,
                              grpc::Status (Stub::*method)(grpc::ClientContext*, const Request&,
                                                           Response*),
                              const Request& request) {
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(kCallSeconds));
  Response response;
  const grpc::Status status = (stub.*method)(&context, request, &response);
  if (!status.ok()) return FromGrpcStatus(status);
  return response;
}

}  // namespace

GuestCalls::GuestCalls(const std::string& address)
    : stub_(v1::GuestService::NewStub(Connect(address))) {}

absl::StatusOr<uint32_t> GuestCalls::CreateDomain() {
  auto domain = Call(*stub_, &v1::GuestService::Stub::CreateDomain, v1::CreateDomainRequest());
  if (!domain.ok()) return domain.status();
  return domain->domain();
}

absl::Status GuestCalls::Attach(uint32_t domain, uint32_t source_id, uint32_t iommu) {
  v1::AttachDeviceRequest request;
  request.set_domain(domain);
  request.set_source_id(source_id);
  request.set_iommu(iommu);
  return Call(*stub_, &v1::GuestService::Stub::AttachDevice, request).status();
}

absl::StatusOr<v1::MapResponse> GuestCalls::Map(uint32_t domain, uint64_t size_bytes,
                                                uint32_t vcpu) {
  v1::MapRequest request;
  request.set_domain(domain);
  request.set_access(v1::ACCESS_KIND_READ_WRITE);
  request.set_allocate_bytes(size_bytes);
  request.set_vcpu(vcpu);
  return Call(*stub_, &v1::GuestService::Stub::Map, request);
}

absl::StatusOr<v1::UnmapResponse> GuestCalls::Unmap(uint32_t domain, uint64_t iova,
                                                    uint64_t size_bytes, uint32_t vcpu) {
  v1::UnmapRequest request;
  request.set_domain(domain);
  request.set_iova(iova);
  request.set_size_bytes(size_bytes);
  request.set_vcpu(vcpu);
  return Call(*stub_, &v1::GuestService::Stub::Unmap, request);
}

absl::StatusOr<v1::AccessResponse> GuestCalls::Read(uint32_t source_id, uint64_t iova,
                                                    uint32_t size_bytes) {
  v1::AccessRequest request;
  request.set_source_id(source_id);
  request.set_iova(iova);
  request.set_read_size_bytes(size_bytes);
  return Call(*stub_, &v1::GuestService::Stub::Access, request);
}

absl::StatusOr<v1::AccessResponse> GuestCalls::Write(uint32_t source_id, uint64_t iova,
                                                     const std::string& data) {
  v1::AccessRequest request;
  request.set_source_id(source_id);
  request.set_iova(iova);
  request.set_write_data(data);
  return Call(*stub_, &v1::GuestService::Stub::Access, request);
}

absl::StatusOr<v1::FlushResponse> GuestCalls::Flush() {
  return Call(*stub_, &v1::GuestService::Stub::Flush, v1::FlushRequest());
}

absl::StatusOr<v1::GuestStatus> GuestCalls::Status() {
  return Call(*stub_, &v1::GuestService::Stub::GetStatus, v1::GetStatusRequest());
}

HypervisorCalls::HypervisorCalls(const std::string& address)
    : stub_(v1::HypervisorService::NewStub(Connect(address))) {}

absl::StatusOr<v1::ListSessionsResponse> HypervisorCalls::Sessions() {
  return Call(*stub_, &v1::HypervisorService::Stub::ListSessions, v1::ListSessionsRequest());
}

absl::StatusOr<v1::Session> HypervisorCalls::Session(const std::string& id, bool mappings) {
  v1::GetSessionRequest request;
  request.set_session_id(id);
  request.set_include_mappings(mappings);
  return Call(*stub_, &v1::HypervisorService::Stub::GetSession, request);
}

absl::StatusOr<v1::TranslateResponse> HypervisorCalls::Translate(const std::string& session,
                                                                 uint32_t source_id,
                                                                 uint64_t iova) {
  v1::TranslateRequest request;
  request.set_session_id(session);
  request.set_source_id(source_id);
  request.set_iova(iova);
  request.set_access(v1::ACCESS_KIND_READ);
  return Call(*stub_, &v1::HypervisorService::Stub::Translate, request);
}

ServicePair::ServicePair() {
  hypervisor_address = "unix:" + folder_.File("hv.sock");
  guest_address = "unix:" + folder_.File("guest.sock");
}

std::unique_ptr<ServiceProcess> ServicePair::Run(const std::string& name,
                                                 const std::vector<std::string>& args,
                                                 const std::string& log) const {
  return std::make_unique<ServiceProcess>(std::string(VIOMMU_BIN) + "/" + name, args,
                                          folder_.File(log));
}

void ServicePair::StartHypervisor(const std::vector<std::string>& more) {
  std::vector<std::string> args = {"--listen=" + hypervisor_address, "--verify=full",
                                   "--session_ttl_ms=500",
                                   "--memory_socket=" + folder_.File("hv.mem")};
  args.insert(args.end(), more.begin(), more.end());
  hypervisor_process_ = Run("hypervisor_svc", args, "hypervisor.log");
  const std::string ready = hypervisor_process_->Ready();
  ASSERT_NE(ready, "") << hypervisor_process_->Log();
  hypervisor_address = ReadyField(ready, "grpc");
  hypervisor_metrics_ = ReadyField(ready, "metrics");
  hypervisor_ = std::make_unique<HypervisorCalls>(hypervisor_address);
}

void ServicePair::StartGuest(const std::vector<std::string>& more) {
  std::vector<std::string> args = {"--listen=" + guest_address,
                                   "--hypervisor=" + hypervisor_address, "--ram_bytes=64m",
                                   "--memory_socket=" + folder_.File("hv.mem")};
  args.insert(args.end(), more.begin(), more.end());
  guest_process_ = Run("guest_svc", args, "guest.log");
  const std::string ready = guest_process_->Ready();
  ASSERT_NE(ready, "") << guest_process_->Log();
  guest_address = ReadyField(ready, "grpc");
  guest_metrics_ = ReadyField(ready, "metrics");
  guest_ = std::make_unique<GuestCalls>(guest_address);
}

void ServicePair::KillHypervisor() {
  hypervisor_process_->Signal(SIGKILL);
  EXPECT_EQ(hypervisor_process_->Wait(), -SIGKILL);
}

void ServicePair::KillGuest() {
  guest_process_->Signal(SIGKILL);
  EXPECT_EQ(guest_process_->Wait(), -SIGKILL);
}

Target MakeTarget(GuestCalls& guest, uint32_t source_id, uint32_t iommu) {
  const auto domain = guest.CreateDomain();
  EXPECT_TRUE(domain.ok()) << domain.status();
  const absl::Status attached = guest.Attach(domain.value_or(0), source_id, iommu);
  EXPECT_TRUE(attached.ok()) << attached;
  return {domain.value_or(0), source_id};
}

std::vector<std::string> SweepMappings(HypervisorCalls& hypervisor, const std::string& session,
                                       const std::vector<Target>& targets,
                                       const std::vector<LiveMapping>& live) {
  std::vector<std::string> out;
  const auto differ = [&](std::string what) {
    if (out.size() < kMaxDifferences) out.push_back(std::move(what));
  };
  std::map<uint32_t, uint32_t> device;  // of a domain
  for (const Target& target : targets) device[target.domain] = target.source_id;
  uint64_t pages = 0;
  for (const LiveMapping& mapping : live) {
    for (uint64_t at = 0; at < mapping.size_bytes; at += kPage, ++pages) {
      const uint64_t iova = mapping.iova + at;
      const auto translated = hypervisor.Translate(session, device[mapping.domain], iova);
      if (!translated.ok()) {
        differ(absl::StrCat("Translate: ", translated.status().ToString()));
      } else if (translated->fault_reason() != 0) {
        differ(absl::StrFormat("iova 0x%x of mapping %d faults with reason 0x%x", iova,
                               mapping.mapping, translated->fault_reason()));
      } else if (translated->guest_pa() != mapping.guest_pa + at) {
        differ(absl::StrFormat("iova 0x%x of mapping %d leads to 0x%x, not to 0x%x", iova,
                               mapping.mapping, translated->guest_pa(), mapping.guest_pa + at));
      }
    }
  }
  const auto state = hypervisor.Session(session, false);
  if (!state.ok()) {
    differ(absl::StrCat("GetSession: ", state.status().ToString()));
    return out;
  }
  // `nested` keeps no shadow: the unit walks the guest's own tables.
  if (state->strategy() != "nested" && state->live_page_count() != pages) {
    differ(
        absl::StrCat(state->live_page_count(), " pages in the shadow, ", pages, " in the record"));
  }
  if (state->cost().shadow_mismatches() != 0) {
    differ(absl::StrCat(state->cost().shadow_mismatches(), " pages differ from a reference walk"));
  }
  return out;
}

}  // namespace viommu
