#include "svc_common/health_service.h"

#include <chrono>

namespace viommu {
namespace {

using grpc::health::v1::HealthCheckResponse;

// How soon the end of a watcher's call is noticed.
constexpr std::chrono::milliseconds kCancelInterval{100};

}  // namespace

grpc::Status HealthService::Check(grpc::ServerContext*,
                                  const grpc::health::v1::HealthCheckRequest* request,
                                  HealthCheckResponse* response) {
  if (!request->service().empty()) {
    return grpc::Status(grpc::StatusCode::NOT_FOUND,
                        "health is that of the whole server: ask for ''");
  }
  SteadyLock lock(&mu_);
  response->set_status(draining_ ? HealthCheckResponse::NOT_SERVING : HealthCheckResponse::SERVING);
  return grpc::Status::OK;
}

grpc::Status HealthService::Watch(grpc::ServerContext* context,
                                  const grpc::health::v1::HealthCheckRequest* request,
                                  grpc::ServerWriter<HealthCheckResponse>* writer) {
  HealthCheckResponse response;
  bool draining = false;
  {
    SteadyLock lock(&mu_);
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
    SteadyLock lock(&mu_);
    draining = mu_.AwaitUntil(std::chrono::steady_clock::now() + kCancelInterval,
                              [this] { return draining_; });
  }
  if (open && draining && response.status() == HealthCheckResponse::SERVING) {
    response.set_status(HealthCheckResponse::NOT_SERVING);
    writer->Write(response);
  }
  SteadyLock lock(&mu_);
  --watchers_;
  return grpc::Status::OK;
}

void HealthService::Drain() {
  SteadyLock lock(&mu_);
  draining_ = true;
}

}  // namespace viommu
