// The whole guest service in one object: main runs it, and so do in-process tests.
#ifndef VIOMMU_GUEST_SVC_GUEST_SERVER_H_
#define VIOMMU_GUEST_SVC_GUEST_SERVER_H_

#include <memory>
#include <utility>

#include "absl/status/statusor.h"
#include "guest_svc/dma_service.h"
#include "guest_svc/guest_metrics.h"
#include "guest_svc/machine_host.h"
#include "guest_svc/options.h"
#include "guest_svc/workload_service.h"
#include "svc_common/service_host.h"

namespace viommu {

class GuestServer {
 public:
  // Serves when it returns, whether the hypervisor is there or not. InvalidArgument: bad options;
  // other codes: cannot listen.
  static absl::StatusOr<std::unique_ptr<GuestServer>> Start(GuestOptions options);
  ~GuestServer();

  ServiceHost& host() { return *service_host_; }
  MachineHost& machine() { return *machine_; }
  void Shutdown();

 private:
  explicit GuestServer(GuestOptions options) : options_(std::move(options)) {}

  const GuestOptions options_;
  std::shared_ptr<GuestMetrics> metrics_;
  std::unique_ptr<MachineHost> machine_;
  std::unique_ptr<WorkloadService> workloads_;
  std::unique_ptr<DmaService> service_;
  std::unique_ptr<ServiceHost> service_host_;
  bool down_ = false;
};

}  // namespace viommu

#endif  // VIOMMU_GUEST_SVC_GUEST_SERVER_H_
