#include "iommu_core/shadow/mapping_runs.h"

#include <algorithm>
#include <optional>

namespace viommu {
namespace {

// Reads sorted runs at ascending positions.
class Cursor {
 public:
  explicit Cursor(const std::vector<LeafMapping>& runs) : at_(runs.begin()), end_(runs.end()) {}

  struct View {
    uint64_t target = 0;  // address of the byte at the position
    Access access;        // none: not mapped
    friend bool operator==(const View&, const View&) = default;
  };
  // What stands at `position`; lowers `next` to where that changes.
  View At(Iova position, Iova& next) {
    while (at_ != end_ && at_->iova + at_->size_bytes <= position) ++at_;
    if (at_ == end_) return {};
    if (at_->iova > position) {
      next = std::min(next, at_->iova);
      return {};
    }
    next = std::min(next, at_->iova + at_->size_bytes);
    return {at_->address.value() + (position - at_->iova), at_->access};
  }

 private:
  std::vector<LeafMapping>::const_iterator at_;
  const std::vector<LeafMapping>::const_iterator end_;
};

}  // namespace

void MappingRuns::Append(const LeafMapping& leaf) {
  const Iova first = std::max(leaf.iova, range_.first);
  const Iova end = std::min(leaf.iova + leaf.size_bytes, range_.end);
  if (end <= first) return;
  const PhysAddr address = leaf.address + (first - leaf.iova);
  if (!runs_.empty()) {
    LeafMapping& last = runs_.back();
    if (last.iova + last.size_bytes == first && last.address + last.size_bytes == address &&
        last.access == leaf.access) {
      last.size_bytes += end - first;
      return;
    }
  }
  runs_.push_back({first, address, end - first, leaf.access});
}

RunComparison CompareRuns(IovaRange range, const std::vector<LeafMapping>& shadow,
                          const std::vector<LeafMapping>& reference,
                          const std::vector<LeafMapping>& earlier,
                          const std::vector<IovaRange>& excluded) {
  RunComparison out;
  Cursor shadow_at(shadow), reference_at(reference), earlier_at(earlier);
  auto hole = excluded.begin();
  for (Iova at = range.first; at < range.end;) {
    Iova next = range.end;
    const auto have = shadow_at.At(at, next);
    const auto want = reference_at.At(at, next);
    const auto was = earlier_at.At(at, next);
    while (hole != excluded.end() && hole->end <= at) ++hole;
    bool skip = false;
    if (hole != excluded.end()) {
      skip = hole->first <= at;
      next = std::min(next, skip ? hole->end : hole->first);
    }
    if (!skip && want == was && (have.access.any() || want.access.any())) {
      const uint64_t pages = (next - at) >> kPageShift;
      out.compared_pages += pages;
      if (!(have == want)) out.differing_pages += pages;
    }
    at = next;
  }
  return out;
}

}  // namespace viommu
