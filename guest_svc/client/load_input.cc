#include "guest_svc/client/load_input.h"

#include <utility>

#include "iommu_core/load/dma_api_ops.h"
#include "iommu_core/load/workloads.h"

namespace viommu::client {

absl::StatusOr<LoadInput> ReadInput(const std::string& trace, const std::string& workload,
                                    TraceUse use, bool allow_lost_events) {
  if (trace.empty() == workload.empty()) {
    return absl::InvalidArgumentError("one of --trace and --workload is needed");
  }
  LoadInput input;
  if (!workload.empty()) {
    // A wrong name is better known before processes start.
    if (auto made = MakeWorkload(workload, {}); !made.ok()) return made.status();
    input.name = workload;
    input.workload = workload;
    return input;
  }
  absl::StatusOr<Trace> read = ReadTrace(trace, {.allow_lost_events = allow_lost_events});
  if (!read.ok()) return read.status();
  input.name = trace;
  input.workload = "trace";
  input.trace = *std::move(read);
  // Also at the recorded IOVAs the unmaps correct which maps were one list.
  DmaApiOps calls = ToDmaApiOps(std::move(input.trace.ops));
  input.trace.ops = std::move(calls.ops);
  input.recorded_domains = calls.recorded_domains;
  if (use == TraceUse::kRecordedIovas) {
    for (LoadOp& op : input.trace.ops) op.choose_iova = false;
  } else {
    // When a recorded administrator turned a group to DMA-FQ is policy, which the run decides.
    std::erase_if(input.trace.ops,
                  [](const LoadOp& op) { return op.kind == LoadOp::Kind::kMakeLazy; });
  }
  return input;
}

}  // namespace viommu::client
