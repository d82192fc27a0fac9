// One load on one guest and one hypervisor session of the same process: what `viommu compare` runs
// through two services, without them. Counts and modelled time are the same; wall time is not.
#ifndef VIOMMU_TESTS_BENCH_IN_PROCESS_RUN_H_
#define VIOMMU_TESTS_BENCH_IN_PROCESS_RUN_H_

#include <algorithm>
#include <cstdint>

#include "absl/status/statusor.h"
#include "iommu_core/dma/guest_machine.h"
#include "iommu_core/load/in_process_sink.h"
#include "iommu_core/load/runner.h"
#include "iommu_core/mem/dirty_log.h"
#include "iommu_core/mem/shared_memory.h"
#include "iommu_core/shadow/hypervisor_session.h"

namespace viommu {

// `config` says who decides what and what it costs; memory is laid out here for the load. A lazy
// policy is kept under caching mode. The shadow is not verified.
inline absl::StatusOr<RunResult> RunInProcess(LoadSource& source, GuestConfig config,
                                              Strategy strategy, uint64_t live_pages) {
  constexpr uint64_t kMib = uint64_t{1} << 20;
  config.force_lazy = true;
  config.vcpus = source.vcpus();
  config.table_region_bytes = AlignUp(64 * kMib + live_pages * 16, kPageSize);
  config.ram_bytes = AlignUp(std::max(source.ram_bytes(), live_pages * kPageSize), kPageSize) +
                     2 * kMib + config.table_region_bytes;
  config.ram_bytes = AlignUp(config.ram_bytes + 2 * DirtyLogBytes(config.ram_bytes), kMib);
  auto ram = SharedMemory::Create(config.ram_bytes);
  if (!ram.ok()) return ram.status();
  SessionConfig session;
  session.guest_caps = GuestCapabilities(config, 0);
  session.guest_haw_bits = config.address_width;
  session.guest_ram_bytes = config.ram_bytes;
  session.strategy = strategy;
  session.verify = Verify::kOff;
  session.dma_entry_limit = uint64_t{1} << 24;
  session.dirty_log_base = DirtyLogBase(config, 0).value();
  auto hypervisor = HypervisorSession::Create(session, **ram);
  if (!hypervisor.ok()) return hypervisor.status();
  InProcessSink sink(**hypervisor);
  VirtualClock clock;
  auto machine = GuestMachine::Create(config, **ram, clock, {&sink});
  if (!machine.ok()) return machine.status();
  RunOptions options;
  options.live_pages = live_pages;
  options.touch_after_unmap = false;
  options.address_width = config.address_width;
  return RunLoad(source, **machine, clock, options);
}

}  // namespace viommu

#endif  // VIOMMU_TESTS_BENCH_IN_PROCESS_RUN_H_
