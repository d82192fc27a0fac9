// Register offsets and bits (VT-d 5.10, chapter 11), in the specification's order.
#ifndef VIOMMU_IOMMU_CORE_VTD_REGISTERS_H_
#define VIOMMU_IOMMU_CORE_VTD_REGISTERS_H_

#include <cstdint>

#include "iommu_core/base/bits.h"

namespace viommu::vtd {

// 11.4: offsets of the fixed registers. IVA/IOTLB and the fault records move with ECAP.IRO and
// CAP.FRO.
enum RegisterOffset : uint32_t {
  kVer = 0x00,
  kCap = 0x08,
  kEcap = 0x10,
  kGcmd = 0x18,
  kGsts = 0x1c,
  kRtaddr = 0x20,
  kCcmd = 0x28,
  kFsts = 0x34,
  kFectl = 0x38,
  kFedata = 0x3c,
  kFeaddr = 0x40,
  kFeuaddr = 0x44,
  kAflog = 0x58,
  kPmen = 0x64,
  kIqh = 0x80,
  kIqt = 0x88,
  kIqa = 0x90,
  kIcs = 0x9c,
  kIectl = 0xa0,
  kIedata = 0xa4,
  kIeaddr = 0xa8,
  kIeuaddr = 0xac,
  kIqercd = 0xb0,
  kIrta = 0xb8,
};

// 11.4.2 Capability.
namespace cap {
using Nd = Bits<2, 0>;  // number of domains: 2^(4 + 2 * Nd)
using Rwbf = Bit<4>;    // required write-buffer flushing
using Plmr = Bit<5>;
using Phmr = Bit<6>;
using Cm = Bit<7>;           // caching mode
using Sagaw = Bits<12, 8>;   // supported adjusted guest address widths: bit 1 = 39, bit 2 = 48
using Mgaw = Bits<21, 16>;   // maximum guest address width - 1
using Zlr = Bit<22>;         // zero-length read
using Fro = Bits<33, 24>;    // fault records at 16 * Fro
using Sslps = Bits<37, 34>;  // second-stage large pages: bit 0 2M, bit 1 1G
using Psi = Bit<39>;         // page-selective invalidation
using Nfr = Bits<47, 40>;    // fault records - 1
using Mamv = Bits<53, 48>;   // maximum address mask
using Dwd = Bit<54>;
using Drd = Bit<55>;
using Fl1gp = Bit<56>;
using Pi = Bit<59>;
using Esrtps = Bit<63>;  // root table pointer set invalidates by itself
}  // namespace cap

// 11.4.3 Extended capability.
namespace ecap {
using C = Bit<0>;  // coherent walks
using Qi = Bit<1>;
using Dt = Bit<2>;  // device-TLB
using Ir = Bit<3>;
using Eim = Bit<4>;
using Pt = Bit<6>;        // pass-through
using Sc = Bit<7>;        // snoop control
using Iro = Bits<17, 8>;  // IVA at 16 * Iro, IOTLB_REG 8 above
using Mhmv = Bits<23, 20>;
using Dit = Bit<41>;  // device-TLB invalidation throttling
using Smts = Bit<43>;
using Slts = Bit<46>;
using Flts = Bit<47>;
}  // namespace ecap

// 11.4.4 Global command and status.
namespace gcmd {
using Te = Bit<31>;
using Srtp = Bit<30>;
using Sfl = Bit<29>;
using Eafl = Bit<28>;
using Wbf = Bit<27>;
using Qie = Bit<26>;
using Ire = Bit<25>;
using Sirtp = Bit<24>;
using Cfi = Bit<23>;
}  // namespace gcmd

// 11.4.5 Root table address.
namespace rtaddr {
using Ttm = Bits<11, 10>;  // translation table mode: 0 legacy
using Rta = Bits<63, 12>;
}  // namespace rtaddr

// 11.4.6.1 Context command.
namespace ccmd {
using Did = Bits<15, 0>;
using Sid = Bits<31, 16>;
using Fm = Bits<33, 32>;
using Caig = Bits<60, 59>;  // granularity performed
using Cirg = Bits<62, 61>;  // granularity requested: 1 global, 2 domain, 3 device
using Icc = Bit<63>;
}  // namespace ccmd

// 11.4.6.2 IOTLB and invalidate address.
namespace iotlb {
using Did = Bits<47, 32>;
using Dw = Bit<48>;
using Dr = Bit<49>;
using Iaig = Bits<58, 57>;
using Iirg = Bits<61, 60>;  // 1 global, 2 domain, 3 page
using Ivt = Bit<63>;
}  // namespace iotlb
namespace iva {
using Am = Bits<5, 0>;
using Ih = Bit<6>;
using Addr = Bits<63, 12>;
}  // namespace iva

// 11.4.7.1 Fault status.
namespace fsts {
using Pfo = Bit<0>;  // primary fault overflow
using Ppf = Bit<1>;  // primary pending fault
using Iqe = Bit<4>;  // invalidation queue error
using Ice = Bit<5>;  // invalidation completion error
using Ite = Bit<6>;  // invalidation time-out error
using Fri = Bits<15, 8>;
}  // namespace fsts

// 11.4.7.2 Fault event control; the invalidation event control has the same shape.
namespace event_control {
using Im = Bit<31>;  // interrupt mask
using Ip = Bit<30>;  // interrupt pending
}  // namespace event_control

// 11.4.8 Invalidation queue.
namespace iqa {
using Iqa = Bits<63, 12>;
using Dw = Bit<11>;  // 256-bit descriptors
using Qs = Bits<2, 0>;
}  // namespace iqa
namespace ics {
using Iwc = Bit<0>;  // invalidation wait descriptor complete
}  // namespace ics
namespace iqercd {
using Iqei = Bits<3, 0>;
using Itesid = Bits<47, 32>;
using Icesid = Bits<63, 48>;
}  // namespace iqercd

// 11.4.9.9 Invalidation queue error info.
enum class Iqei : uint8_t {
  kNone = 0,
  kBadTail = 1,
  kFetchError = 2,
  kBadType = 3,
  kReservedField = 4,
  kBadWidth = 5,
  kTailMisaligned = 6,
  kBadTtm = 7,
};

}  // namespace viommu::vtd

namespace viommu {

// How a driver reaches the registers of one IOMMU.
class RegisterPort {
 public:
  virtual ~RegisterPort() = default;
  virtual uint32_t Read32(uint32_t offset) = 0;
  virtual uint64_t Read64(uint32_t offset) = 0;
  virtual void Write32(uint32_t offset, uint32_t value) = 0;
  virtual void Write64(uint32_t offset, uint64_t value) = 0;
};

}  // namespace viommu

#endif  // VIOMMU_IOMMU_CORE_VTD_REGISTERS_H_
