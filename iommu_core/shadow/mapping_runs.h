// Flattened tables as sorted runs, and their comparison page by page: the oracle's arithmetic.
#ifndef VIOMMU_IOMMU_CORE_SHADOW_MAPPING_RUNS_H_
#define VIOMMU_IOMMU_CORE_SHADOW_MAPPING_RUNS_H_

#include <cstdint>
#include <vector>

#include "iommu_core/base/types.h"
#include "iommu_core/pt/walker.h"

namespace viommu {

// Ascending and disjoint; adjoining mappings with adjoining targets and the same access are one
// run, so that two tables of different leaf sizes compare equal where they map alike.
class MappingRuns {
 public:
  // Keeps only what lies in `range`.
  explicit MappingRuns(IovaRange range) : range_(range) {}

  // `leaf` lies above all before it.
  void Append(const LeafMapping& leaf);
  const std::vector<LeafMapping>& runs() const { return runs_; }
  std::vector<LeafMapping> Take() { return std::move(runs_); }

 private:
  const IovaRange range_;
  std::vector<LeafMapping> runs_;
};

struct RunComparison {
  uint64_t differing_pages = 0;
  uint64_t compared_pages = 0;  // mapped in either
};

// Pages of `range` that `shadow` and `reference` map differently. Not compared: pages in
// `excluded`, and pages on which `reference` differs from `earlier` (the guest changed them
// meanwhile).
RunComparison CompareRuns(IovaRange range, const std::vector<LeafMapping>& shadow,
                          const std::vector<LeafMapping>& reference,
                          const std::vector<LeafMapping>& earlier,
                          const std::vector<IovaRange>& excluded);

}  // namespace viommu

#endif  // VIOMMU_IOMMU_CORE_SHADOW_MAPPING_RUNS_H_
