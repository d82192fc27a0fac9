#include "iommu_core/base/errors.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace viommu::errors {
namespace {

std::string Text(IovaRange range) {
  return absl::StrFormat("iova [0x%x, 0x%x)", range.first.value(), range.end.value());
}

}  // namespace

absl::Status NotRam(PhysAddr address) {
  return absl::OutOfRangeError(absl::StrFormat("0x%x is not memory", address.value()));
}
absl::Status Invalid(absl::string_view what) { return absl::InvalidArgumentError(what); }
absl::Status BadRange(IovaRange range, absl::string_view why) {
  return absl::InvalidArgumentError(absl::StrCat(Text(range), ": ", why));
}
absl::Status AlreadyMapped(IovaRange range) {
  return absl::AlreadyExistsError(absl::StrCat(Text(range), " overlaps a mapping"));
}
absl::Status NotMapped(IovaRange range) {
  return absl::NotFoundError(absl::StrCat(Text(range), " is not mapped"));
}
absl::Status WouldSplit(IovaRange range) {
  return absl::InvalidArgumentError(absl::StrCat(Text(range), " would cut a mapping in two"));
}
absl::Status EntryLimit(uint64_t limit) {
  return absl::ResourceExhaustedError(
      absl::StrCat("no space left: the DMA container holds its limit of ", limit,
                   " entries (--dma_entry_limit)"));
}
absl::Status PinLimit(uint64_t limit_bytes) {
  return absl::ResourceExhaustedError(absl::StrCat(
      "cannot allocate memory: pinned bytes would exceed ", limit_bytes, " (--pin_limit_bytes)"));
}
absl::Status LimitReached(absl::string_view flag, uint64_t limit) {
  return absl::ResourceExhaustedError(absl::StrCat("limit of ", limit, " reached (", flag, ")"));
}
absl::Status IovaExhausted(uint64_t size_bytes) {
  return absl::ResourceExhaustedError(absl::StrCat("no free IOVA range of ", size_bytes, " bytes"));
}
absl::Status OutOfFrames() {
  return absl::ResourceExhaustedError("no free frame for a table page (raise --ram_bytes)");
}
absl::Status WorkBound(uint64_t bound) {
  return absl::ResourceExhaustedError(
      absl::StrCat("table walk stopped at its bound of ", bound, " entries"));
}
absl::Status UnknownDevice(SourceId source_id) {
  return absl::NotFoundError(absl::StrFormat("no device %02x:%02x.%x", source_id.value() >> 8,
                                             (source_id.value() >> 3) & 0x1f,
                                             source_id.value() & 7));
}
absl::Status UnknownDomain(uint32_t domain) {
  return absl::NotFoundError(absl::StrCat("no domain ", domain));
}
absl::Status QueueError(uint32_t iqei) {
  return absl::FailedPreconditionError(
      absl::StrCat("invalidation queue error, IQEI ", iqei, ": clear FSTS.IQE to resume"));
}
absl::Status InvalidationTimeout() {
  return absl::DeadlineExceededError("the invalidation did not complete in time");
}

}  // namespace viommu::errors
