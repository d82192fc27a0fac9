// The JSON of `viommu compare` (contracts.md, viommu.compare.v1), written and read back, and
// several of them joined.
#ifndef VIOMMU_GUEST_SVC_CLIENT_COMPARE_DOCUMENT_H_
#define VIOMMU_GUEST_SVC_CLIENT_COMPARE_DOCUMENT_H_

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "guest_svc/client/comparison.h"
#include "guest_svc/client/output.h"

namespace viommu::client {

Json ToJson(const Comparison& comparison);

// What ToJson wrote. InvalidArgument names `where` and what is missing or of the wrong type.
absl::StatusOr<Comparison> ComparisonFromJson(const Json& json, const std::string& where);

// A comparison read from a file, and the file's name for errors.
struct NamedComparison {
  std::string name;
  Comparison comparison;
};

// All rows in the order that one process would have run them. FailedPrecondition, naming the files:
// input, seed, preset, version or settings differ; a row stands twice and differs beyond wall_*; a
// row that one of them planned is in none. Needs at least one.
absl::StatusOr<Comparison> MergeComparisons(std::vector<NamedComparison> parts);

}  // namespace viommu::client

#endif  // VIOMMU_GUEST_SVC_CLIENT_COMPARE_DOCUMENT_H_
