// hypervisor_svc: see README.md. Everything is in HypervisorServer; this is flags and signals.
#include <spdlog/spdlog.h>

#include "hypervisor_svc/hypervisor_server.h"
#include "svc_common/logging.h"

int main(int argc, char** argv) {
  constexpr const char* kProgram = "hypervisor_svc";
  viommu::BlockSignals();
  viommu::SkipLockOrderChecks();
  viommu::InitLogging(kProgram);
  viommu::HypervisorOptions options;
  viommu::FlagSet flags(
      kProgram, "synchronises guests' IOMMU tables into shadow tables and counts what it costs");
  options.AddTo(flags);
  if (const auto code = viommu::ParseFlags(flags, argc, argv); code.has_value()) return *code;
  auto server = viommu::HypervisorServer::Start(options);
  if (!server.ok()) return viommu::ReportStartFailure(kProgram, server.status());
  spdlog::info("version {}, memory socket {}", viommu::BuildVersion(), (*server)->memory_socket());
  (*server)->host().PrintReady();
  viommu::WaitForSignal();
  (*server)->Shutdown();
  return viommu::kExitOk;
}
