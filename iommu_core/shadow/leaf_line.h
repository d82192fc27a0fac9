// What a line of guest 4K entries means for the physical table, eight entries at once.
#ifndef VIOMMU_IOMMU_CORE_SHADOW_LEAF_LINE_H_
#define VIOMMU_IOMMU_CORE_SHADOW_LEAF_LINE_H_

#include <cstdint>

#include "iommu_core/shadow/entry_line.h"
#include "iommu_core/shadow/guest_pte.h"
#include "iommu_core/shadow/host_map.h"

namespace viommu {

// How the entries of one guest table of level 1 are read: without a branch, to the same effect as
// GuestPteRules::Classify and AddressOf.
struct LeafRules {
  LeafRules(const GuestPteRules& rules, const HostMap& host_map, uint64_t permissions_above)
      : reserved(rules.reserved_4k()),
        address(rules.address_mask()),
        permissions(permissions_above),
        map(host_map) {}

  // What an entry lets through: address, R and W; 0: nothing.
  uint64_t Effective(uint64_t raw) const {
    const bool leaf = ((raw & permissions) != 0) & ((raw & reserved) == 0);
    return raw & (address | permissions) & (uint64_t{0} - static_cast<uint64_t>(leaf));
  }
  // What the physical table holds for that; 0 for 0.
  uint64_t HostEntry(uint64_t effective) const {
    const uint64_t entry =
        map.ToHost(GuestPhys(effective & ~kPermissionBits)).value() | (effective & kPermissionBits);
    return entry & (uint64_t{0} - static_cast<uint64_t>(effective != 0));
  }

  uint64_t reserved;
  uint64_t address;
  uint64_t permissions;  // AND of R and W above
  HostMap map;
};

// Four masks of a line's entries, bit n for entry n, in one word.
class LeafMasks {
 public:
  explicit LeafMasks(uint64_t word) : word_(word) {}

  // The guest's entry is not the one seen last.
  uint32_t differing() const { return word_ & 0xff; }
  // It leads somewhere; it did, by what was seen last.
  uint32_t is() const { return word_ >> 8 & 0xff; }
  uint32_t was() const { return word_ >> 16 & 0xff; }
  // What the physical table holds is to change.
  uint32_t changed() const { return word_ >> 24 & 0xff; }

 private:
  uint64_t word_;
};

// All of a line; takes `now` over into `last`. `host`: the entries of the physical table.
LeafMasks ReadLeafLine(const LeafRules& rules, const EntryLine& now, uint64_t* last,
                       EntryLine& host);

}  // namespace viommu

#endif  // VIOMMU_IOMMU_CORE_SHADOW_LEAF_LINE_H_
