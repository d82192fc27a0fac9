#include "iommu_core/dma/guest_config.h"

#include <algorithm>
#include <array>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "iommu_core/base/errors.h"
#include "iommu_core/mem/dirty_log.h"

namespace viommu {
namespace {

constexpr uint64_t kMinTableRegion = uint64_t{1} << 20;

template <typename E, size_t N>
absl::StatusOr<E> Parse(const std::array<std::pair<absl::string_view, E>, N>& names,
                        absl::string_view what, absl::string_view name) {
  for (const auto& [known, value] : names) {
    if (known == name) return value;
  }
  return errors::Invalid(
      absl::StrCat("unknown ", what, " '", name,
                   "'; one of: ", absl::StrJoin(names, ", ", [](std::string* out, const auto& n) {
                     absl::StrAppend(out, n.first);
                   })));
}

constexpr std::array<std::pair<absl::string_view, Policy>, 7> kPolicies{{
    {"passthrough", Policy::kPassthrough},
    {"strict", Policy::kStrict},
    {"lazy", Policy::kLazy},
    {"lazy-single", Policy::kLazySingle},
    {"lazy-psi", Policy::kLazyPsi},
    {"lazy-psi-batched", Policy::kLazyPsiBatched},
    {"adaptive", Policy::kAdaptive},
}};
constexpr std::array<std::pair<absl::string_view, MapSync>, 2> kMapSyncs{{
    {"each", MapSync::kEach},
    {"merged", MapSync::kMerged},
}};
constexpr std::array<std::pair<absl::string_view, HintMode>, 2> kHints{{
    {"never", HintMode::kNever},
    {"linux-6.12", HintMode::kLinux612},
}};

}  // namespace

absl::StatusOr<Policy> ParsePolicy(absl::string_view name) {
  return Parse(kPolicies, "policy", name);
}

absl::string_view PolicyName(Policy policy) {
  for (const auto& [name, value] : kPolicies) {
    if (value == policy) return name;
  }
  return "?";
}

absl::StatusOr<MapSync> ParseMapSync(absl::string_view name) {
  return Parse(kMapSyncs, "map_sync", name);
}

absl::StatusOr<HintMode> ParseHintMode(absl::string_view name) { return Parse(kHints, "ih", name); }

uint64_t TableRegionBytes(const GuestConfig& config) {
  if (config.table_region_bytes != 0) return AlignUp(config.table_region_bytes, kPageSize);
  return AlignUp(std::max(kMinTableRegion, config.ram_bytes / 16), kPageSize);
}

PhysAddr DirtyLogBase(const GuestConfig& config, size_t iommu) {
  const uint64_t to_top = config.iommu_caching_mode.size() - iommu;
  return PhysAddr(config.ram_bytes - TableRegionBytes(config) -
                  to_top * DirtyLogBytes(config.ram_bytes));
}

vtd::Capabilities GuestCapabilities(const GuestConfig& config, size_t iommu) {
  vtd::Capabilities caps =
      vtd::QemuCapabilities(config.address_width, config.iommu_caching_mode[iommu]);
  // Devices with a device-TLB may be attached (QEMU: device-iotlb=on).
  caps.ecap |= vtd::ecap::Dt::kMask;
  return caps;
}

PolicyDecision DecidePolicy(Policy requested, bool force_lazy,
                            const std::vector<bool>& iommu_caching_mode) {
  PolicyDecision out{requested, requested, ""};
  const bool deferred = requested != Policy::kStrict && requested != Policy::kPassthrough;
  const bool any_caching_mode =
      std::any_of(iommu_caching_mode.begin(), iommu_caching_mode.end(), [](bool cm) { return cm; });
  if (deferred && any_caching_mode && !force_lazy) {
    out.effective = Policy::kStrict;
    out.reason =
        "IOMMU batching disallowed due to virtualization: a vIOMMU has caching mode "
        "(--force_lazy overrides)";
  }
  return out;
}

absl::Status CheckConfig(const GuestConfig& config) {
  if (config.address_width != 39 && config.address_width != 48) {
    return errors::Invalid("address_width must be 39 or 48");
  }
  if (config.vcpus == 0 || config.vcpus > kMaxVcpus) {
    return errors::Invalid(absl::StrCat("vcpus must be 1 to ", kMaxVcpus));
  }
  if (config.hz == 0 || config.hz > 1000) return errors::Invalid("hz must be 1 to 1000");
  if (config.stale_age_bound < kMinStaleAgeBound || config.stale_age_bound > kMaxStaleAgeBound) {
    return errors::Invalid(absl::StrCat("stale_age_bound must be ",
                                        absl::FormatDuration(kMinStaleAgeBound), " to ",
                                        absl::FormatDuration(kMaxStaleAgeBound)));
  }
  if (config.iommu_caching_mode.empty() || config.iommu_caching_mode.size() > kMaxIommus) {
    return errors::Invalid(absl::StrCat("there must be 1 to ", kMaxIommus, " vIOMMUs"));
  }
  if (!IsAligned(config.ram_bytes, kPageSize) || config.ram_bytes < kMinRamBytes) {
    return errors::Invalid(
        absl::StrCat("ram_bytes must be a page multiple of at least ", kMinRamBytes));
  }
  return absl::OkStatus();
}

}  // namespace viommu
