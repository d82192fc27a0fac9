#include "iommu_core/shadow/physical_unit.h"

#include <algorithm>

#include "iommu_core/shadow/host_map.h"

namespace viommu {

WalkRules PhysicalUnit::Rules() {
  vtd::Capabilities caps = vtd::QemuCapabilities(48, /*caching_mode=*/false);
  caps.ecap |= vtd::ecap::Dt::Make(1);
  return {caps, HostMap::kHostWidth};
}

absl::StatusOr<std::unique_ptr<PhysicalUnit>> PhysicalUnit::Create(HostMemory& memory,
                                                                   uint32_t iotlb_entries) {
  auto root = memory.Allocate();
  if (!root.ok()) return root.status();
  return std::unique_ptr<PhysicalUnit>(new PhysicalUnit(memory, iotlb_entries, *root));
}

PhysicalUnit::PhysicalUnit(HostMemory& memory, uint32_t iotlb_entries, PhysAddr root)
    : memory_(memory),
      root_(root),
      translator_({.rules = Rules(), .iotlb_entries = iotlb_entries}, memory) {
  translator_.RegistersChanged({root_, /*translation_enabled=*/true}).IgnoreError();
}

void PhysicalUnit::Submit(const vtd::Descriptor& descriptor, SyncCost& cost) {
  const vtd::RawDescriptor raw = vtd::Encode(descriptor);
  ++cost.iotlb_invalidations;
  translator_.Execute(std::span(&raw, 1), std::span(&descriptor, 1)).IgnoreError();
}

void PhysicalUnit::InvalidateDomain(DomainId host_domain, SyncCost& cost) {
  vtd::IotlbInvalidate d;
  d.granularity = vtd::Granularity::kDomain;
  d.domain_id = host_domain;
  Submit(d, cost);
}

void PhysicalUnit::InvalidateRange(DomainId host_domain, IovaRange range, SyncCost& cost) {
  if (range.empty()) return;
  // The smallest aligned power of two that covers it (Linux calculate_psi_aligned_address).
  const uint64_t first = range.first.value() >> kPageShift;
  const uint64_t last = (range.end.value() - 1) >> kPageShift;
  const int mask = std::bit_width(first ^ last);
  if (mask > Rules().caps.max_address_mask()) {
    InvalidateDomain(host_domain, cost);
    return;
  }
  vtd::IotlbInvalidate d;
  d.granularity = vtd::Granularity::kPageOrDevice;
  d.domain_id = host_domain;
  d.address_mask = static_cast<uint8_t>(mask);
  d.address = Iova(AlignDown(range.first.value(), kPageSize << mask));
  Submit(d, cost);
}

void PhysicalUnit::Replace(SourceId sid, PhysAddr slot, const vtd::ContextEntry& entry,
                           SyncCost& cost) {
  uint64_t* words = memory_.Entries(slot);
  const vtd::ContextEntry old{words[0], words[1]};
  if (old == entry) return;
  // One 16-byte store in hardware terms; nothing walks between these two, the session is locked.
  memory_.Write64(slot + 8, entry.hi);
  memory_.Write64(slot, entry.lo);
  if (!old.present()) return;
  // 6.5.3.3: context cache of the device, then the IOTLB of the domain it leaves.
  vtd::ContextCacheInvalidate d;
  d.granularity = vtd::Granularity::kPageOrDevice;
  d.domain_id = old.domain_id();
  d.source_id = sid;
  Submit(d, cost);
  InvalidateDomain(old.domain_id(), cost);
}

absl::Status PhysicalUnit::SetContext(SourceId sid, PhysAddr table, int levels,
                                      DomainId host_domain, bool device_tlb, SyncCost& cost) {
  auto& context_table = context_tables_[static_cast<size_t>(vtd::RootIndex(sid))];
  if (!context_table) {
    auto frame = memory_.Allocate();
    if (!frame.ok()) return frame.status();
    context_table = *frame;
    memory_.Write64(root_ + 16u * static_cast<uint64_t>(vtd::RootIndex(sid)),
                    vtd::RootEntry::Make(*frame).lo);
  }
  const auto type =
      device_tlb ? vtd::TranslationType::kWithDeviceTlb : vtd::TranslationType::kUntranslatedOnly;
  Replace(sid, *context_table + 16u * static_cast<uint64_t>(vtd::ContextIndex(sid)),
          vtd::ContextEntry::Make(table, levels, host_domain, type), cost);
  return absl::OkStatus();
}

void PhysicalUnit::ClearContext(SourceId sid, SyncCost& cost) {
  const auto& context_table = context_tables_[static_cast<size_t>(vtd::RootIndex(sid))];
  if (!context_table) return;
  Replace(sid, *context_table + 16u * static_cast<uint64_t>(vtd::ContextIndex(sid)), {}, cost);
}

}  // namespace viommu
