// What a guest is made of and how it decides: the policy axis of the lab.
#ifndef VIOMMU_IOMMU_CORE_DMA_GUEST_CONFIG_H_
#define VIOMMU_IOMMU_CORE_DMA_GUEST_CONFIG_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "iommu_core/base/cost_model.h"
#include "iommu_core/base/types.h"
#include "iommu_core/vtd/capability.h"

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

// Which kernel's page-selective descriptors: 6.12 sets IH on an unmap that freed no table and
// aligns the address down to its mask (cache.c); 6.1 never sets IH and leaves the low bits of the
// address (iommu_flush_iotlb_psi).
enum class HintMode { kNever, kLinux612 };
absl::StatusOr<HintMode> ParseHintMode(absl::string_view name);

struct GuestConfig {
  Policy policy = Policy::kStrict;
  MapSync map_sync = MapSync::kEach;
  bool force_lazy = false;  // as writing DMA-FQ to a group's type: overrides the CM rule
  HintMode hint = HintMode::kNever;
  uint32_t vcpus = 1;
  uint32_t hz = 250;       // guest tick; timers fire on the tick after they are due
  int address_width = 39;  // 39: 3 levels, 48: 4 levels
  std::vector<bool> iommu_caching_mode = {true};  // one vIOMMU each
  uint64_t ram_bytes = uint64_t{1} << 30;
  // Top of ram_bytes kept for tables, rings and status words; 0: a sixteenth, at least 1 MiB.
  uint64_t table_region_bytes = 0;
  // `adaptive`: how long after its unmap a page may stay within a device's reach. Its default is
  // the flush timer of `lazy`, which a kernel that counts time in ticks exceeds and this does not.
  absl::Duration stale_age_bound = absl::Milliseconds(10);
  // Wall time that one submission waits for its completion before it is left outstanding.
  absl::Duration invalidation_timeout = absl::Seconds(10);
  CostModel cost_model;
};

inline constexpr uint32_t kMaxVcpus = 512;
inline constexpr size_t kMaxIommus = 64;
inline constexpr absl::Duration kMinStaleAgeBound = absl::Milliseconds(1);
inline constexpr absl::Duration kMaxStaleAgeBound = absl::Seconds(10);
inline constexpr uint64_t kMinRamBytes = uint64_t{4} << 20;

// InvalidArgument names what is out of range.
absl::Status CheckConfig(const GuestConfig& config);

// Memory from the top down: tables, rings and status words; for each vIOMMU the log of table writes
// that its `dirty-log` hypervisor session goes by (mem/dirty_log.h), the last one's on top;
// buffers.
uint64_t TableRegionBytes(const GuestConfig& config);
PhysAddr DirtyLogBase(const GuestConfig& config, size_t iommu);

// What the unit at index `iommu` presents.
vtd::Capabilities GuestCapabilities(const GuestConfig& config, size_t iommu);

struct PolicyDecision {
  Policy requested = Policy::kStrict;
  Policy effective = Policy::kStrict;
  std::string reason;  // empty if they agree
};
// Linux since 5.11 (29b32839725f): caching mode on any unit makes every domain strict, before any
// device is attached; `force_lazy` is writing DMA-FQ to a group's type.
PolicyDecision DecidePolicy(Policy requested, bool force_lazy,
                            const std::vector<bool>& iommu_caching_mode);

}  // namespace viommu

#endif  // VIOMMU_IOMMU_CORE_DMA_GUEST_CONFIG_H_
