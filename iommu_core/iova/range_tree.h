// The allocated ranges of an IOVA space and where to look for the next (Linux iova.c:
// __alloc_and_insert_iova_range, cached_node, max32_alloc_size).
#ifndef VIOMMU_IOMMU_CORE_IOVA_RANGE_TREE_H_
#define VIOMMU_IOMMU_CORE_IOVA_RANGE_TREE_H_

#include <cstdint>
#include <map>
#include <optional>

namespace viommu {

// Page numbers, ranges [first, end). Not thread-safe.
class RangeTree {
 public:
  explicit RangeTree(uint64_t start_pfn);

  // Highest free range of `pages`, aligned to the next power of two, below `end_pfn`.
  std::optional<uint64_t> Allocate(uint64_t pages, uint64_t end_pfn);
  // False if part of it is taken.
  bool Reserve(uint64_t first_pfn, uint64_t end_pfn);
  // Frees the range that starts at `first_pfn`; false if none does.
  bool Free(uint64_t first_pfn);
  uint64_t ranges() const { return ranges_.size(); }

 private:
  using Map = std::map<uint64_t, uint64_t>;  // first -> end

  // First 32-bit page number that is out of reach of a 32-bit device.
  static constexpr uint64_t kPfn32End = uint64_t{1} << 20;
  // The walk starts below this: everything above it was found full. ~0: at the limit.
  uint64_t& CachedFor(uint64_t end_pfn) { return end_pfn <= kPfn32End ? cached32_ : cached_; }
  std::optional<uint64_t> Search(uint64_t pages, uint64_t from_pfn, uint64_t floor_pfn) const;
  uint64_t NextFirst(Map::const_iterator it) const;

  const uint64_t start_pfn_;
  Map ranges_;
  uint64_t cached32_;
  uint64_t cached_;
  uint64_t max32_alloc_size_;  // pages; a 32-bit request this large failed and nothing came free
};

}  // namespace viommu

#endif  // VIOMMU_IOMMU_CORE_IOVA_RANGE_TREE_H_
