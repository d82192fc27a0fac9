// The strategy `nested`: no shadow. The hardware walks the guest's tables and, for each address it
// finds there, a second table from guest-physical to host-physical (iommufd nesting).
#ifndef VIOMMU_IOMMU_CORE_SHADOW_NESTED_UNIT_H_
#define VIOMMU_IOMMU_CORE_SHADOW_NESTED_UNIT_H_

#include <memory>

#include "absl/status/statusor.h"
#include "iommu_core/hw/dma_container.h"
#include "iommu_core/hw/translator.h"
#include "iommu_core/mem/physical_memory.h"
#include "iommu_core/shadow/host_map.h"
#include "iommu_core/shadow/shadow_table.h"

namespace viommu {

// Guest memory as the nested walk reaches it: every guest-physical address goes through the second
// table first, so nothing outside the guest's RAM can be read.
class NestedMemory final : public PhysicalMemory {
 public:
  NestedMemory(PhysicalMemory& guest, const HostMap& map, const ShadowTable& second)
      : guest_(guest), map_(map), second_(second) {}

  std::optional<uint64_t> Read64(PhysAddr address) const override;
  std::optional<uint32_t> Read32(PhysAddr address) const override;
  bool ReadBytes(PhysAddr address, std::span<std::byte> out) const override;
  const uint64_t* PageInPlace(PhysAddr page) const override;
  // The hardware writes no guest table (no A/D bits in legacy mode).
  bool Write64(PhysAddr, uint64_t) override { return false; }
  bool Write32(PhysAddr, uint32_t) override { return false; }
  bool WriteBytes(PhysAddr, std::span<const std::byte>) override { return false; }

 private:
  // Where the guest's byte really is; nullopt: not reachable.
  std::optional<PhysAddr> Reach(PhysAddr guest_pa) const;

  PhysicalMemory& guest_;
  const HostMap& map_;
  const ShadowTable& second_;
};

class NestedUnit {
 public:
  // Pins all of the guest's RAM, [0, ram_bytes), in one map call.
  static absl::StatusOr<std::unique_ptr<NestedUnit>> Create(
      PhysicalMemory& guest, uint64_t ram_bytes, const WalkRules& guest_rules,
      uint32_t iotlb_entries, const HostMap& map, TablePool& pool, PinBudget& pins,
      uint64_t dma_entry_limit);

  Translator& translator() { return translator_; }
  const Translator& translator() const { return translator_; }
  const NestedMemory& memory() const { return memory_; }
  const ShadowTable& second() const { return *second_; }
  const DmaAccount& account() const { return container_->account(); }

 private:
  NestedUnit(PhysicalMemory& guest, const WalkRules& guest_rules, uint32_t iotlb_entries,
             const HostMap& map, std::unique_ptr<ShadowTable> second,
             std::unique_ptr<DmaContainer> container)
      : second_(std::move(second)),
        container_(std::move(container)),
        memory_(guest, map, *second_),
        translator_({.rules = guest_rules, .iotlb_entries = iotlb_entries}, memory_) {}

  const std::unique_ptr<ShadowTable> second_;
  const std::unique_ptr<DmaContainer> container_;
  NestedMemory memory_;
  Translator translator_;
};

}  // namespace viommu

#endif  // VIOMMU_IOMMU_CORE_SHADOW_NESTED_UNIT_H_
