#include "iommu_core/pt/psi_cover.h"

#include <algorithm>
#include <bit>

namespace viommu {

int AddressMaskOf(uint64_t first_pfn, uint64_t pages) {
  const int size_order = OrderOf(pages);
  if (IsAligned(first_pfn, uint64_t{1} << size_order)) return size_order;
  // Every bit in which the first and the last page differ must be masked.
  const uint64_t last_pfn = first_pfn + pages - 1;
  const uint64_t differ = first_pfn ^ last_pfn;
  // ... and the bit above must be one in which they agree, at or above the size's own order.
  const int mask = std::max(size_order, static_cast<int>(std::bit_width(differ)));
  return mask >= kAddressMaskAll ? kAddressMaskAll : mask;
}

vtd::IotlbInvalidate DomainInvalidation(DomainId did, const vtd::Capabilities& caps) {
  vtd::IotlbInvalidate d;
  d.granularity = vtd::Granularity::kDomain;
  d.domain_id = did;
  d.drain_reads = vtd::cap::Drd::Get(caps.cap) != 0;
  d.drain_writes = vtd::cap::Dwd::Get(caps.cap) != 0;
  return d;
}

vtd::IotlbInvalidate InvalidationFor(IovaRange range, DomainId did, bool leaf_hint,
                                     const vtd::Capabilities& caps) {
  const uint64_t first_pfn = range.first.value() >> kPageShift;
  const uint64_t pages = AlignUp(range.size_bytes(), kPageSize) >> kPageShift;
  const int mask = AddressMaskOf(first_pfn, pages);
  vtd::IotlbInvalidate d = DomainInvalidation(did, caps);
  if (!caps.page_selective() || mask > caps.max_address_mask()) return d;
  d.granularity = vtd::Granularity::kPageOrDevice;
  d.address_mask = static_cast<uint8_t>(mask);
  d.leaf_hint = leaf_hint;
  d.address = Iova(AlignDown(range.first.value(), kPageSize << mask));
  return d;
}

std::vector<IovaRange> ExactPieces(IovaRange range, int max_mask) {
  std::vector<IovaRange> pieces;
  uint64_t at = range.first.value() >> kPageShift;
  const uint64_t end = range.end.value() >> kPageShift;
  while (at < end) {
    const int by_alignment = at == 0 ? 63 : std::countr_zero(at);
    const int by_size = static_cast<int>(std::bit_width(end - at)) - 1;
    const int order = std::min({by_alignment, by_size, max_mask});
    pieces.push_back(MakeRange(Iova(at << kPageShift), kPageSize << order));
    at += uint64_t{1} << order;
  }
  return pieces;
}

}  // namespace viommu
