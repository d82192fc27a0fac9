// What the two mains share: one gRPC server with health and reflection, a metrics endpoint, the
// READY line, and an orderly end on SIGTERM or SIGINT.
#ifndef VIOMMU_SVC_COMMON_SERVICE_HOST_H_
#define VIOMMU_SVC_COMMON_SERVICE_HOST_H_

#include <grpcpp/server.h>
#include <grpcpp/server_builder.h>

#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "svc_common/address.h"
#include "svc_common/credentials.h"
#include "svc_common/flags.h"
#include "svc_common/health_service.h"
#include "svc_common/metrics.h"

namespace viommu {

// A message holds at most 4096 descriptors of 32 bytes, 256 table pages, or 1 MiB of DMA data.
inline constexpr int kMaxMessageBytes = 4 << 20;

struct ServiceHostOptions {
  std::string listen;
  std::string metrics = "127.0.0.1:0";  // or "off"
  TlsFlags tls;
  uint32_t max_message_bytes = kMaxMessageBytes;  // of one message that is received

  void AddTo(FlagSet& flags);
};

class ServiceHost {
 public:
  // Checks addresses and credentials (InvalidArgument) and frees a stale socket file. Register
  // services on builder() before Start.
  static absl::StatusOr<std::unique_ptr<ServiceHost>> Create(const ServiceHostOptions& options);
  ~ServiceHost();

  grpc::ServerBuilder& builder() { return builder_; }
  // Binds and serves. Unavailable: the address is taken or not of this machine.
  absl::Status Start();
  // Null when metrics are off.
  MetricsEndpoint* metrics() { return metrics_.get(); }
  const Address& address() const { return listen_; }

  // "READY grpc=... metrics=..." on standard output.
  void PrintReady() const;
  // Health turns to NOT_SERVING, calls in flight get `grace` to end, later ones are cancelled. The
  // server itself lives as long as the host: completion queues may still hold events that refer to
  // it, so they are drained between this and the host's end.
  void Shutdown(absl::Duration grace);

 private:
  ServiceHost(ServiceHostOptions options, Address listen)
      : options_(std::move(options)), listen_(std::move(listen)) {}

  const ServiceHostOptions options_;
  Address listen_;
  int bound_port_ = 0;
  HealthService health_;
  grpc::ServerBuilder builder_;
  std::unique_ptr<grpc::Server> server_;
  bool down_ = false;
  std::unique_ptr<MetricsEndpoint> metrics_;
};

// Arguments of every client channel: keep-alive, message sizes, reconnect back-off.
grpc::ChannelArguments ClientChannelArguments();

// Call first in main, before any thread starts: the signals are then only taken by WaitForSignal.
void BlockSignals();
// Debian's Abseil keeps a process-wide graph of which lock was taken under which, for every lock of
// ours and of gRPC's. Programs that serve do without it; tests keep it.
void SkipLockOrderChecks();
// Returns once SIGTERM or SIGINT arrives.
void WaitForSignal();

// The version that `viommu_build_info` and --help name.
std::string BuildVersion();

}  // namespace viommu

#endif  // VIOMMU_SVC_COMMON_SERVICE_HOST_H_
