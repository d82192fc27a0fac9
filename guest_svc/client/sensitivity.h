// How far each constant of the preset can move the answer: one at a time, from the low to the high
// end of its cited range.
#ifndef VIOMMU_GUEST_SVC_CLIENT_SENSITIVITY_H_
#define VIOMMU_GUEST_SVC_CLIENT_SENSITIVITY_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "guest_svc/client/comparison.h"
#include "guest_svc/client/output.h"

namespace viommu::client {

// The answer with one set of constants.
struct PairAnswer {
  double ratio = 0;                  // cost per unmap of `first` over `second` at `live_pages`
  std::optional<double> flip_pages;  // live set at which they swap places; none: they do not
};

struct Swing {
  std::string constant;
  double low_ns = 0;
  double high_ns = 0;
  PairAnswer low;   // with the constant at low_ns
  PairAnswer high;  // at high_ns
};

struct PairSensitivity {
  std::string strategy;
  uint32_t vcpus = 1;
  std::string first;
  std::string second;
  uint64_t live_pages = 0;  // the largest at which both ran
  PairAnswer base;
  std::vector<Swing> swings;  // widest ratio first; constants that move nothing are left out
};

// `lazy` and `lazy-single` against `strict`, by strategy and vCPUs. Counts stay the runs' own (see
// Reprice). Empty: `strict` or both others were not run.
std::vector<PairSensitivity> ComputeSensitivity(const Comparison& comparison);

std::string ToText(const std::vector<PairSensitivity>& list);
Json ToJson(const std::vector<PairSensitivity>& list);

}  // namespace viommu::client

#endif  // VIOMMU_GUEST_SVC_CLIENT_SENSITIVITY_H_
