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
  // Traces: operations happen exactly at their time. Otherwise `time_ns` is the earliest start and
  // a vCPU that is still busy starts later (closed loop under overload).
  virtual bool fixed_times() const = 0;
  // Next operation of the load in time order given when each vCPU is free; nullopt at the end.
  virtual std::optional<LoadOp> Next(const std::vector<uint64_t>& vcpu_ready_ns) = 0;
  virtual uint64_t total_ops() const = 0;  // 0: not known
  virtual uint32_t vcpus() const = 0;
  // Bytes of guest memory that the operations name; the machine needs at least this below its table
  // region.
  virtual uint64_t ram_bytes() const = 0;
  // The domain with the most operations: where a resident live set hurts.
  virtual uint32_t busiest_domain() const { return 0; }
  // First byte of `size_bytes` of that domain's address space that no operation touches; nullopt:
  // there is no such place below `end`. Loads that let the allocator choose get theirs from the top
  // of the low 4 GiB, so the default is 4 GiB.
  virtual std::optional<Iova> ResidentPlace(uint64_t size_bytes, Iova end) const {
    const Iova first(uint64_t{1} << 32);
    if (size_bytes > end.value() || first + size_bytes > end) return std::nullopt;
    return first;
  }
};

struct RunOptions {
  uint64_t live_pages = 0;  // resident 4K pages in the busiest domain, before the measured part
  bool touch_after_unmap = true;  // the device touches each unmapped range once more
  int address_width = 39;         // of the machine: bounds where the resident set may stand
  std::function<void(uint64_t done, uint64_t total)> progress;  // may be empty
  std::function<bool()> cancelled;                              // may be empty
};

// Drives `machine` (created on `clock`) through the load. An operation that fails is counted, not
// fatal; Unavailable and DeadlineExceeded from the machine end the run, and so does `cancelled`.
// Everything from the first operation to the last is measured, boot included, but not the building
// of the resident set: it is built when the busiest domain gets its first device. The caller fills
// in what only the hypervisor knows: pinned_pages_max and refused_pages.
absl::StatusOr<RunResult> RunLoad(LoadSource& source, GuestMachine& machine, VirtualClock& clock,
                                  const RunOptions& options);

}  // namespace viommu

#endif  // VIOMMU_IOMMU_CORE_LOAD_RUNNER_H_
