#include <array>
#include <utility>

#include "absl/strings/str_cat.h"
#include "iommu_core/base/errors.h"
#include "iommu_core/shadow/hypervisor_session.h"

namespace viommu {
namespace {

constexpr std::array<std::pair<Strategy, absl::string_view>, 5> kStrategies = {{
    {Strategy::kWalk, "walk"},
    {Strategy::kWalkShared, "walk-shared"},
    {Strategy::kSnapshot, "snapshot"},
    {Strategy::kDirtyLog, "dirty-log"},
    {Strategy::kNested, "nested"},
}};

}  // namespace

absl::StatusOr<Strategy> ParseStrategy(absl::string_view name) {
  for (const auto& [strategy, text] : kStrategies) {
    if (text == name) return strategy;
  }
  return errors::Invalid(absl::StrCat("unknown strategy \"", name,
                                      "\": walk, walk-shared, snapshot, dirty-log or nested"));
}

absl::string_view StrategyName(Strategy strategy) {
  for (const auto& [known, text] : kStrategies) {
    if (known == strategy) return text;
  }
  return "unknown";
}

absl::StatusOr<Verify> ParseVerify(absl::string_view name) {
  if (name == "off") return Verify::kOff;
  if (name == "sampled") return Verify::kSampled;
  if (name == "full") return Verify::kFull;
  return errors::Invalid(absl::StrCat("unknown verify \"", name, "\": off, sampled or full"));
}

}  // namespace viommu
