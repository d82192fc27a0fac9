// The kinds of address and id that the project tells apart, and half-open ranges of them.
// Every range in this project is [first, end).
#ifndef VIOMMU_IOMMU_CORE_BASE_TYPES_H_
#define VIOMMU_IOMMU_CORE_BASE_TYPES_H_

#include <bit>
#include <cstdint>

#include "iommu_core/base/strong_int.h"

namespace viommu {

// An address as a device issues it (VT-d: input address of second-stage translation).
using Iova = StrongInt<struct IovaTag, uint64_t>;
// A guest-physical address: what a guest writes into its page tables.
using GuestPhys = StrongInt<struct GuestPhysTag, uint64_t>;
// An address in modelled host memory: what the physical IOMMU's tables hold.
using HostPhys = StrongInt<struct HostPhysTag, uint64_t>;
// An address in whatever memory an IOMMU is attached to: guest memory for the virtual unit, host
// memory for the physical one. Code that knows which of the two it is converts explicitly.
using PhysAddr = StrongInt<struct PhysAddrTag, uint64_t>;
// PCI requester id: bus 15:8, device 7:3, function 2:0 (VT-d 3.4.1).
using SourceId = StrongInt<struct SourceIdTag, uint16_t>;
// VT-d domain id (context entry bits 87:72).
using DomainId = StrongInt<struct DomainIdTag, uint16_t>;

constexpr PhysAddr ToPhys(GuestPhys a) { return PhysAddr(a.value()); }
constexpr PhysAddr ToPhys(HostPhys a) { return PhysAddr(a.value()); }
constexpr GuestPhys ToGuestPhys(PhysAddr a) { return GuestPhys(a.value()); }
constexpr HostPhys ToHostPhys(PhysAddr a) { return HostPhys(a.value()); }

constexpr SourceId MakeSourceId(int bus, int device, int function) {
  return SourceId(static_cast<uint16_t>((bus << 8) | (device << 3) | function));
}

inline constexpr int kPageShift = 12;
inline constexpr uint64_t kPageSize = uint64_t{1} << kPageShift;
inline constexpr uint64_t kPageMask = kPageSize - 1;

constexpr uint64_t AlignDown(uint64_t v, uint64_t size) { return v & ~(size - 1); }
constexpr uint64_t AlignUp(uint64_t v, uint64_t size) { return (v + size - 1) & ~(size - 1); }
constexpr bool IsAligned(uint64_t v, uint64_t size) { return (v & (size - 1)) == 0; }
// The smallest `order` with 2^order >= pages; pages >= 1.
constexpr int OrderOf(uint64_t pages) { return static_cast<int>(std::bit_width(pages - 1)); }

// [first, end) in device address space, in bytes.
struct IovaRange {
  Iova first;
  Iova end;

  constexpr uint64_t size_bytes() const { return end - first; }
  constexpr bool empty() const { return end <= first; }
  constexpr bool Contains(Iova a) const { return first <= a && a < end; }
  constexpr bool Overlaps(const IovaRange& o) const { return first < o.end && o.first < end; }
  friend constexpr bool operator==(const IovaRange&, const IovaRange&) = default;
};

constexpr IovaRange MakeRange(Iova first, uint64_t size_bytes) {
  return {first, first + size_bytes};
}

// What a mapping or an access may do.
struct Access {
  bool read = false;
  bool write = false;

  constexpr bool any() const { return read || write; }
  friend constexpr bool operator==(const Access&, const Access&) = default;
};
inline constexpr Access kReadWrite{true, true};
inline constexpr Access kReadOnly{true, false};
inline constexpr Access kWriteOnly{false, true};

}  // namespace viommu

#endif  // VIOMMU_IOMMU_CORE_BASE_TYPES_H_
