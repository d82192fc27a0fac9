// Bit fields by position, as the VT-d specification prints them: Bits<hi, lo>.
#ifndef VIOMMU_IOMMU_CORE_BASE_BITS_H_
#define VIOMMU_IOMMU_CORE_BASE_BITS_H_

#include <cassert>
#include <cstdint>

namespace viommu {

// Example: using DomainIdField = Bits<23, 8>;  DomainIdField::Get(hi);  DomainIdField::Set(hi, 7).
template <int kHi, int kLo>
struct Bits {
  static_assert(kHi >= kLo && kHi < 64 && kLo >= 0);
  static constexpr int kWidth = kHi - kLo + 1;
  static constexpr uint64_t kMax = kWidth == 64 ? ~uint64_t{0} : (uint64_t{1} << kWidth) - 1;
  static constexpr uint64_t kMask = kMax << kLo;

  static constexpr uint64_t Get(uint64_t word) { return (word >> kLo) & kMax; }
  static constexpr uint64_t Make(uint64_t value) {
    assert(value <= kMax);
    return value << kLo;
  }
  static constexpr uint64_t Set(uint64_t word, uint64_t value) {
    return (word & ~kMask) | Make(value);
  }
};

template <int kBit>
using Bit = Bits<kBit, kBit>;

// A mask of bits [hi:lo] whose ends are only known at run time; empty when hi < lo.
constexpr uint64_t BitMask(int hi, int lo) {
  if (hi < lo) return 0;
  const int width = hi - lo + 1;
  return (width >= 64 ? ~uint64_t{0} : (uint64_t{1} << width) - 1) << lo;
}

}  // namespace viommu

#endif  // VIOMMU_IOMMU_CORE_BASE_BITS_H_
