// Synthetic loads: what a device driver does, in sizes, lifetimes and rates that were published.
#ifndef VIOMMU_IOMMU_CORE_LOAD_WORKLOADS_H_
#define VIOMMU_IOMMU_CORE_LOAD_WORKLOADS_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "iommu_core/load/runner.h"

namespace viommu {

inline constexpr uint32_t kMaxWorkloadVcpus = 256;

struct WorkloadParams {
  uint64_t seed = 1;
  uint64_t ops = 20'000;  // map + unmap pairs, those of the standing rings and
                          // pools not counted
  uint32_t vcpus = 1;
};

struct WorkloadInfo {
  absl::string_view name;
  absl::string_view description;  // one line, with its source
};

// Every name that MakeWorkload takes.
const std::vector<WorkloadInfo>& Workloads();

// Deterministic: the same name, parameters and vcpu_ready times give the same operations on every
// machine. InvalidArgument lists the names, or says which parameter is out of range.
absl::StatusOr<std::unique_ptr<LoadSource>> MakeWorkload(absl::string_view name,
                                                         const WorkloadParams& params);

}  // namespace viommu

#endif  // VIOMMU_IOMMU_CORE_LOAD_WORKLOADS_H_
