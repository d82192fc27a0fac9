// A strong integer: an address or id that never converts to another kind by accident.
#ifndef VIOMMU_IOMMU_CORE_BASE_STRONG_INT_H_
#define VIOMMU_IOMMU_CORE_BASE_STRONG_INT_H_

#include <compare>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <utility>

namespace viommu {

// `Tag` names the kind. Only "kind plus or minus a size" and "kind minus kind gives a size" are
// defined, which is all that addresses need; ids use neither.
template <typename Tag, typename Rep>
class StrongInt {
 public:
  using Representation = Rep;

  constexpr StrongInt() = default;
  constexpr explicit StrongInt(Rep value) : value_(value) {}

  constexpr Rep value() const { return value_; }

  friend constexpr auto operator<=>(StrongInt, StrongInt) = default;
  friend constexpr StrongInt operator+(StrongInt a, Rep size) {
    return StrongInt(static_cast<Rep>(a.value_ + size));
  }
  friend constexpr StrongInt operator-(StrongInt a, Rep size) {
    return StrongInt(static_cast<Rep>(a.value_ - size));
  }
  friend constexpr Rep operator-(StrongInt a, StrongInt b) {
    return static_cast<Rep>(a.value_ - b.value_);
  }
  constexpr StrongInt& operator+=(Rep size) {
    value_ = static_cast<Rep>(value_ + size);
    return *this;
  }

  template <typename H>
  friend H AbslHashValue(H h, StrongInt v) {
    return H::combine(std::move(h), v.value_);
  }

 private:
  Rep value_ = 0;
};

}  // namespace viommu

template <typename Tag, typename Rep>
struct std::hash<viommu::StrongInt<Tag, Rep>> {
  std::size_t operator()(viommu::StrongInt<Tag, Rep> v) const noexcept {
    return std::hash<Rep>()(v.value());
  }
};

#endif  // VIOMMU_IOMMU_CORE_BASE_STRONG_INT_H_
