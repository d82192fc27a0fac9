// Root and context entries, legacy mode (VT-d 9.1, 9.3).
#ifndef VIOMMU_IOMMU_CORE_VTD_ROOT_CONTEXT_H_
#define VIOMMU_IOMMU_CORE_VTD_ROOT_CONTEXT_H_

#include <cstdint>
#include <type_traits>

#include "iommu_core/base/bits.h"
#include "iommu_core/base/types.h"

namespace viommu::vtd {

// 9.1: 128 bits, 256 to a table, indexed by bus.
struct RootEntry {
  uint64_t lo = 0;  // P 0, reserved 11:1, CTP 63:12
  uint64_t hi = 0;  // reserved

  using P = Bit<0>;

  constexpr bool present() const { return P::Get(lo) != 0; }
  // Bits HAW-1:12; bits above are reserved and checked by the walker.
  constexpr PhysAddr context_table(int haw) const { return PhysAddr(lo & BitMask(haw - 1, 12)); }
  constexpr uint64_t reserved_lo(int haw) const { return lo & (BitMask(11, 1) | BitMask(63, haw)); }
  constexpr uint64_t reserved_hi() const { return hi; }

  static constexpr RootEntry Make(PhysAddr context_table) {
    return {context_table.value() | P::Make(1), 0};
  }
};
static_assert(sizeof(RootEntry) == 16 && std::is_trivially_copyable_v<RootEntry>);

// 9.3 TT: how requests of this device are translated.
enum class TranslationType : uint8_t {
  kUntranslatedOnly = 0,  // second-stage; translation and translated requests blocked
  kWithDeviceTlb = 1,     // second-stage; ATS allowed (ECAP.DT)
  kPassThrough = 2,       // identity (ECAP.PT)
  kReserved = 3,
};

// 9.3: 128 bits, 256 to a table, indexed by device and function.
struct ContextEntry {
  uint64_t lo = 0;  // P 0, FPD 1, TT 3:2, reserved 11:4, SSPTPTR 63:12
  uint64_t hi = 0;  // AW 2:0, ignored 6:3, reserved 7, DID 23:8, reserved 63:24

  using P = Bit<0>;
  using Fpd = Bit<1>;
  using Tt = Bits<3, 2>;
  using Aw = Bits<2, 0>;
  using Did = Bits<23, 8>;

  constexpr bool present() const { return P::Get(lo) != 0; }
  constexpr bool fault_processing_disabled() const { return Fpd::Get(lo) != 0; }
  constexpr TranslationType translation_type() const {
    return static_cast<TranslationType>(Tt::Get(lo));
  }
  constexpr PhysAddr second_stage_table(int haw) const {
    return PhysAddr(lo & BitMask(haw - 1, 12));
  }
  // 1 = 3-level (39 bits), 2 = 4-level (48 bits), 3 = 5-level (57 bits).
  constexpr int address_width_code() const { return static_cast<int>(Aw::Get(hi)); }
  constexpr int levels() const { return address_width_code() + 2; }
  constexpr int width_bits() const { return 30 + 9 * address_width_code(); }
  constexpr DomainId domain_id() const { return DomainId(static_cast<uint16_t>(Did::Get(hi))); }
  constexpr uint64_t reserved_lo(int haw) const { return lo & (BitMask(11, 4) | BitMask(63, haw)); }
  constexpr uint64_t reserved_hi() const { return hi & (BitMask(63, 24) | BitMask(7, 7)); }

  static constexpr ContextEntry Make(PhysAddr table, int levels, DomainId did,
                                     TranslationType tt = TranslationType::kUntranslatedOnly) {
    return {table.value() | Tt::Make(static_cast<uint64_t>(tt)) | P::Make(1),
            Aw::Make(static_cast<uint64_t>(levels - 2)) | Did::Make(did.value())};
  }
  friend constexpr bool operator==(const ContextEntry&, const ContextEntry&) = default;
};
static_assert(sizeof(ContextEntry) == 16 && std::is_trivially_copyable_v<ContextEntry>);

// 3.14: requests to this range are interrupt requests, and no translation may lead into it.
constexpr bool InInterruptRange(uint64_t address) { return (address >> 20) == 0xfee; }

constexpr int RootIndex(SourceId sid) { return sid.value() >> 8; }
constexpr int ContextIndex(SourceId sid) { return sid.value() & 0xff; }

}  // namespace viommu::vtd

#endif  // VIOMMU_IOMMU_CORE_VTD_ROOT_CONTEXT_H_
