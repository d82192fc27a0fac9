// Fault reasons and fault records of legacy mode (VT-d 7.1.3, 11.4.7.6).
#ifndef VIOMMU_IOMMU_CORE_VTD_FAULT_H_
#define VIOMMU_IOMMU_CORE_VTD_FAULT_H_

#include <cstdint>

#include "iommu_core/base/bits.h"
#include "iommu_core/base/types.h"

namespace viommu::vtd {

enum class FaultReason : uint8_t {
  kNone = 0,
  kRootNotPresent = 0x1,
  kContextNotPresent = 0x2,   // qualified by FPD, as all below unless said
  kContextInvalid = 0x3,      // AW or TT not usable, or the table at SSPTPTR not readable
  kAddressBeyondWidth = 0x4,  // above min(MGAW, AW)
  kWriteDenied = 0x5,
  kReadDenied = 0x6,
  kTableAccess = 0x7,         // a table below the one at SSPTPTR could not be read
  kRootTableAccess = 0x8,     // not qualified
  kContextTableAccess = 0x9,  // not qualified
  kRootReserved = 0xa,        // not qualified
  kContextReserved = 0xb,
  kPteReserved = 0xc,
  kTranslationBlocked = 0xd,    // TT does not allow this kind of request
  kInterruptRangeOutput = 0xe,  // the result lies in 0xfeex_xxxx (3.14)
};

// True where FPD in the context entry suppresses recording (7.1.3: "qualified" conditions).
constexpr bool QualifiedByFpd(FaultReason r) {
  switch (r) {
    case FaultReason::kNone:
    case FaultReason::kRootNotPresent:
    case FaultReason::kRootTableAccess:
    case FaultReason::kContextTableAccess:
    case FaultReason::kRootReserved:
      return false;
    default:
      return true;
  }
}

// 11.4.7.6 FRCD, 128 bits.
struct FaultRecord {
  SourceId source_id;
  Iova page;  // page-aligned
  FaultReason reason = FaultReason::kNone;
  bool read = false;  // T1/T2: the request was a read

  using F = Bit<63>;  // of the high word
  using T = Bit<62>;  // 1 = read
  using Reason = Bits<39, 32>;
  using Sid = Bits<15, 0>;

  constexpr uint64_t lo() const { return page.value() & ~kPageMask; }
  constexpr uint64_t hi() const {
    return F::Make(1) | T::Make(read) | Reason::Make(static_cast<uint64_t>(reason)) |
           Sid::Make(source_id.value());
  }
  friend constexpr bool operator==(const FaultRecord&, const FaultRecord&) = default;
};

}  // namespace viommu::vtd

#endif  // VIOMMU_IOMMU_CORE_VTD_FAULT_H_
