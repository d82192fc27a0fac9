// What one IOMMU can do, decoded once from CAP and ECAP.
#ifndef VIOMMU_IOMMU_CORE_VTD_CAPABILITY_H_
#define VIOMMU_IOMMU_CORE_VTD_CAPABILITY_H_

#include <cstdint>

#include "iommu_core/vtd/registers.h"

namespace viommu::vtd {

struct Capabilities {
  uint64_t cap = 0;
  uint64_t ecap = 0;

  constexpr bool caching_mode() const { return cap::Cm::Get(cap) != 0; }
  constexpr bool page_selective() const { return cap::Psi::Get(cap) != 0; }
  constexpr int max_address_mask() const { return static_cast<int>(cap::Mamv::Get(cap)); }
  // Bits of input address that can be translated at all.
  constexpr int max_guest_width() const { return static_cast<int>(cap::Mgaw::Get(cap)) + 1; }
  // `width` 39 or 48.
  constexpr bool SupportsWidth(int width) const {
    return (cap::Sagaw::Get(cap) >> ((width - 30) / 9)) & 1;
  }
  constexpr bool large_2m() const { return (cap::Sslps::Get(cap) & 1) != 0; }
  constexpr bool large_1g() const { return (cap::Sslps::Get(cap) & 2) != 0; }
  constexpr int fault_records() const { return static_cast<int>(cap::Nfr::Get(cap)) + 1; }
  constexpr uint32_t fault_record_offset() const {
    return static_cast<uint32_t>(cap::Fro::Get(cap)) * 16;
  }
  constexpr uint32_t iotlb_offset() const {
    return static_cast<uint32_t>(ecap::Iro::Get(ecap)) * 16;
  }
  constexpr uint32_t domain_count() const { return 1u << (4 + 2 * cap::Nd::Get(cap)); }
  constexpr int domain_id_bits() const { return static_cast<int>(4 + 2 * cap::Nd::Get(cap)); }
  constexpr bool snoop_control() const { return ecap::Sc::Get(ecap) != 0; }
  constexpr bool pass_through() const { return ecap::Pt::Get(ecap) != 0; }
  constexpr bool device_tlb() const { return ecap::Dt::Get(ecap) != 0; }
  constexpr bool queued_invalidation() const { return ecap::Qi::Get(ecap) != 0; }
};

// The unit that QEMU's intel-iommu presents with caching-mode=on and intremap=off, the one that the
// recorded cases assume: MAMV 18, 2M and 1G pages, one fault record at 0x220, IOTLB at 0xf0.
constexpr Capabilities QemuCapabilities(int address_width, bool caching_mode) {
  Capabilities c;
  c.cap = address_width == 48 ? 0x80d2008c222f0686ull : 0x80d2008c22260286ull;
  if (!caching_mode) c.cap &= ~cap::Cm::kMask;
  c.ecap = 0xf42;
  return c;
}

}  // namespace viommu::vtd

#endif  // VIOMMU_IOMMU_CORE_VTD_CAPABILITY_H_
