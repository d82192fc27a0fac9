#include "iommu_core/pt/leaf_cursor.h"

namespace viommu {

bool LeafCursor::Find(Iova iova, uint64_t span) {
  span_ = ~uint64_t{0};
  // The count first: a table unlinked after it is found is noticed at the next use.
  const uint64_t unlinks = table_->unlinks();
  const std::optional<PhysAddr> leaf = table_->LeafTableOf(iova);
  if (!leaf) return false;
  const uint64_t* entries = table_->memory().PageInPlace(*leaf);
  if (entries == nullptr) return false;
  // PageInPlace is const for those who only compare; the table is its owner's to write.
  leaf_ = const_cast<uint64_t*>(entries);
  leaf_at_ = *leaf;
  unlinks_ = unlinks;
  span_ = span;
  return true;
}

}  // namespace viommu
