// guest_svc: see README.md. Everything is in GuestServer; this is flags and signals.
#include <spdlog/spdlog.h>

#include "guest_svc/guest_server.h"
#include "svc_common/logging.h"

int main(int argc, char** argv) {
  constexpr const char* kProgram = "guest_svc";
  viommu::BlockSignals();
  viommu::SkipLockOrderChecks();
  viommu::InitLogging(kProgram);
  viommu::GuestOptions options;
  viommu::FlagSet flags(
      kProgram, "a guest with virtual IOMMUs: maps DMA memory and streams its invalidations");
  options.AddTo(flags);
  if (const auto code = viommu::ParseFlags(flags, argc, argv); code.has_value()) return *code;
  auto server = viommu::GuestServer::Start(options);
  if (!server.ok()) return viommu::ReportStartFailure(kProgram, server.status());
  spdlog::info("version {}, hypervisor {}", viommu::BuildVersion(), options.hypervisor);
  (*server)->host().PrintReady();
  viommu::WaitForSignal();
  (*server)->Shutdown();
  return viommu::kExitOk;
}
