#include "hypervisor_svc/hypervisor_server.h"

#include <utility>

namespace viommu {
namespace {

// Calls other than the streams end within milliseconds; this is for those that a debugger holds.
constexpr absl::Duration kShutdownGrace = absl::Seconds(2);

}  // namespace

absl::StatusOr<std::unique_ptr<HypervisorServer>> HypervisorServer::Start(
    HypervisorOptions options, SessionRegistry::CoreFactory factory) {
  auto server = std::unique_ptr<HypervisorServer>(new HypervisorServer(std::move(options)));
  HypervisorOptions& o = server->options_;
  o.session.yield = &StreamThreads::Yield;
  o.session.before_long = &StreamThreads::BeginLong;
  absl::StatusOr<std::unique_ptr<ServiceHost>> host = ServiceHost::Create(o.host);
  if (!host.ok()) return host.status();
  server->host_ = *std::move(host);

  server->registry_ = std::make_unique<SessionRegistry>(o, std::move(factory));
  server->service_ = std::make_unique<DeviceService>(*server->registry_);
  server->host_->builder().RegisterService(server->service_.get());
  server->streams_ = std::make_unique<InvalidationService>(*server->registry_, *server->service_,
                                                           server->host_->builder());
  if (absl::Status status = server->host_->Start(); !status.ok()) {
    server->down_ = true;
    return status;
  }
  // After the bind: with port 0 the default memory socket's name is only known now. A guest that is
  // faster than this finds no memory socket and tries again.
  std::string path = o.memory_socket;
  if (path.empty()) {
    if (!server->host_->address().is_unix()) {
      if (absl::Status status = PrepareRuntimeFolder(); !status.ok()) return status;
    }
    path = DefaultMemorySocket(server->host_->address());
  }
  absl::StatusOr<std::unique_ptr<MemoryBroker>> broker =
      MemoryBroker::Start(path, {o.max_guest_ram_bytes, 2 * o.max_sessions});
  if (!broker.ok()) return broker.status();
  server->broker_ = *std::move(broker);
  server->registry_->set_memory(server->broker_.get());
  server->metrics_ = std::make_shared<HypervisorMetrics>(*server->registry_);
  if (server->host_->metrics() != nullptr) server->host_->metrics()->Register(server->metrics_);
  server->streams_->Start();
  return server;
}

HypervisorServer::~HypervisorServer() { Shutdown(); }

void HypervisorServer::Shutdown() {
  if (std::exchange(down_, true) || streams_ == nullptr) return;
  service_->Drain();
  streams_->Drain();
  host_->Shutdown(kShutdownGrace);
  streams_->Stop();
}

}  // namespace viommu
