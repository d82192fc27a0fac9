// The host's IOMMU as the hypervisor programs it: root and context tables in host memory, its
// translation with caches, and the invalidations submitted to its queue.
#ifndef VIOMMU_IOMMU_CORE_SHADOW_PHYSICAL_UNIT_H_
#define VIOMMU_IOMMU_CORE_SHADOW_PHYSICAL_UNIT_H_

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "iommu_core/base/sync_cost.h"
#include "iommu_core/base/types.h"
#include "iommu_core/hw/translator.h"
#include "iommu_core/mem/host_memory.h"
#include "iommu_core/pt/walker.h"
#include "iommu_core/vtd/inv_descriptor.h"
#include "iommu_core/vtd/root_context.h"

namespace viommu {

// A device's own translation cache (ATS). Direct-mapped; its size is a model choice.
class DeviceTlb {
 public:
  struct Entry {
    PhysAddr host_page;
    Access access;
  };
  std::optional<Entry> Find(Iova iova) const {
    const Slot& slot = slots_[IndexOf(iova)];
    if (!slot.valid || slot.page != iova.value() >> kPageShift) return std::nullopt;
    return slot.entry;
  }
  void Insert(Iova iova, Entry entry) {
    slots_[IndexOf(iova)] = {true, iova.value() >> kPageShift, entry};
  }
  void Drop(IovaRange range) {
    for (Slot& slot : slots_) {
      if (range.Contains(Iova(slot.page << kPageShift))) slot.valid = false;
    }
  }
  void DropAll() { slots_ = {}; }

 private:
  struct Slot {
    bool valid = false;
    uint64_t page = 0;
    Entry entry;
  };
  static size_t IndexOf(Iova iova) { return (iova.value() >> kPageShift) % 64; }

  std::array<Slot, 64> slots_{};
};

// Not thread-safe. It does not run in caching mode: what was not present is not cached, so setting
// an entry that was zero needs no invalidation (VT-d 6.1).
class PhysicalUnit {
 public:
  static WalkRules Rules();
  // `memory` outlives the unit.
  static absl::StatusOr<std::unique_ptr<PhysicalUnit>> Create(HostMemory& memory,
                                                              uint32_t iotlb_entries);

  // Points `sid` at the tables of a host domain. Replaces what was there and tells the caches.
  absl::Status SetContext(SourceId sid, PhysAddr table, int levels, DomainId host_domain,
                          bool device_tlb, SyncCost& cost);
  // Blocks the device.
  void ClearContext(SourceId sid, SyncCost& cost);

  void InvalidateRange(DomainId host_domain, IovaRange range, SyncCost& cost);
  void InvalidateDomain(DomainId host_domain, SyncCost& cost);

  Translator& translator() { return translator_; }
  const Translator& translator() const { return translator_; }
  PhysAddr root_table() const { return root_; }

 private:
  PhysicalUnit(HostMemory& memory, uint32_t iotlb_entries, PhysAddr root);
  void Submit(const vtd::Descriptor& descriptor, SyncCost& cost);
  void Replace(SourceId sid, PhysAddr slot, const vtd::ContextEntry& entry, SyncCost& cost);

  HostMemory& memory_;
  const PhysAddr root_;
  Translator translator_;
  std::array<std::optional<PhysAddr>, 256> context_tables_;  // by bus
};

}  // namespace viommu

#endif  // VIOMMU_IOMMU_CORE_SHADOW_PHYSICAL_UNIT_H_
