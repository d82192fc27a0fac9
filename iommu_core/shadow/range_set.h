// A set of addresses as disjoint ranges.
#ifndef VIOMMU_IOMMU_CORE_SHADOW_RANGE_SET_H_
#define VIOMMU_IOMMU_CORE_SHADOW_RANGE_SET_H_

#include <cstddef>
#include <cstdint>
#include <map>
#include <vector>

#include "iommu_core/base/types.h"

namespace viommu {

// At most `kMaxRanges` ranges: beyond that a new one is joined with the one before it, gap
// included, so that a guest cannot make the set grow without bound. Looking at too much again does
// no harm.
class RangeSet {
 public:
  static constexpr size_t kMaxRanges = 65536;

  bool empty() const { return ranges_.empty(); }
  void Add(IovaRange range);
  void Erase(IovaRange range);
  void Clear() {
    ranges_.clear();
    bytes_ = 0;
  }
  bool Contains(Iova iova) const;
  // The lowest range; the set is not empty.
  IovaRange First() const { return {ranges_.begin()->first, ranges_.begin()->second}; }
  std::vector<IovaRange> Within(IovaRange range) const;
  uint64_t page_count() const { return bytes_ >> kPageShift; }
  uint64_t bookkeeping_bytes() const { return ranges_.size() * 6 * sizeof(uint64_t); }

 private:
  std::map<Iova, Iova> ranges_;  // first -> end
  uint64_t bytes_ = 0;
};

}  // namespace viommu

#endif  // VIOMMU_IOMMU_CORE_SHADOW_RANGE_SET_H_
