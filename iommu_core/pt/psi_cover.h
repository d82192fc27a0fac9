// From a range of pages to the invalidation that covers it.
#ifndef VIOMMU_IOMMU_CORE_PT_PSI_COVER_H_
#define VIOMMU_IOMMU_CORE_PT_PSI_COVER_H_

#include <cstdint>
#include <vector>

#include "iommu_core/base/types.h"
#include "iommu_core/vtd/capability.h"
#include "iommu_core/vtd/inv_descriptor.h"

namespace viommu {

inline constexpr int kAddressMaskAll = 52;

// The smallest naturally aligned power of two of pages that covers [first_pfn, first_pfn + pages):
// Linux calculate_psi_aligned_address. kAddressMaskAll if none short of everything does. pages
// >= 1.
int AddressMaskOf(uint64_t first_pfn, uint64_t pages);

// The one descriptor Linux sends for `range` of `did` (cache.c): page-selective, or
// domain-selective where CAP.PSI is 0 or the mask exceeds CAP.MAMV. Drains are set where CAP says
// so.
vtd::IotlbInvalidate InvalidationFor(IovaRange range, DomainId did, bool leaf_hint,
                                     const vtd::Capabilities& caps);
vtd::IotlbInvalidate DomainInvalidation(DomainId did, const vtd::Capabilities& caps);

// The fewest naturally aligned pieces that cover exactly `range` and no neighbour, each at most
// 2^max_mask pages (AMD amd_iommu_domain_flush_pages does this under NpCache). `range`
// page-aligned.
std::vector<IovaRange> ExactPieces(IovaRange range, int max_mask);

}  // namespace viommu

#endif  // VIOMMU_IOMMU_CORE_PT_PSI_COVER_H_
