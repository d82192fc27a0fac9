#include "svc_common/health_service.h"

#include "absl/time/time.h"

namespace viommu {
namespace {

using grpc::health::v1::HealthCheckResponse;

// How soon the end of a watcher's call is noticed.
constexpr absl::Duration kCancelInterval = absl::Milliseconds(100);

}  // namespace

grpc::Status HealthService::Check(grpc::ServerContext*,
                                  const grpc::health::v1::HealthCheckRequest* request,
                                  HealthCheckResponse* response) {
  if (!request->service().empty()) {
    return grpc::Status(grpc::StatusCode::NOT_FOUND,
                        "health is that of the whole server: ask for ''");
  }
  absl::MutexLock lock(&mu_);
  response->set_status(draining_ ? HealthCheckResponse::NOT_SERVING : HealthCheckResponse::SERVING);
  return grpc::Status::OK;
}

grpc::Status HealthService::Watch(grpc::ServerContext* context,
                                  const grpc::health::v1::HealthCheckRequest* request,
                                  grpc::ServerWriter<HealthCheckResponse>* writer) {
  HealthCheckResponse response;
  bool draining = false;
  {
    absl::MutexLock lock(&mu_);
    if (watchers_ == kMaxWatchers) {
      return grpc::Status(grpc::StatusCode::RESOURCE_EXHAUSTED, "too many health watchers");
    }
    ++watchers_;
    draining = draining_;
  }
  response.set_status(!request->service().empty() ? HealthCheckResponse::SERVICE_UNKNOWN
                      : draining                  ? HealthCheckResponse::NOT_SERVING
                                                  : HealthCheckResponse::SERVING);
  bool open = writer->Write(response);
  while (open && !draining && !context->IsCancelled()) {
    absl::MutexLock lock(&mu_);
    draining = mu_.AwaitWithTimeout(absl::Condition(&draining_), kCancelInterval);
  }
  if (open && draining && response.status() == HealthCheckResponse::SERVING) {
    response.set_status(HealthCheckResponse::NOT_SERVING);
    writer->Write(response);
  }
  absl::MutexLock lock(&mu_);
  --watchers_;
  return grpc::Status::OK;
}

void HealthService::Drain() {
  absl::MutexLock lock(&mu_);
  draining_ = true;
}

}  // namespace viommu
