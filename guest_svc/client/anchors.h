// Published figures beside what the model predicts for the same situation.
#ifndef VIOMMU_GUEST_SVC_CLIENT_ANCHORS_H_
#define VIOMMU_GUEST_SVC_CLIENT_ANCHORS_H_

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "guest_svc/client/output.h"
#include "viommu/v1/guest_service.pb.h"

namespace viommu::client {

// How the model's side of an anchor came about, from the strongest to the weakest evidence.
enum class AnchorKind {
  kRun,        // counts of a run, priced; `basis` says which constant has the same source
  kFormula,    // a published model or fit, applied to a figure that it was not made from
  kConstants,  // the preset was made from this very figure: only its sum is checked
};

struct Anchor {
  std::string id;  // as in deploy/docs/claims.md
  std::string what;
  std::string published_text;
  std::string unit;
  double published = 0;
  double low = 0;  // the pass band of `model`, ends included
  double high = 0;
  double model = 0;
  AnchorKind kind = AnchorKind::kRun;
  std::string basis;       // loads, policies, presets that `model` was computed from
  std::string source;      // of the published figure
  std::string known_miss;  // why the model is expected to miss; empty: it should not

  bool in_band() const { return model >= low && model <= high; }
  // In the band though it was said to miss, or the other way round.
  bool surprising() const { return in_band() != known_miss.empty(); }
};

// A published figure that the model says nothing about.
struct Unmodelled {
  std::string id;
  std::string what;
  std::string reason;
};

// One load of the model's side.
struct AnchorRun {
  std::string workload;
  std::string policy;
  std::string strategy;
  std::string preset;
  uint64_t ops = 4000;
  uint64_t live_pages = 0;
  uint32_t vcpus = 1;
  bool caching_mode = true;
  std::string map_sync = "each";
  uint64_t dma_entry_limit = 4'194'304;
  friend auto operator<=>(const AnchorRun&, const AnchorRun&) = default;
};
using RunAnchor = std::function<absl::StatusOr<v1::WorkloadResult>(const AnchorRun&)>;

// Every anchor with its model's side computed; `run` executes a load. Errors are `run`'s.
absl::StatusOr<std::vector<Anchor>> ComputeAnchors(const RunAnchor& run);
const std::vector<Unmodelled>& UnmodelledFigures();

std::string ToText(const std::vector<Anchor>& anchors);
Json ToJson(const std::vector<Anchor>& anchors);

}  // namespace viommu::client

#endif  // VIOMMU_GUEST_SVC_CLIENT_ANCHORS_H_
