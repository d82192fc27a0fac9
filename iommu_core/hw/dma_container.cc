#include "iommu_core/hw/dma_container.h"

#include <algorithm>

#include "iommu_core/base/errors.h"

namespace viommu {

absl::Status PinBudget::Charge(uint64_t page_count) {
  return TryCharge(page_count) ? absl::OkStatus() : errors::PinLimit(limit_bytes_);
}

absl::Status DmaAccount::Map(uint64_t page_count) {
  const bool full = entries_ >= entry_limit_;
  if (TryMap(page_count)) return absl::OkStatus();
  return full ? errors::EntryLimit(entry_limit_) : errors::PinLimit(pins_.limit_bytes());
}

void DmaAccount::Unmap(uint64_t entries, uint64_t page_count) {
  ++unmap_calls_;
  entries_ -= entries;
  pinned_pages_ -= page_count;
  pins_.Release(page_count);
}

absl::Status DmaContainer::Map(IovaRange range, GuestPhys guest_pa, Access access) {
  if (range.empty() || !access.any() ||
      !IsAligned(range.first.value() | range.end.value() | guest_pa.value(), kPageSize)) {
    return errors::BadRange(range, "not whole pages, empty, or no access");
  }
  const auto next = mappings_.upper_bound(range.first);
  if (next != mappings_.end() && next->first < range.end) return errors::AlreadyMapped(range);
  if (next != mappings_.begin()) {
    const auto before = std::prev(next);
    if (before->first + before->second.size_bytes > range.first) {
      return errors::AlreadyMapped(range);
    }
  }
  if (absl::Status status = account_.Map(range.size_bytes() >> kPageShift); !status.ok()) {
    return status;
  }
  mappings_.emplace_hint(next, range.first, Mapping{range.size_bytes(), guest_pa, access});
  return absl::OkStatus();
}

absl::StatusOr<DmaContainer::Unmapped> DmaContainer::Unmap(IovaRange range) {
  Unmapped out;
  const auto first = FirstOverlap(range);
  auto it = first;
  for (; it != mappings_.end() && it->first < range.end; ++it) {
    if (it->first < range.first || it->first + it->second.size_bytes > range.end) {
      return errors::WouldSplit(range);
    }
    ++out.entries;
    out.page_count += it->second.size_bytes >> kPageShift;
  }
  mappings_.erase(first, it);
  account_.Unmap(out.entries, out.page_count);
  return out;
}

}  // namespace viommu
