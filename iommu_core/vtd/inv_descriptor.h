// Invalidation descriptors (VT-d 6.5.2): the only encoder and decoder, on both sides of the wire.
#ifndef VIOMMU_IOMMU_CORE_VTD_INV_DESCRIPTOR_H_
#define VIOMMU_IOMMU_CORE_VTD_INV_DESCRIPTOR_H_

#include <cstdint>
#include <string>
#include <variant>

#include "iommu_core/base/types.h"
#include "iommu_core/vtd/capability.h"
#include "iommu_core/vtd/registers.h"

namespace viommu::vtd {

// The raw words. A 128-bit descriptor uses the first two; in a 256-bit queue the rest must be zero.
struct RawDescriptor {
  uint64_t qw0 = 0;
  uint64_t qw1 = 0;
  uint64_t qw2 = 0;
  uint64_t qw3 = 0;
  friend constexpr bool operator==(const RawDescriptor&, const RawDescriptor&) = default;
};

enum class Granularity : uint8_t { kReserved = 0, kGlobal = 1, kDomain = 2, kPageOrDevice = 3 };

// 6.5.2.1
struct ContextCacheInvalidate {
  Granularity granularity = Granularity::kGlobal;
  DomainId domain_id;
  SourceId source_id;
  uint8_t function_mask = 0;  // FM: 0..3 masks 0/1/2/3 low function bits
  friend constexpr bool operator==(const ContextCacheInvalidate&,
                                   const ContextCacheInvalidate&) = default;
};

// 6.5.2.3
struct IotlbInvalidate {
  Granularity granularity = Granularity::kGlobal;
  DomainId domain_id;
  bool drain_reads = false;
  bool drain_writes = false;
  uint8_t address_mask = 0;  // AM: 2^AM pages
  bool leaf_hint = false;    // IH: only leaf entries changed
  Iova address;              // as written; the low AM page bits are ignored

  // The pages it covers (page-selective): the low AM bits of the page number are masked.
  constexpr IovaRange range() const {
    const uint64_t size = kPageSize << address_mask;
    return MakeRange(Iova(AlignDown(address.value(), size)), size);
  }
  friend constexpr bool operator==(const IotlbInvalidate&, const IotlbInvalidate&) = default;
};

// 6.5.2.5
struct DeviceTlbInvalidate {
  SourceId source_id;
  uint8_t max_invalidation_queue_depth = 0;  // QDEP/MIP
  bool size = false;                         // S: low ones of the address code the size
  Iova address;

  // PCIe ATS 10.2.3.2: with S, the lowest zero bit at or above 12 ends the size.
  constexpr IovaRange range() const;
  friend constexpr bool operator==(const DeviceTlbInvalidate&,
                                   const DeviceTlbInvalidate&) = default;
};

// 6.5.2.7
struct InterruptEntryInvalidate {
  bool index_selective = false;
  uint16_t index = 0;
  uint8_t index_mask = 0;
  friend constexpr bool operator==(const InterruptEntryInvalidate&,
                                   const InterruptEntryInvalidate&) = default;
};

// 6.5.2.8
struct InvalidationWait {
  bool interrupt = false;     // IF
  bool status_write = false;  // SW
  bool fence = false;         // FN
  uint32_t status_data = 0;
  PhysAddr status_address;  // DWORD aligned
  friend constexpr bool operator==(const InvalidationWait&, const InvalidationWait&) = default;
};

using Descriptor = std::variant<ContextCacheInvalidate, IotlbInvalidate, DeviceTlbInvalidate,
                                InterruptEntryInvalidate, InvalidationWait>;

struct DecodeResult {
  Iqei error = Iqei::kNone;  // kNone: `descriptor` holds it
  Descriptor descriptor;
};

// Departures of QEMU's intel-iommu from the specification, each named in iommu_core/hw/README.md.
struct DecodeQuirks {
  bool qemu = false;
};

// Decodes one descriptor of a legacy-mode queue and checks every rule of 6.5.2 and 6.5.2.10:
// type (bits 11:9 and 3:0), granularity, reserved bits, AM against MAMV, descriptor width.
DecodeResult Decode(const RawDescriptor& raw, const Capabilities& caps, bool wide_queue = false,
                    DecodeQuirks quirks = {});

RawDescriptor Encode(const ContextCacheInvalidate& d);
RawDescriptor Encode(const IotlbInvalidate& d);
RawDescriptor Encode(const DeviceTlbInvalidate& d);
RawDescriptor Encode(const InterruptEntryInvalidate& d);
RawDescriptor Encode(const InvalidationWait& d);
RawDescriptor Encode(const Descriptor& d);

// "iotlb page did 8 [0xf9a00000, 0xf9a20000) ih 0", for logs and failed tests.
std::string ToText(const Descriptor& d);

constexpr IovaRange DeviceTlbInvalidate::range() const {
  uint64_t page = address.value() >> kPageShift;
  if (!size) return MakeRange(Iova(page << kPageShift), kPageSize);
  int order = 1;
  while (order < 52 && (page & 1) != 0) {
    page >>= 1;
    ++order;
  }
  if (order >= 52) return {Iova(0), Iova(~uint64_t{0})};
  const uint64_t bytes = kPageSize << order;
  return MakeRange(Iova(AlignDown(address.value(), bytes)), bytes);
}

}  // namespace viommu::vtd

#endif  // VIOMMU_IOMMU_CORE_VTD_INV_DESCRIPTOR_H_
