// What a guest is made of and how it decides: the policy axis of the lab.
#ifndef VIOMMU_IOMMU_CORE_DMA_GUEST_CONFIG_H_
#define VIOMMU_IOMMU_CORE_DMA_GUEST_CONFIG_H_

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "iommu_core/base/cost_model.h"
#include "iommu_core/base/types.h"

namespace viommu {

// design.md, "Two axes".
enum class Policy {
  kPassthrough,
  kStrict,
  kLazy,
  kLazySingle,
  kLazyPsi,
  kLazyPsiBatched,
  kAdaptive,
};
absl::StatusOr<Policy> ParsePolicy(absl::string_view name);  // InvalidArgument lists the names
absl::string_view PolicyName(Policy policy);

enum class MapSync { kEach, kMerged };
absl::StatusOr<MapSync> ParseMapSync(absl::string_view name);

// Which kernel's use of the invalidation hint: 6.12 sets IH on an unmap that freed no table, older
// kernels never do.
enum class HintMode { kNever, kLinux612 };
absl::StatusOr<HintMode> ParseHintMode(absl::string_view name);

struct GuestConfig {
  Policy policy = Policy::kStrict;
  MapSync map_sync = MapSync::kEach;
  bool force_lazy = false;        // as writing DMA-FQ to a group's type: overrides the CM rule
  HintMode hint = HintMode::kNever;
  uint32_t vcpus = 1;
  uint32_t hz = 250;              // guest tick; timers fire on the tick after they are due
  int address_width = 39;         // 39: 3 levels, 48: 4 levels
  std::vector<bool> iommu_caching_mode = {true};  // one vIOMMU each
  uint64_t ram_bytes = uint64_t{1} << 30;
  CostModel cost_model;
};

}  // namespace viommu

#endif  // VIOMMU_IOMMU_CORE_DMA_GUEST_CONFIG_H_
