#include "iommu_core/shadow/range_set.h"

#include <algorithm>
#include <iterator>

namespace viommu {

void RangeSet::Add(IovaRange range) {
  if (range.empty()) return;
  const auto absorb = [&](std::map<Iova, Iova>::iterator it) {
    range.first = std::min(range.first, it->first);
    range.end = std::max(range.end, it->second);
    bytes_ -= it->second - it->first;
    return ranges_.erase(it);
  };
  auto next = ranges_.upper_bound(range.first);
  if (next != ranges_.begin()) {
    const auto before = std::prev(next);
    if (before->second >= range.first || ranges_.size() >= kMaxRanges) next = absorb(before);
  }
  while (next != ranges_.end() && next->first <= range.end) next = absorb(next);
  if (ranges_.size() >= kMaxRanges) absorb(next);  // lower than all others
  ranges_[range.first] = range.end;
  bytes_ += range.size_bytes();
}

void RangeSet::Erase(IovaRange range) {
  if (ranges_.empty() || range.empty()) return;
  auto it = ranges_.upper_bound(range.first);
  if (it != ranges_.begin() && std::prev(it)->second > range.first) --it;
  while (it != ranges_.end() && it->first < range.end) {
    const IovaRange old{it->first, it->second};
    it = ranges_.erase(it);
    bytes_ -= old.size_bytes();
    if (old.first < range.first) {
      ranges_[old.first] = range.first;
      bytes_ += range.first - old.first;
    }
    if (range.end < old.end) {
      ranges_[range.end] = old.end;
      bytes_ += old.end - range.end;
    }
  }
}

bool RangeSet::Contains(Iova iova) const {
  const auto it = ranges_.upper_bound(iova);
  return it != ranges_.begin() && std::prev(it)->second > iova;
}

std::vector<IovaRange> RangeSet::Within(IovaRange range) const {
  std::vector<IovaRange> out;
  auto it = ranges_.upper_bound(range.first);
  if (it != ranges_.begin()) --it;
  for (; it != ranges_.end() && it->first < range.end; ++it) {
    const IovaRange r{std::max(it->first, range.first), std::min(it->second, range.end)};
    if (!r.empty()) out.push_back(r);
  }
  return out;
}

}  // namespace viommu
