// grpc.health.v1 for the whole server: SERVING until it drains. gRPC's own health service uses the
// callback API, and with it come threads that wait for events of every connection of the process:
// each message of a stream then wakes one of them on its way (twice the round trip).
#ifndef VIOMMU_SVC_COMMON_HEALTH_SERVICE_H_
#define VIOMMU_SVC_COMMON_HEALTH_SERVICE_H_

#include "absl/base/thread_annotations.h"
#include "grpc/health/v1/health.grpc.pb.h"
#include "svc_common/steady_wait.h"

namespace viommu {

class HealthService final : public grpc::health::v1::Health::Service {
 public:
  static constexpr int kMaxWatchers = 16;  // each holds a thread

  grpc::Status Check(grpc::ServerContext* context,
                     const grpc::health::v1::HealthCheckRequest* request,
                     grpc::health::v1::HealthCheckResponse* response) override;
  grpc::Status Watch(grpc::ServerContext* context,
                     const grpc::health::v1::HealthCheckRequest* request,
                     grpc::ServerWriter<grpc::health::v1::HealthCheckResponse>* writer) override;

  // NOT_SERVING from now on; watchers are told and their calls end.
  void Drain() ABSL_LOCKS_EXCLUDED(mu_);

 private:
  SteadyMutex mu_;
  bool draining_ ABSL_GUARDED_BY(mu_) = false;
  int watchers_ ABSL_GUARDED_BY(mu_) = 0;
};

}  // namespace viommu

#endif  // VIOMMU_SVC_COMMON_HEALTH_SERVICE_H_
