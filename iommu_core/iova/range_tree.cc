#include "iommu_core/iova/range_tree.h"

#include <algorithm>
#include <bit>

namespace viommu {

namespace {
constexpr uint64_t kTop = ~uint64_t{0};
}  // namespace

RangeTree::RangeTree(uint64_t start_pfn)
    : start_pfn_(start_pfn), cached32_(kTop), cached_(kTop), max32_alloc_size_(kPfn32End) {}

std::optional<uint64_t> RangeTree::Search(uint64_t pages, uint64_t from_pfn,
                                          uint64_t floor_pfn) const {
  const uint64_t mask = ~(std::bit_ceil(pages) - 1);
  uint64_t high = from_pfn;
  auto it = ranges_.lower_bound(high);
  for (;;) {
    const bool below = it != ranges_.begin();
    if (below) --it;
    const uint64_t gap_first = std::max(floor_pfn, below ? it->second : start_pfn_);
    if (high >= pages) {
      const uint64_t candidate = (high - pages) & mask;
      if (candidate >= gap_first && candidate + pages <= high) return candidate;
    }
    if (!below || it->first <= floor_pfn) return std::nullopt;
    high = std::min(high, it->first);
  }
}

std::optional<uint64_t> RangeTree::Allocate(uint64_t pages, uint64_t end_pfn) {
  const bool in32 = end_pfn <= kPfn32End;
  if (in32 && pages >= max32_alloc_size_) return std::nullopt;
  uint64_t& cached = CachedFor(end_pfn);
  const uint64_t from = std::min(cached, end_pfn);
  std::optional<uint64_t> found = Search(pages, from, start_pfn_);
  // One retry over the part above the cached point.
  if (!found && from < end_pfn) found = Search(pages, end_pfn, from);
  if (!found) {
    if (in32) max32_alloc_size_ = pages;
    return std::nullopt;
  }
  ranges_[*found] = *found + pages;
  // __cached_rbnode_insert_update: the new range is where the next search starts.
  (*found < kPfn32End ? cached32_ : cached_) = *found;
  return found;
}

bool RangeTree::Reserve(uint64_t first_pfn, uint64_t end_pfn) {
  const auto next = ranges_.lower_bound(first_pfn);
  if (next != ranges_.end() && next->first < end_pfn) return false;
  if (next != ranges_.begin() && std::prev(next)->second > first_pfn) return false;
  ranges_[first_pfn] = end_pfn;
  return true;
}

bool RangeTree::Free(uint64_t first_pfn) {
  const auto it = ranges_.find(first_pfn);
  if (it == ranges_.end()) return false;
  // __cached_rbnode_delete_update: what comes free at or above the cached point moves it up.
  if (first_pfn < kPfn32End) {
    max32_alloc_size_ = kPfn32End;
    if (first_pfn >= cached32_) cached32_ = NextFirst(it);
  }
  if (first_pfn >= cached_) cached_ = NextFirst(it);
  ranges_.erase(it);
  return true;
}

uint64_t RangeTree::NextFirst(Map::const_iterator it) const {
  const auto next = std::next(it);
  return next == ranges_.end() ? kTop : next->first;
}

}  // namespace viommu
