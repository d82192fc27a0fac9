// What a command runs: a trace or a synthetic load, and what the trace says about itself.
#ifndef VIOMMU_GUEST_SVC_CLIENT_LOAD_INPUT_H_
#define VIOMMU_GUEST_SVC_CLIENT_LOAD_INPUT_H_

#include <string>

#include "absl/status/statusor.h"
#include "iommu_core/load/trace_parser.h"

namespace viommu::client {

enum class TraceUse {
  kRecordedIovas,  // table operations exactly as recorded
  kDriverCalls,    // the drivers' calls; IOVAs are the allocator's choice (dma_api_ops.h)
};

struct LoadInput {
  std::string name;               // for people: a workload's name, or the trace's path
  std::string workload;           // as RunWorkload takes it; "trace" for a trace
  Trace trace;                    // empty for a synthetic load
  uint32_t recorded_domains = 0;  // kDriverCalls: domains that keep their recorded IOVAs
};

// One of `trace` and `workload` is not empty. InvalidArgument/NotFound say what is wrong with it.
absl::StatusOr<LoadInput> ReadInput(const std::string& trace, const std::string& workload,
                                    TraceUse use, bool allow_lost_events);

}  // namespace viommu::client

#endif  // VIOMMU_GUEST_SVC_CLIENT_LOAD_INPUT_H_
