// viommu anchors: published figures beside the model's.
#include "guest_svc/client/anchors.h"

#include <cmath>
#include <cstdio>
#include <map>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "guest_svc/client/command.h"
#include "guest_svc/client/load_input.h"
#include "guest_svc/client/service_pair.h"
#include "guest_svc/client/shared_flags.h"
#include "guest_svc/client/workload_client.h"

namespace viommu::client {
namespace {

constexpr char kProgram[] = "viommu anchors";
constexpr char kExamples[] =
    "  viommu anchors\n"
    "  viommu anchors --json=anchors.json\n";

const char* KindName(AnchorKind kind) {
  switch (kind) {
    case AnchorKind::kRun:
      return "run";
    case AnchorKind::kFormula:
      return "formula";
    case AnchorKind::kConstants:
      return "constants";
  }
  return "";
}

std::string Value(double value, const std::string& unit) {
  if (std::isinf(value)) return "any";
  if (unit == "ns") return Duration(value);
  if (unit == "bytes") return absl::StrCat(Short(value / (1 << 20)), " MiB");
  if (unit == "%") return absl::StrCat(Short(value), " %");
  return absl::StrCat(Short(value), unit == "/s" ? "/s" : unit == "x" ? "x" : "");
}

const char* Outcome(const Anchor& a) {
  if (a.in_band()) return a.surprising() ? "in band, though documented as a miss" : "pass";
  return a.surprising() ? "MISS" : "miss, known";
}

// One pair of services for each entry limit asked for.
class Runner {
 public:
  absl::StatusOr<v1::WorkloadResult> Run(const AnchorRun& load) {
    progress_.Say(
        absl::StrFormat("run %d: %s, %s x %s", ++runs_, load.workload, load.policy, load.strategy));
    std::unique_ptr<ServicePair>& pair = pairs_[load.dma_entry_limit];
    if (pair == nullptr) {
      PairOptions options;
      options.hypervisor_flags = {absl::StrCat("--dma_entry_limit=", load.dma_entry_limit)};
      auto started = ServicePair::Start(options);
      if (!started.ok()) return started.status();
      pair = *std::move(started);
    }
    const auto channel = Connect(pair->guest_address(), {});
    if (!channel.ok()) return channel.status();
    auto preset = FindCostPreset(load.preset);
    if (!preset.ok()) return preset.status();
    v1::WorkloadSpec spec;
    spec.set_policy(load.policy);
    spec.set_strategy(load.strategy);
    spec.set_live_pages(load.live_pages);
    spec.set_vcpus(load.vcpus);
    spec.set_op_count(load.ops);
    spec.set_seed(1);
    spec.set_map_sync(load.map_sync);
    spec.set_force_lazy(true);
    spec.set_hz(250);
    spec.set_hint("never");
    *spec.mutable_cost_preset() = *std::move(preset);
    // Without caching mode no shadow can follow, and there is none under `nested`.
    if (!load.caching_mode) spec.set_verify("off");
    spec.set_no_caching_mode(!load.caching_mode);
    LoadInput input;
    input.workload = load.workload;
    const auto guest = v1::GuestService::NewStub(*channel);
    auto result = RunWorkload(*guest, std::move(spec), input, {});
    if (!result.ok()) {
      if (absl::Status ended = pair->Check(); !ended.ok()) return ended;
      return result.status();
    }
    if (result->sync().shadow_mismatches() != 0) {
      return absl::InternalError(absl::StrCat(load.workload, ", ", load.policy, " x ",
                                              load.strategy,
                                              ": shadow and reference walk differ; this is a bug"));
    }
    return result;
  }

 private:
  std::map<uint64_t, std::unique_ptr<ServicePair>> pairs_;
  Progress progress_{kProgram};
  int runs_ = 0;
};

}  // namespace

std::string ToText(const std::vector<Anchor>& anchors) {
  TextTable table({"anchor", "what", "published", "model", "pass band", "from", "outcome"});
  for (const Anchor& a : anchors) {
    table.Add({a.id, a.what, a.published_text, Value(a.model, a.unit),
               std::isinf(a.high)
                   ? absl::StrCat("at least ", Value(a.low, a.unit))
                   : absl::StrCat(Value(a.low, a.unit), " to ", Value(a.high, a.unit)),
               KindName(a.kind), Outcome(a)});
  }
  std::string text = table.ToString();
  text +=
      "\nfrom: run = counts of a run, priced; formula = a published model applied to another "
      "figure;\nconstants = the preset was made from this figure, only its sum is checked.\n";
  for (const Anchor& a : anchors) {
    if (!a.known_miss.empty()) {
      absl::StrAppend(&text, "Known miss ", a.id, ", ", a.what, ": ", a.known_miss, ".\n");
    }
  }
  for (const Unmodelled& u : UnmodelledFigures()) {
    absl::StrAppend(&text, "Not compared ", u.id, ", ", u.what, ": ", u.reason, ".\n");
  }
  uint64_t passed = 0;
  uint64_t known = 0;
  uint64_t surprising = 0;
  for (const Anchor& a : anchors) {
    passed += a.in_band() ? 1 : 0;
    known += !a.in_band() && !a.known_miss.empty() ? 1 : 0;
    surprising += a.surprising() ? 1 : 0;
  }
  absl::StrAppend(&text, passed, " of ", anchors.size(), " in their band, ", known,
                  " missed as documented, ", surprising, " not as documented\n");
  return text;
}

Json ToJson(const std::vector<Anchor>& anchors) {
  Json list = Json::array();
  for (const Anchor& a : anchors) {
    Json j = {{"id", a.id},           {"what", a.what},
              {"source", a.source},   {"published_text", a.published_text},
              {"unit", a.unit},       {"published", a.published},
              {"model", a.model},     {"band_low", a.low},
              {"band_high", nullptr}, {"from", KindName(a.kind)},
              {"basis", a.basis},     {"in_band", a.in_band()}};
    if (!std::isinf(a.high)) j["band_high"] = a.high;
    if (!a.known_miss.empty()) j["known_miss"] = a.known_miss;
    list.push_back(std::move(j));
  }
  Json unmodelled = Json::array();
  for (const Unmodelled& u : UnmodelledFigures()) {
    unmodelled.push_back({{"id", u.id}, {"what", u.what}, {"reason", u.reason}});
  }
  Json json;
  json["schema"] = "viommu.anchors.v1";
  json["anchors"] = std::move(list);
  json["not_compared"] = std::move(unmodelled);
  return json;
}

int RunAnchors(const Args& args) {
  std::string json;
  FlagSet flags(
      kProgram,
      "published figures beside what the model predicts from the cited presets; exit 1 if "
      "one misses its band that is not documented to, or the reverse");
  AddJsonFlag(flags, &json, "viommu.anchors.v1");
  if (const auto exit_code = ParseArgs(flags, kExamples, args)) return *exit_code;
  absl::StatusOr<std::vector<Anchor>> anchors = std::vector<Anchor>();
  {
    Runner runner;
    anchors = ComputeAnchors([&](const AnchorRun& load) { return runner.Run(load); });
  }
  if (!anchors.ok()) return Fail(kProgram, anchors.status());
  std::fputs(ToText(*anchors).c_str(), json == "-" ? stderr : stdout);
  if (!json.empty()) {
    if (absl::Status s = WriteJson(json, ToJson(*anchors)); !s.ok()) return Fail(kProgram, s);
  }
  for (const Anchor& a : *anchors) {
    if (a.surprising()) return kExitFailed;
  }
  return kExitOk;
}

}  // namespace viommu::client
