// GuestService for load clients: every call becomes one operation of the real-time machine.
#ifndef VIOMMU_GUEST_SVC_DMA_SERVICE_H_
#define VIOMMU_GUEST_SVC_DMA_SERVICE_H_

#include <chrono>
#include <map>
#include <memory>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "guest_svc/guest_metrics.h"
#include "guest_svc/machine_host.h"
#include "guest_svc/workload_service.h"
#include "viommu/v1/guest_service.grpc.pb.h"
#include "viommu/v1/hypervisor_service.grpc.pb.h"

namespace viommu {

inline constexpr int kMaxBatchOps = 4096;

class DmaService final : public v1::GuestService::Service {
 public:
  // All outlive the service. `channel` goes to the hypervisor.
  DmaService(MachineHost& host, WorkloadService& workloads, GuestMetrics& metrics,
             std::shared_ptr<grpc::Channel> channel)
      : host_(host),
        workloads_(workloads),
        metrics_(metrics),
        hypervisor_(v1::HypervisorService::NewStub(std::move(channel))) {}

  grpc::Status CreateDomain(grpc::ServerContext* context, const v1::CreateDomainRequest* request,
                            v1::Domain* response) override;
  grpc::Status DeleteDomain(grpc::ServerContext* context, const v1::DeleteDomainRequest* request,
                            v1::DeleteDomainResponse* response) override;
  grpc::Status AttachDevice(grpc::ServerContext* context, const v1::AttachDeviceRequest* request,
                            v1::AttachDeviceResponse* response) override;
  grpc::Status DetachDevice(grpc::ServerContext* context, const v1::DetachDeviceRequest* request,
                            v1::DetachDeviceResponse* response) override;
  grpc::Status Map(grpc::ServerContext* context, const v1::MapRequest* request,
                   v1::MapResponse* response) override;
  grpc::Status Unmap(grpc::ServerContext* context, const v1::UnmapRequest* request,
                     v1::UnmapResponse* response) override;
  grpc::Status Batch(grpc::ServerContext* context, const v1::BatchRequest* request,
                     v1::BatchResponse* response) override;
  grpc::Status StreamOps(grpc::ServerContext* context,
                         grpc::ServerReaderWriter<v1::DmaOpResult, v1::DmaOp>* stream) override;
  grpc::Status Access(grpc::ServerContext* context, const v1::AccessRequest* request,
                      v1::AccessResponse* response) override;
  grpc::Status GetPolicy(grpc::ServerContext* context, const v1::GetPolicyRequest* request,
                         v1::PolicyState* response) override;
  grpc::Status SetPolicy(grpc::ServerContext* context, const v1::SetPolicyRequest* request,
                         v1::PolicyState* response) override;
  grpc::Status Flush(grpc::ServerContext* context, const v1::FlushRequest* request,
                     v1::FlushResponse* response) override;
  grpc::Status ReadFaults(grpc::ServerContext* context, const v1::ReadFaultsRequest* request,
                          v1::ReadFaultsResponse* response) override;
  grpc::Status GetStatus(grpc::ServerContext* context, const v1::GetStatusRequest* request,
                         v1::GuestStatus* response) override;
  grpc::Status RunWorkload(
      grpc::ServerContext* context,
      grpc::ServerReaderWriter<v1::RunWorkloadResponse, v1::RunWorkloadRequest>* stream) override;

 private:
  using Deadline = std::chrono::steady_clock::time_point;
  struct Buffer {
    GuestPhys first;
    uint64_t size_bytes = 0;
  };

  absl::Status DoMap(Deadline deadline, const v1::MapRequest& request, v1::MapResponse* response);
  absl::Status DoUnmap(Deadline deadline, const v1::UnmapRequest& request,
                       v1::UnmapResponse* response);
  absl::Status DoAccess(Deadline deadline, const v1::AccessRequest& request,
                        v1::AccessResponse* response);
  void DoOp(Deadline deadline, const v1::DmaOp& op, v1::DmaOpResult* result);
  absl::Status Map(GuestMachine& machine, const v1::MapRequest& request, v1::MapResponse* response);
  void FillPolicy(v1::PolicyState* state);

  MachineHost& host_;
  WorkloadService& workloads_;
  GuestMetrics& metrics_;
  const std::unique_ptr<v1::HypervisorService::Stub> hypervisor_;

  absl::Mutex mu_;
  // Memory that the guest picked itself, by (domain, iova): it goes back with the mapping.
  std::map<std::pair<uint32_t, uint64_t>, Buffer> buffers_ ABSL_GUARDED_BY(mu_);
};

}  // namespace viommu

#endif  // VIOMMU_GUEST_SVC_DMA_SERVICE_H_
