// The whole hypervisor service in one object: main runs it, and so do in-process tests.
#ifndef VIOMMU_HYPERVISOR_SVC_HYPERVISOR_SERVER_H_
#define VIOMMU_HYPERVISOR_SVC_HYPERVISOR_SERVER_H_

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "hypervisor_svc/device_service.h"
#include "hypervisor_svc/hypervisor_metrics.h"
#include "hypervisor_svc/invalidation_service.h"
#include "hypervisor_svc/memory_broker.h"
#include "hypervisor_svc/options.h"
#include "hypervisor_svc/session_registry.h"
#include "svc_common/service_host.h"

namespace viommu {

class HypervisorServer {
 public:
  // Serves when it returns. InvalidArgument: bad options; other codes: cannot listen.
  static absl::StatusOr<std::unique_ptr<HypervisorServer>> Start(
      HypervisorOptions options, SessionRegistry::CoreFactory factory = &HypervisorSession::Create);
  ~HypervisorServer();

  ServiceHost& host() { return *host_; }
  SessionRegistry& registry() { return *registry_; }
  const std::string& memory_socket() const { return broker_->path(); }
  // Ends streams and calls in an orderly way; the destructor does it too.
  void Shutdown();

 private:
  explicit HypervisorServer(HypervisorOptions options) : options_(std::move(options)) {}

  HypervisorOptions options_;
  std::unique_ptr<MemoryBroker> broker_;
  std::unique_ptr<SessionRegistry> registry_;
  std::shared_ptr<HypervisorMetrics> metrics_;
  std::unique_ptr<DeviceService> service_;
  std::unique_ptr<ServiceHost> host_;
  std::unique_ptr<InvalidationService> streams_;
  bool down_ = false;
};

}  // namespace viommu

#endif  // VIOMMU_HYPERVISOR_SVC_HYPERVISOR_SERVER_H_
