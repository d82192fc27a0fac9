#include "svc_common/service_host.h"

#include <arpa/inet.h>
#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/health_check_service_interface.h>
#include <netdb.h>
#include <signal.h>
#include <spdlog/spdlog.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"

namespace viommu {
namespace {

// A peer that vanished (power loss, cut link) is noticed within 15 s even on an idle stream.
constexpr int kKeepaliveTimeMs = 10'000;
constexpr int kKeepaliveTimeoutMs = 5'000;
// What the server accepts: twice as often as our own clients ping, so that timer slack of a loaded
// machine is never taken for abuse.
constexpr int kMinPingIntervalMs = kKeepaliveTimeMs / 2;

// gRPC does not say why it could not bind; the kernel does.
std::string BindError(const Address& address) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_PASSIVE;
  addrinfo* found = nullptr;
  const int error =
      getaddrinfo(address.host.c_str(), absl::StrCat(address.port).c_str(), &hints, &found);
  if (error != 0) return gai_strerror(error);
  const int fd = socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
  const int one = 1;
  setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
  const bool ok = bind(fd, found->ai_addr, found->ai_addrlen) == 0 && listen(fd, 1) == 0;
  const std::string text = ok ? "unknown reason" : std::strerror(errno);
  close(fd);
  freeaddrinfo(found);
  return text;
}

}  // namespace

void ServiceHostOptions::AddTo(FlagSet& flags) {
  flags.AddString("listen", &listen, "gRPC address: unix:PATH or HOST:PORT, port 0 picks one");
  flags.AddString("metrics", &metrics, "HOST:PORT of the Prometheus endpoint, or off");
  tls.AddTo(flags);
}

absl::StatusOr<std::unique_ptr<ServiceHost>> ServiceHost::Create(
    const ServiceHostOptions& options) {
  absl::StatusOr<Address> listen = ParseAddress(options.listen);
  if (!listen.ok()) {
    return absl::InvalidArgumentError(absl::StrCat("--listen: ", listen.status().message()));
  }
  if (options.metrics != "off") {
    const absl::StatusOr<Address> metrics = ParseAddress(options.metrics);
    if (!metrics.ok() || metrics->is_unix()) {
      return absl::InvalidArgumentError(
          absl::StrCat("--metrics: '", options.metrics, "' is neither HOST:PORT nor off"));
    }
  }
  auto credentials = MakeServerCredentials(*listen, options.tls);
  if (!credentials.ok()) return credentials.status();
  if (listen->is_unix()) {
    if (absl::Status status = ClearStaleSocket(listen->unix_path); !status.ok()) return status;
  }
  // Ours instead (health_service.h): gRPC's own brings threads that poll for every stream.
  grpc::EnableDefaultHealthCheckService(false);
  grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  auto host = std::unique_ptr<ServiceHost>(new ServiceHost(options, *listen));
  grpc::ServerBuilder& builder = host->builder_;
  builder.AddListeningPort(listen->ToString(), *credentials, &host->bound_port_);
  builder.RegisterService(&host->health_);
  builder.SetMaxReceiveMessageSize(static_cast<int>(options.max_message_bytes));
  builder.SetMaxSendMessageSize(kMaxMessageBytes);
  // Two servers on one port would share its connections without a word.
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, kKeepaliveTimeMs);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, kKeepaliveTimeoutMs);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS,
                             kMinPingIntervalMs);
  return host;
}

ServiceHost::~ServiceHost() {
  if (server_ != nullptr) Shutdown(absl::ZeroDuration());
}

absl::Status ServiceHost::Start() {
  // The socket file is made by the bind: only its owner may connect.
  const mode_t mask = umask(0077);
  server_ = builder_.BuildAndStart();
  umask(mask);
  if (server_ == nullptr || bound_port_ == 0) {
    server_.reset();
    return absl::UnavailableError(
        absl::StrCat("cannot listen on ", listen_.ToString(), ": ",
                     listen_.is_unix() ? "no permission or a bad path" : BindError(listen_)));
  }
  if (!listen_.is_unix()) listen_.port = static_cast<uint16_t>(bound_port_);
  // Last: the endpoint's threads take two seconds to end, which no failed bind should wait for.
  if (options_.metrics != "off") {
    absl::StatusOr<std::unique_ptr<MetricsEndpoint>> metrics =
        MetricsEndpoint::Start(options_.metrics);
    if (!metrics.ok()) return metrics.status();
    metrics_ = *std::move(metrics);
  }
  return absl::OkStatus();
}

void ServiceHost::PrintReady() const {
  std::printf("READY grpc=%s metrics=%s\n", listen_.ToString().c_str(),
              metrics_ == nullptr ? "off" : metrics_->address().c_str());
  std::fflush(stdout);
}

void ServiceHost::Shutdown(absl::Duration grace) {
  if (server_ == nullptr || std::exchange(down_, true)) return;
  health_.Drain();
  server_->Shutdown(absl::ToChronoTime(absl::Now() + grace));
  server_->Wait();
  if (listen_.is_unix()) unlink(listen_.unix_path.c_str());
}

grpc::ChannelArguments ClientChannelArguments() {
  grpc::ChannelArguments args;
  args.SetMaxReceiveMessageSize(kMaxMessageBytes);
  args.SetMaxSendMessageSize(kMaxMessageBytes);
  args.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, kKeepaliveTimeMs);
  args.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, kKeepaliveTimeoutMs);
  args.SetInt(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  args.SetInt(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  // A restarted peer is found again within two seconds, without a stampede.
  args.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100);
  // For gRPC this is also the time one attempt may take: on a loaded machine a healthy peer needs
  // more than a tenth of a second for its part of the handshake.
  args.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 2'000);
  args.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 2'000);
  return args;
}

void BlockSignals() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGTERM);
  sigaddset(&set, SIGINT);
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
  signal(SIGPIPE, SIG_IGN);
}

void SkipLockOrderChecks() { absl::SetMutexDeadlockDetectionMode(absl::OnDeadlockCycle::kIgnore); }

void WaitForSignal() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGTERM);
  sigaddset(&set, SIGINT);
  int signal_number = 0;
  sigwait(&set, &signal_number);
  spdlog::info("{}: draining", strsignal(signal_number));
}

std::string BuildVersion() { return VIOMMU_VERSION; }

}  // namespace viommu
