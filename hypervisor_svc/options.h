// Everything hypervisor_svc can be told.
#ifndef VIOMMU_HYPERVISOR_SVC_OPTIONS_H_
#define VIOMMU_HYPERVISOR_SVC_OPTIONS_H_

#include <cstdint>
#include <string>

#include "iommu_core/base/cost_model.h"
#include "iommu_core/shadow/hypervisor_session.h"
#include "svc_common/flags.h"
#include "svc_common/service_host.h"

namespace viommu {

struct HypervisorOptions {
  HypervisorOptions() { host.listen = "unix:/tmp/viommu-hypervisor.sock"; }

  ServiceHostOptions host;
  std::string memory_socket;  // empty: DefaultMemorySocket of the gRPC address
  // What every session starts from; a session names its own caps, size and strategy.
  SessionConfig session;
  CostModel cost_model;
  bool debug_calls = false;  // GetSession.include_mappings

  uint32_t max_sessions = 256;
  uint64_t max_guest_ram_bytes = uint64_t{64} << 30;
  uint32_t max_outstanding_batches = 64;
  uint32_t max_batch_descriptors = 4096;
  uint64_t session_ttl_ms = 10'000;
  uint32_t max_fault_watchers = 32;  // each holds a thread
  uint32_t concurrent_walks = DefaultConcurrentWalks();
  uint64_t open_timeout_ms = 10'000;
  // Remote guest memory.
  uint64_t remote_page_timeout_ms = 5'000;
  uint64_t max_remote_pages_per_invalidation = uint64_t{1} << 18;

  void AddTo(FlagSet& flags);

 private:
  // All CPUs but one, which is left to those that ask for little.
  static uint32_t DefaultConcurrentWalks();
};

}  // namespace viommu

#endif  // VIOMMU_HYPERVISOR_SVC_OPTIONS_H_
