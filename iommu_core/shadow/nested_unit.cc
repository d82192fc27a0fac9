#include "iommu_core/shadow/nested_unit.h"

#include <algorithm>
#include <utility>

#include "iommu_core/base/errors.h"

namespace viommu {

std::optional<PhysAddr> NestedMemory::Reach(PhysAddr guest_pa) const {
  const auto page = second_.Lookup(Iova(guest_pa.value()));
  if (!page) return std::nullopt;
  return ToPhys(map_.ToGuest(page->host)) + (guest_pa.value() & kPageMask);
}

std::optional<uint64_t> NestedMemory::Read64(PhysAddr address) const {
  const auto at = Reach(address);
  return at ? guest_.Read64(*at) : std::nullopt;
}

std::optional<uint32_t> NestedMemory::Read32(PhysAddr address) const {
  const auto at = Reach(address);
  return at ? guest_.Read32(*at) : std::nullopt;
}

bool NestedMemory::ReadBytes(PhysAddr address, std::span<std::byte> out) const {
  while (!out.empty()) {
    const size_t chunk = std::min<size_t>(out.size(), kPageSize - (address.value() & kPageMask));
    const auto at = Reach(address);
    if (!at || !guest_.ReadBytes(*at, out.first(chunk))) return false;
    out = out.subspan(chunk);
    address += chunk;
  }
  return true;
}

const uint64_t* NestedMemory::PageInPlace(PhysAddr page) const {
  const auto at = Reach(page);
  return at ? guest_.PageInPlace(*at) : nullptr;
}

absl::StatusOr<std::unique_ptr<NestedUnit>> NestedUnit::Create(
    PhysicalMemory& guest, uint64_t ram_bytes, const WalkRules& guest_rules, uint32_t iotlb_entries,
    const HostMap& map, TablePool& pool, PinBudget& pins, uint64_t dma_entry_limit) {
  if (ram_bytes == 0 || !IsAligned(ram_bytes, kPageSize)) {
    return errors::Invalid("strategy nested pins all guest memory: its size must be known");
  }
  auto second = ShadowTable::Create(pool, map);
  if (!second.ok()) return second.status();
  auto container = std::make_unique<DmaContainer>(dma_entry_limit, pins);
  const IovaRange ram{Iova(0), Iova(ram_bytes)};
  if (absl::Status s = container->Map(ram, GuestPhys(0), kReadWrite); !s.ok()) return s;
  uint64_t changed = 0;
  if (absl::Status s = (*second)->Set(ram, GuestPhys(0), kReadWrite, changed); !s.ok()) return s;
  return std::unique_ptr<NestedUnit>(new NestedUnit(guest, guest_rules, iotlb_entries, map,
                                                    *std::move(second), std::move(container)));
}

}  // namespace viommu
