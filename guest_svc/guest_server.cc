#include "guest_svc/guest_server.h"

#include <grpcpp/create_channel.h>

#include <string>

#include "absl/strings/str_cat.h"
#include "svc_common/address.h"
#include "svc_common/credentials.h"

namespace viommu {
namespace {

// Operations that wait for an absent hypervisor end by themselves after ten seconds; they are not
// worth that much of a shutdown.
constexpr absl::Duration kShutdownGrace = absl::Seconds(2);

}  // namespace

absl::StatusOr<std::unique_ptr<GuestServer>> GuestServer::Start(GuestOptions options) {
  auto server = std::unique_ptr<GuestServer>(new GuestServer(std::move(options)));
  const GuestOptions& o = server->options_;
  const absl::StatusOr<Address> hypervisor = ParseAddress(o.hypervisor);
  if (!hypervisor.ok()) {
    return absl::InvalidArgumentError(
        absl::StrCat("--hypervisor: ", hypervisor.status().message()));
  }
  auto credentials = MakeChannelCredentials(*hypervisor, o.host.tls);
  if (!credentials.ok()) return credentials.status();
  if (absl::Status status = CheckConfig(o.machine); !status.ok()) return status;
  const std::string memory_socket =
      o.memory_socket.empty() ? DefaultMemorySocket(*hypervisor) : o.memory_socket;
  const std::shared_ptr<grpc::Channel> channel =
      grpc::CreateCustomChannel(hypervisor->ToString(), *credentials, ClientChannelArguments());

  absl::StatusOr<std::unique_ptr<ServiceHost>> host = ServiceHost::Create(o.host);
  if (!host.ok()) return host.status();
  server->service_host_ = *std::move(host);
  server->metrics_ = std::make_shared<GuestMetrics>();
  server->machine_ = std::make_unique<MachineHost>(o, memory_socket, channel, *server->metrics_);
  server->workloads_ =
      std::make_unique<WorkloadService>(o, memory_socket, channel, *server->metrics_);
  server->service_ = std::make_unique<DmaService>(*server->machine_, *server->workloads_,
                                                  *server->metrics_, channel);
  server->service_host_->builder().RegisterService(server->service_.get());
  if (absl::Status status = server->service_host_->Start(); !status.ok()) return status;
  server->metrics_->set_machine_stats(
      [machine = server->machine_.get()] { return machine->stats(); });
  if (server->service_host_->metrics() != nullptr) {
    server->service_host_->metrics()->Register(server->metrics_);
  }
  server->machine_->Start();
  return server;
}

GuestServer::~GuestServer() { Shutdown(); }

void GuestServer::Shutdown() {
  if (std::exchange(down_, true) || service_ == nullptr) return;
  workloads_->Drain();
  service_host_->Shutdown(kShutdownGrace);
  metrics_->set_machine_stats(nullptr);
  machine_->Stop();
}

}  // namespace viommu
