// Runs one load on one guest on the virtual clock and totals what it cost.
#ifndef VIOMMU_IOMMU_CORE_LOAD_RUNNER_H_
#define VIOMMU_IOMMU_CORE_LOAD_RUNNER_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "absl/status/statusor.h"
#include "iommu_core/base/clock.h"
#include "iommu_core/dma/guest_machine.h"
#include "iommu_core/load/load_op.h"
#include "iommu_core/load/run_result.h"

namespace viommu {

// Where operations come from, one stream per vCPU or one for all.
class LoadSource {
 public:
  virtual ~LoadSource() = default;
  // Traces: operations happen exactly at their time. Otherwise `time_ns` is the earliest start and a
  // vCPU that is still busy starts later (closed loop under overload).
  virtual bool fixed_times() const = 0;
  // Next operation of the load in time order given when each vCPU is free; nullopt at the end.
  virtual std::optional<LoadOp> Next(const std::vector<uint64_t>& vcpu_ready_ns) = 0;
  virtual uint64_t total_ops() const = 0;  // 0: not known
  virtual uint32_t vcpus() const = 0;
  // Bytes of guest memory that the operations name; the machine needs at least this below its
  // table region.
  virtual uint64_t ram_bytes() const = 0;
};

struct RunOptions {
  uint64_t live_pages = 0;        // resident 4K pages in the busiest domain, before the measured part
  bool touch_after_unmap = true;  // the device touches each unmapped range once more
  std::function<void(uint64_t done, uint64_t total)> progress;  // may be empty
  std::function<bool()> cancelled;                              // may be empty
};

// Drives `machine` (created on `clock`) through the load. An operation that fails is counted, not
// fatal; Unavailable and DeadlineExceeded from the machine end the run.
absl::StatusOr<RunResult> RunLoad(LoadSource& source, GuestMachine& machine, VirtualClock& clock,
                                  const RunOptions& options);

}  // namespace viommu

#endif  // VIOMMU_IOMMU_CORE_LOAD_RUNNER_H_
