// How the hypervisor reads a guest's second-stage entry. Written apart from pt/walker, which is the
// oracle that the shadow is compared with.
#ifndef VIOMMU_IOMMU_CORE_SHADOW_GUEST_PTE_H_
#define VIOMMU_IOMMU_CORE_SHADOW_GUEST_PTE_H_

#include <array>
#include <cstdint>

#include "iommu_core/base/bits.h"
#include "iommu_core/base/types.h"
#include "iommu_core/vtd/capability.h"
#include "iommu_core/vtd/second_stage_pte.h"

namespace viommu {

// What an entry means for the shadow.
enum class EntryKind : uint8_t {
  kAbsent,  // R = W = 0, whatever else is set; or present with a reserved bit, on which a request
            // would fault: neither may leave anything mapped
  kTable,
  kLeaf,
};

// Permissions as the low two bits of an entry: R = 1, W = 2.
inline constexpr uint64_t kPermissionBits = 3;
constexpr Access ToAccess(uint64_t permissions) {
  return {(permissions & 1) != 0, (permissions & 2) != 0};
}

// VT-d 9.9, for one unit.
class GuestPteRules {
 public:
  GuestPteRules(vtd::Capabilities caps, int haw_bits)
      : table_mask_(BitMask(haw_bits - 1, kPageShift)) {
    const uint64_t always = BitMask(51, haw_bits) | (caps.device_tlb() ? 0 : uint64_t{1} << 62);
    const uint64_t snoop = uint64_t{1} << 11;
    for (int level = 1; level <= kMaxLevel; ++level) {
      table_reserved_[static_cast<size_t>(level)] = always | snoop;
      const bool allowed =
          level == 1 || (level == 2 && caps.large_2m()) || (level == 3 && caps.large_1g());
      leaf_reserved_[static_cast<size_t>(level)] =
          !allowed ? ~uint64_t{0}
                   : always | (caps.snoop_control() ? 0 : snoop) |
                         BitMask(vtd::LevelShift(level) - 1, kPageShift);
    }
  }

  EntryKind Classify(uint64_t raw, int level) const {
    if ((raw & kPermissionBits) == 0) return EntryKind::kAbsent;
    if (level == 1 || (raw & kPageSizeBit) != 0) {
      return (raw & leaf_reserved_[static_cast<size_t>(level)]) == 0 ? EntryKind::kLeaf
                                                                     : EntryKind::kAbsent;
    }
    return (raw & table_reserved_[static_cast<size_t>(level)]) == 0 ? EntryKind::kTable
                                                                    : EntryKind::kAbsent;
  }
  // Of a kTable or kLeaf entry. A leaf's low address bits are zero: Classify checked it.
  GuestPhys AddressOf(uint64_t raw) const { return GuestPhys(raw & table_mask_); }
  // For those who read many level 1 entries.
  uint64_t address_mask() const { return table_mask_; }
  uint64_t reserved_4k() const { return leaf_reserved_[1]; }

 private:
  static constexpr int kMaxLevel = 5;
  static constexpr uint64_t kPageSizeBit = 1 << 7;

  const uint64_t table_mask_;
  std::array<uint64_t, kMaxLevel + 1> table_reserved_{};
  std::array<uint64_t, kMaxLevel + 1> leaf_reserved_{};
};

}  // namespace viommu

#endif  // VIOMMU_IOMMU_CORE_SHADOW_GUEST_PTE_H_
