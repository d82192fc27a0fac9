// viommu health: one grpc.health.v1 check. The probe of the container images and of Kubernetes,
// where the base image has no other program that speaks gRPC over mutual TLS.
#include <chrono>
#include <cstdio>

#include "grpc/health/v1/health.grpc.pb.h"
#include "guest_svc/client/command.h"
#include "guest_svc/client/output.h"
#include "guest_svc/client/shared_flags.h"
#include "guest_svc/client/workload_client.h"
#include "svc_common/conversions.h"

namespace viommu::client {
namespace {

namespace health = grpc::health::v1;

constexpr char kProgram[] = "viommu health";
constexpr char kExamples[] =
    "  viommu health --address=127.0.0.1:7001\n"
    "  viommu health --address=unix:/tmp/viommu-hypervisor.sock --json=-\n";
constexpr auto kDeadline = std::chrono::seconds(3);

}  // namespace

int RunHealth(const Args& args) {
  std::string address;
  std::string json;
  TlsFlags tls;
  FlagSet flags(kProgram, "exit 0 if the service at --address serves, 1 if not");
  flags.AddString("address", &address, "gRPC address of guest_svc or hypervisor_svc");
  AddJsonFlag(flags, &json, "the state");
  tls.AddTo(flags);
  if (const auto exit_code = ParseArgs(flags, kExamples, args)) return *exit_code;
  if (address.empty())
    return Fail(kProgram, absl::InvalidArgumentError(
                              "--address is needed: what the service printed as READY grpc="));
  const auto channel = Connect(address, tls, kDeadline);
  if (!channel.ok()) return Fail(kProgram, channel.status());
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + kDeadline);
  health::HealthCheckResponse response;
  const absl::Status status = FromGrpcStatus(
      health::Health::NewStub(*channel)->Check(&context, health::HealthCheckRequest(), &response));
  if (!status.ok()) return Fail(kProgram, status);
  const std::string state = health::HealthCheckResponse::ServingStatus_Name(response.status());
  if (!json.empty()) {
    Json document;
    document["schema"] = "viommu.health.v1";
    document["status"] = state;
    if (absl::Status s = WriteJson(json, document); !s.ok()) return Fail(kProgram, s);
  }
  if (json != "-") std::printf("%s\n", state.c_str());
  return response.status() == health::HealthCheckResponse::SERVING ? kExitOk : kExitFailed;
}

}  // namespace viommu::client
