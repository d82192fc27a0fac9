// Cost presets by name: text protos in deploy/presets, each constant with its source.
#ifndef VIOMMU_SVC_COMMON_COST_PRESETS_H_
#define VIOMMU_SVC_COMMON_COST_PRESETS_H_

#include <string>

#include "absl/status/statusor.h"
#include "iommu_core/base/cost_model.h"
#include "viommu/v1/types.pb.h"

namespace viommu {

// `name` is a preset's name (looked up as NAME.textproto in $VIOMMU_PRESETS, else in the source
// tree's deploy/presets, else in /usr/share/viommu/presets) or, with a '/' or ending in
// .textproto, a file.
// InvalidArgument: no such preset, or not a valid one.
absl::StatusOr<v1::CostPreset> LoadCostPreset(const std::string& name);
// The same as the core reads it; "qemu-trap" is also CostModel's own default and needs no file.
absl::StatusOr<CostModel> LoadCostModel(const std::string& name);

}  // namespace viommu

#endif  // VIOMMU_SVC_COMMON_COST_PRESETS_H_
