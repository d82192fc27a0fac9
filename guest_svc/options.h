// Everything guest_svc can be told.
#ifndef VIOMMU_GUEST_SVC_OPTIONS_H_
#define VIOMMU_GUEST_SVC_OPTIONS_H_

#include <cstdint>
#include <string>

#include "guest_svc/spin_wait.h"
#include "iommu_core/dma/guest_config.h"
#include "svc_common/flags.h"
#include "svc_common/service_host.h"

namespace viommu {

struct GuestOptions {
  GuestOptions() {
    host.listen = "unix:/tmp/viommu-guest.sock";
    machine.ram_bytes = uint64_t{256} << 20;
  }

  ServiceHostOptions host;
  std::string hypervisor = "unix:/tmp/viommu-hypervisor.sock";
  std::string memory_socket;   // empty: DefaultMemorySocket of `hypervisor`
  bool remote_memory = false;  // the hypervisor pulls pages over the stream
  GuestConfig machine;
  std::string hypervisor_strategy;  // empty: the hypervisor's
  uint32_t wait_spin_us = kDefaultWaitSpin.count();

  uint32_t max_runs = 4;                            // RunWorkload calls at once
  uint64_t max_trace_ops = uint64_t{16} << 20;      // operations of one RunWorkload trace
  uint64_t max_run_ram_bytes = uint64_t{32} << 30;  // memory of one RunWorkload machine

  void AddTo(FlagSet& flags);
};

}  // namespace viommu

#endif  // VIOMMU_GUEST_SVC_OPTIONS_H_
