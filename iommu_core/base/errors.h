// Every error the core reports, one named function each, so that wording and code live in one
// place. Codes follow Abseil's rule: Unavailable = the same call may work later; FailedPrecondition
// = the state must be mended first; InvalidArgument = no state makes this call right.
#ifndef VIOMMU_IOMMU_CORE_BASE_ERRORS_H_
#define VIOMMU_IOMMU_CORE_BASE_ERRORS_H_

#include <cstdint>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "iommu_core/base/types.h"

namespace viommu::errors {

// Guest memory or a table is not where it was said to be.
absl::Status NotRam(PhysAddr address);
// An argument that no state makes right.
absl::Status Invalid(absl::string_view what);
// Range not page-aligned, empty, or beyond the address width.
absl::Status BadRange(IovaRange range, absl::string_view why);
// A mapping already covers part of the range (VFIO: EEXIST).
absl::Status AlreadyMapped(IovaRange range);
// Nothing is mapped there.
absl::Status NotMapped(IovaRange range);
// An unmap would cut a mapping in two (VFIO type1 v2: EINVAL).
absl::Status WouldSplit(IovaRange range);
// The DMA container has no entry left (VFIO: ENOSPC).
absl::Status EntryLimit(uint64_t limit);
// The pinned-memory limit is reached (VFIO: ENOMEM).
absl::Status PinLimit(uint64_t limit_bytes);
// A named cap was reached; nothing was changed.
absl::Status LimitReached(absl::string_view flag, uint64_t limit);
// No IOVA of that size is free below the device's limit.
absl::Status IovaExhausted(uint64_t size_bytes);
// No frame is free for a table page.
absl::Status OutOfFrames();
// A walk needed more work than its bound; what was done stays valid, the rest was refused.
absl::Status WorkBound(uint64_t bound);
// No such device, domain or session.
absl::Status UnknownDevice(SourceId source_id);
absl::Status UnknownDomain(uint32_t domain);
// The invalidation queue stopped on a bad descriptor (FSTS.IQE).
absl::Status QueueError(uint32_t iqei);
// An invalidation did not complete in time; what it covers is not complete.
absl::Status InvalidationTimeout();

}  // namespace viommu::errors

#endif  // VIOMMU_IOMMU_CORE_BASE_ERRORS_H_
