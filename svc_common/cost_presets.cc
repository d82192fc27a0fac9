#include "svc_common/cost_presets.h"

#include <google/protobuf/text_format.h>

#include <cstdlib>
#include <fstream>
#include <iterator>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "svc_common/conversions.h"

namespace viommu {
namespace {

bool IsPath(const std::string& name) {
  return name.find('/') != std::string::npos || absl::EndsWith(name, ".textproto");
}

}  // namespace

absl::StatusOr<v1::CostPreset> LoadCostPreset(const std::string& name) {
  std::vector<std::string> files;
  if (IsPath(name)) {
    files.push_back(name);
  } else {
    const char* folder = std::getenv("VIOMMU_PRESETS");
    if (folder != nullptr) files.push_back(absl::StrCat(folder, "/", name, ".textproto"));
    files.push_back(absl::StrCat(VIOMMU_SOURCE_PRESETS, "/", name, ".textproto"));
    files.push_back(absl::StrCat("/usr/share/viommu/presets/", name, ".textproto"));
  }
  for (const std::string& file : files) {
    std::ifstream in(file);
    if (!in) continue;
    const std::string text((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
    v1::CostPreset preset;
    if (!google::protobuf::TextFormat::ParseFromString(text, &preset)) {
      return absl::InvalidArgumentError(absl::StrCat(file, " is not a CostPreset text proto"));
    }
    return preset;
  }
  return absl::InvalidArgumentError(
      absl::StrCat("no cost preset '", name, "' (looked for ", files.front(), ")"));
}

absl::StatusOr<CostModel> LoadCostModel(const std::string& name) {
  const absl::StatusOr<v1::CostPreset> preset = LoadCostPreset(name);
  if (preset.ok()) return FromProto(*preset);
  const CostModel defaults;
  if (name == defaults.preset_name) return defaults;
  return preset.status();
}

}  // namespace viommu
