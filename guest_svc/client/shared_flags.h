// Flags that several subcommands declare alike, declared once.
#ifndef VIOMMU_GUEST_SVC_CLIENT_SHARED_FLAGS_H_
#define VIOMMU_GUEST_SVC_CLIENT_SHARED_FLAGS_H_

#include <cstdint>
#include <string>

#include "svc_common/credentials.h"
#include "svc_common/flags.h"

namespace viommu::client {

// Entries of a private pair's DMA container. VFIO's own limit (65,535) is below 131,072 live 4K
// pages; its effect is shown by hypervisor_svc --dma_entry_limit, not by a comparison.
inline constexpr uint64_t kPairEntryLimit = 4'194'304;

// --json; `what` is a schema or says what is written.
void AddJsonFlag(FlagSet& flags, std::string* path, const std::string& what);
void AddCostPresetFlag(FlagSet& flags, std::string* preset);

// What a run of a load needs, on a private pair or on running services.
struct RunFlags {
  std::string trace;
  uint32_t hz = 250;
  std::string cost_preset = "qemu-trap";
  std::string verify;
  std::string guest;
  bool allow_lost_events = false;
  TlsFlags tls;

  void AddTo(FlagSet& flags);
};

}  // namespace viommu::client

#endif  // VIOMMU_GUEST_SVC_CLIENT_SHARED_FLAGS_H_
