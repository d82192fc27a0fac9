// Where guest-physical memory lies in host-physical memory.
#ifndef VIOMMU_IOMMU_CORE_SHADOW_HOST_MAP_H_
#define VIOMMU_IOMMU_CORE_SHADOW_HOST_MAP_H_

#include <cstdint>

#include "iommu_core/base/bits.h"
#include "iommu_core/base/types.h"

namespace viommu {

// The inverse of an odd number modulo 2^64, by Newton: each step doubles the bits that are right.
constexpr uint64_t InverseOfOdd(uint64_t a) {
  uint64_t x = a;
  for (int i = 0; i < 6; ++i) x *= 2 - a * x;
  return x;
}

// A bijection of the guest's address space onto [kBase, 2 * kBase): granules of the host's page
// size are scattered, addresses within one stay together. So two guest pages that adjoin do not
// adjoin in the host unless one host page holds both, and a guest superpage larger than the granule
// has no host superpage. The permutation itself is a model choice (an odd multiplier, then an XOR).
class HostMap {
 public:
  static constexpr int kHostWidth = 52;                               // of a host-physical address
  static constexpr uint64_t kBase = uint64_t{1} << (kHostWidth - 1);  // above all table memory

  HostMap(int guest_width_bits, int granule_shift)
      : shift_(granule_shift), mask_(BitMask(guest_width_bits - granule_shift - 1, 0)) {}

  HostPhys ToHost(GuestPhys a) const {
    const uint64_t granule = ((a.value() >> shift_) * kMultiplier ^ kFlip) & mask_;
    return HostPhys(kBase | granule << shift_ | Offset(a.value()));
  }
  GuestPhys ToGuest(HostPhys a) const {
    const uint64_t granule = (((a.value() ^ kBase) >> shift_ ^ kFlip) * kInverse) & mask_;
    return GuestPhys(granule << shift_ | Offset(a.value()));
  }
  int granule_shift() const { return shift_; }

 private:
  static constexpr uint64_t kMultiplier = 0x9e3779b97f4a7c15;
  static constexpr uint64_t kFlip = 0x2545f4914f6cdd1d;
  static constexpr uint64_t kInverse = InverseOfOdd(kMultiplier);
  static_assert(kMultiplier * kInverse == 1);

  uint64_t Offset(uint64_t a) const { return a & ((uint64_t{1} << shift_) - 1); }

  int shift_;
  uint64_t mask_;
};

}  // namespace viommu

#endif  // VIOMMU_IOMMU_CORE_SHADOW_HOST_MAP_H_
