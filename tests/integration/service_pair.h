// hypervisor_svc and guest_svc as real processes on sockets of their own, and the calls that tests
// make on them.
#ifndef VIOMMU_TESTS_INTEGRATION_SERVICE_PAIR_H_
#define VIOMMU_TESTS_INTEGRATION_SERVICE_PAIR_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "tests/fakes/service_process.h"
#include "tests/fakes/temp_folder.h"
#include "tests/integration/history.h"
#include "viommu/v1/guest_service.grpc.pb.h"
#include "viommu/v1/hypervisor_service.grpc.pb.h"

namespace viommu {

// Longer than any answer takes: every call is answered by the service, never by the caller's clock.
inline constexpr int kCallSeconds = 60;

class GuestCalls {
 public:
  explicit GuestCalls(const std::string& address);

  absl::StatusOr<uint32_t> CreateDomain();
  absl::Status Attach(uint32_t domain, uint32_t source_id, uint32_t iommu = 0);
  absl::StatusOr<v1::MapResponse> Map(uint32_t domain, uint64_t size_bytes, uint32_t vcpu = 0);
  absl::StatusOr<v1::UnmapResponse> Unmap(uint32_t domain, uint64_t iova, uint64_t size_bytes,
                                          uint32_t vcpu = 0);
  absl::StatusOr<v1::AccessResponse> Read(uint32_t source_id, uint64_t iova, uint32_t size_bytes);
  absl::StatusOr<v1::AccessResponse> Write(uint32_t source_id, uint64_t iova,
                                           const std::string& data);
  absl::StatusOr<v1::FlushResponse> Flush();
  absl::StatusOr<v1::GuestStatus> Status();
  v1::GuestService::Stub& stub() { return *stub_; }

 private:
  const std::unique_ptr<v1::GuestService::Stub> stub_;
};

class HypervisorCalls {
 public:
  explicit HypervisorCalls(const std::string& address);

  absl::StatusOr<v1::ListSessionsResponse> Sessions();
  absl::StatusOr<v1::Session> Session(const std::string& id, bool mappings);
  absl::StatusOr<v1::TranslateResponse> Translate(const std::string& session, uint32_t source_id,
                                                  uint64_t iova);
  v1::HypervisorService::Stub& stub() { return *stub_; }

 private:
  const std::unique_ptr<v1::HypervisorService::Stub> stub_;
};

class ServicePair {
  TempFolder folder_;  // first: the addresses are in it

 public:
  ServicePair();

  // The hypervisor verifies everything and keeps a session for half a second, unless `more` says
  // otherwise (the last flag of a name counts). Fails the test if it does not come up.
  void StartHypervisor(const std::vector<std::string>& more = {});
  void StartGuest(const std::vector<std::string>& more = {});
  // SIGKILL and its end.
  void KillHypervisor();
  void KillGuest();

  std::unique_ptr<ServiceProcess> Run(const std::string& name, const std::vector<std::string>& args,
                                      const std::string& log) const;
  ServiceProcess& hypervisor_process() { return *hypervisor_process_; }
  ServiceProcess& guest_process() { return *guest_process_; }
  HypervisorCalls& hypervisor() { return *hypervisor_; }
  GuestCalls& guest() { return *guest_; }
  // host:port
  const std::string& hypervisor_metrics() const { return hypervisor_metrics_; }
  const std::string& guest_metrics() const { return guest_metrics_; }
  // Where the services listen; may be set before they are started.
  std::string hypervisor_address;
  std::string guest_address;
  const TempFolder& folder() const { return folder_; }

 private:
  std::unique_ptr<ServiceProcess> hypervisor_process_;
  std::unique_ptr<ServiceProcess> guest_process_;
  std::unique_ptr<HypervisorCalls> hypervisor_;
  std::unique_ptr<GuestCalls> guest_;
  std::string hypervisor_metrics_;
  std::string guest_metrics_;
};

// A domain with one device in it.
struct Target {
  uint32_t domain = 0;
  uint32_t source_id = 0;
};

// A new one, behind that vIOMMU; fails the test, and goes on, if the guest makes none.
Target MakeTarget(GuestCalls& guest, uint32_t source_id, uint32_t iommu = 0);

// Every live mapping, page by page: the physical IOMMU leads the device to the page that the guest
// was given, and the session holds no page more. One sentence for each difference.
std::vector<std::string> SweepMappings(HypervisorCalls& hypervisor, const std::string& session,
                                       const std::vector<Target>& targets,
                                       const std::vector<LiveMapping>& live);

}  // namespace viommu

#endif  // VIOMMU_TESTS_INTEGRATION_SERVICE_PAIR_H_
