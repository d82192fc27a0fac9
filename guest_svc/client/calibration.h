// A user's measurements turned into a cost preset.
#ifndef VIOMMU_GUEST_SVC_CLIENT_CALIBRATION_H_
#define VIOMMU_GUEST_SVC_CLIENT_CALIBRATION_H_

#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "guest_svc/client/measurements.h"
#include "viommu/v1/types.pb.h"

namespace viommu::client {

struct Measurements {
  std::optional<BenchmarkResult> strict;  // dma_map_benchmark with iommu.strict=1
  std::optional<BenchmarkResult> lazy;    // with iommu.strict=0
  std::optional<QemuLog> qemu_log;
};

// A benchmark gives sums, a preset wants their parts: what was not measured is `base`'s. A base
// without trapped submissions (submission_ns 0) says that the benchmark ran on bare metal or with a
// queue of the guest's own.
struct Calibration {
  v1::CostPreset preset;             // all constants; those set here have source and range
  std::vector<std::string> changed;  // names of the constants set here
};

// InvalidArgument: nothing was measured, or a sum is smaller than the parts of `base` in it.
absl::StatusOr<Calibration> Calibrate(const v1::CostPreset& base, const std::string& name,
                                      const Measurements& measured);

}  // namespace viommu::client

#endif  // VIOMMU_GUEST_SVC_CLIENT_CALIBRATION_H_
