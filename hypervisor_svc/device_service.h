// The calls of HypervisorService beside the invalidation stream: a device's accesses, faults, and
// what operators look at.
#ifndef VIOMMU_HYPERVISOR_SVC_DEVICE_SERVICE_H_
#define VIOMMU_HYPERVISOR_SVC_DEVICE_SERVICE_H_

#include <atomic>

#include "hypervisor_svc/invalidation_service.h"
#include "hypervisor_svc/session_registry.h"

namespace viommu {

inline constexpr uint32_t kMaxDmaBytes = 1 << 20;

class DeviceService final : public AsyncHypervisorService {
 public:
  explicit DeviceService(SessionRegistry& registry) : registry_(registry) {}

  grpc::Status WatchFaults(grpc::ServerContext* context, const v1::WatchFaultsRequest* request,
                           grpc::ServerWriter<v1::WatchFaultsResponse>* writer) override;
  grpc::Status Translate(grpc::ServerContext* context, const v1::TranslateRequest* request,
                         v1::TranslateResponse* response) override;
  grpc::Status Dma(grpc::ServerContext* context, const v1::DmaRequest* request,
                   v1::DmaResponse* response) override;
  grpc::Status GetSession(grpc::ServerContext* context, const v1::GetSessionRequest* request,
                          v1::Session* response) override;
  grpc::Status ListSessions(grpc::ServerContext* context, const v1::ListSessionsRequest* request,
                            v1::ListSessionsResponse* response) override;

  // WatchFaults calls end soon after.
  void Drain() { draining_.store(true); }

 private:
  SessionRegistry& registry_;
  std::atomic<uint32_t> watchers_{0};
  std::atomic<bool> draining_{false};
};

}  // namespace viommu

#endif  // VIOMMU_HYPERVISOR_SVC_DEVICE_SERVICE_H_
