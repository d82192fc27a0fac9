#include "iommu_core/vtd/inv_descriptor.h"

#include <type_traits>

#include "absl/strings/str_format.h"
#include "iommu_core/base/bits.h"

namespace viommu::vtd {
namespace {

// Fields by position, 6.5.2. The type code is split: 3:0 and 11:9.
using TypeLow = Bits<3, 0>;
using TypeHigh = Bits<11, 9>;
using Gran = Bits<5, 4>;
using Did = Bits<31, 16>;

enum Type : uint8_t {
  kContextCache = 1,
  kIotlb = 2,
  kDeviceTlb = 3,
  kInterruptEntry = 4,
  kWait = 5,
};

namespace cc {
using Sid = Bits<47, 32>;
using Fm = Bits<49, 48>;
constexpr uint64_t kReserved0 = BitMask(8, 6) | BitMask(15, 12) | BitMask(63, 50);
}  // namespace cc
namespace tlb {
using Dw = Bit<6>;
using Dr = Bit<7>;
using Am = Bits<5, 0>;
using Ih = Bit<6>;
constexpr uint64_t kReserved0 = BitMask(8, 8) | BitMask(15, 12) | BitMask(63, 32);
constexpr uint64_t kReserved1 = BitMask(11, 7);  // whatever the granularity
}  // namespace tlb
namespace dev {
using Mip = Bits<20, 16>;
using Sid = Bits<47, 32>;
using S = Bit<0>;
constexpr uint64_t kReserved0 = BitMask(8, 4) | BitMask(31, 21) | BitMask(51, 48);
constexpr uint64_t kPfsid = BitMask(15, 12) | BitMask(63, 52);  // reserved unless ECAP.DIT
constexpr uint64_t kReserved1 = BitMask(11, 1);
}  // namespace dev
namespace iec {
using Selective = Bit<4>;
using Mask = Bits<31, 27>;
using Index = Bits<47, 32>;
constexpr uint64_t kReserved0 = BitMask(8, 5) | BitMask(26, 12) | BitMask(63, 48);
}  // namespace iec
namespace wait {
using If = Bit<4>;
using Sw = Bit<5>;
using Fn = Bit<6>;
using Data = Bits<63, 32>;
// Bit 7 is PD, a scalable-mode field: reserved here.
constexpr uint64_t kReserved0 = BitMask(8, 7) | BitMask(31, 12);
constexpr uint64_t kReserved1 = BitMask(1, 0);
}  // namespace wait

DecodeResult Error(Iqei e) { return {e, {}}; }

DecodeResult DecodeContextCache(const RawDescriptor& raw) {
  ContextCacheInvalidate d;
  d.granularity = static_cast<Granularity>(Gran::Get(raw.qw0));
  if (d.granularity == Granularity::kReserved) return Error(Iqei::kReservedField);
  if ((raw.qw0 & cc::kReserved0) != 0 || raw.qw1 != 0) return Error(Iqei::kReservedField);
  d.domain_id = DomainId(static_cast<uint16_t>(Did::Get(raw.qw0)));
  d.source_id = SourceId(static_cast<uint16_t>(cc::Sid::Get(raw.qw0)));
  d.function_mask = static_cast<uint8_t>(cc::Fm::Get(raw.qw0));
  return {Iqei::kNone, d};
}

DecodeResult DecodeIotlb(const RawDescriptor& raw, const Capabilities& caps) {
  IotlbInvalidate d;
  d.granularity = static_cast<Granularity>(Gran::Get(raw.qw0));
  if (d.granularity == Granularity::kReserved) return Error(Iqei::kReservedField);
  if ((raw.qw0 & tlb::kReserved0) != 0) return Error(Iqei::kReservedField);
  if ((raw.qw1 & tlb::kReserved1) != 0) return Error(Iqei::kReservedField);
  d.domain_id = DomainId(static_cast<uint16_t>(Did::Get(raw.qw0)));
  d.drain_writes = tlb::Dw::Get(raw.qw0) != 0;
  d.drain_reads = tlb::Dr::Get(raw.qw0) != 0;
  if (d.granularity == Granularity::kPageOrDevice) {
    if (!caps.page_selective()) return Error(Iqei::kReservedField);
    d.address_mask = static_cast<uint8_t>(tlb::Am::Get(raw.qw1));
    if (d.address_mask > caps.max_address_mask()) return Error(Iqei::kReservedField);
    d.leaf_hint = tlb::Ih::Get(raw.qw1) != 0;
    d.address = Iova(AlignDown(raw.qw1, kPageSize));
  }
  return {Iqei::kNone, d};
}

DecodeResult DecodeDeviceTlb(const RawDescriptor& raw, const Capabilities& caps,
                             DecodeQuirks quirks) {
  if (!caps.device_tlb() && !quirks.qemu) return Error(Iqei::kBadType);
  if ((raw.qw0 & dev::kReserved0) != 0) return Error(Iqei::kReservedField);
  const bool throttling = ecap::Dit::Get(caps.ecap) != 0;
  if (!throttling && (raw.qw0 & dev::kPfsid) != 0) return Error(Iqei::kReservedField);
  if ((raw.qw1 & dev::kReserved1) != 0) return Error(Iqei::kReservedField);
  DeviceTlbInvalidate d;
  d.source_id = SourceId(static_cast<uint16_t>(dev::Sid::Get(raw.qw0)));
  d.max_invalidation_queue_depth = static_cast<uint8_t>(dev::Mip::Get(raw.qw0));
  d.size = dev::S::Get(raw.qw1) != 0;
  d.address = Iova(AlignDown(raw.qw1, kPageSize));
  return {Iqei::kNone, d};
}

DecodeResult DecodeInterruptEntry(const RawDescriptor& raw) {
  if ((raw.qw0 & iec::kReserved0) != 0 || raw.qw1 != 0) return Error(Iqei::kReservedField);
  InterruptEntryInvalidate d;
  d.index_selective = iec::Selective::Get(raw.qw0) != 0;
  d.index = static_cast<uint16_t>(iec::Index::Get(raw.qw0));
  d.index_mask = static_cast<uint8_t>(iec::Mask::Get(raw.qw0));
  return {Iqei::kNone, d};
}

DecodeResult DecodeWait(const RawDescriptor& raw) {
  if ((raw.qw0 & wait::kReserved0) != 0) return Error(Iqei::kReservedField);
  if ((raw.qw1 & wait::kReserved1) != 0) return Error(Iqei::kReservedField);
  InvalidationWait d;
  d.interrupt = wait::If::Get(raw.qw0) != 0;
  d.status_write = wait::Sw::Get(raw.qw0) != 0;
  d.fence = wait::Fn::Get(raw.qw0) != 0;
  d.status_data = static_cast<uint32_t>(wait::Data::Get(raw.qw0));
  d.status_address = PhysAddr(raw.qw1);
  return {Iqei::kNone, d};
}

}  // namespace

DecodeResult Decode(const RawDescriptor& raw, const Capabilities& caps, bool wide_queue,
                    DecodeQuirks quirks) {
  const uint64_t type = TypeLow::Get(raw.qw0) | TypeHigh::Get(raw.qw0) << 4;
  // 6.5.2: every legacy type is 128 bits, zero-padded in a 256-bit queue.
  const bool padded = !wide_queue || (raw.qw2 == 0 && raw.qw3 == 0);
  if (type >= kContextCache && type <= kWait && !padded) return Error(Iqei::kReservedField);
  switch (type) {
    case kContextCache:
      return DecodeContextCache(raw);
    case kIotlb:
      return DecodeIotlb(raw, caps);
    case kDeviceTlb:
      return DecodeDeviceTlb(raw, caps, quirks);
    case kInterruptEntry:
      return DecodeInterruptEntry(raw);
    case kWait:
      return DecodeWait(raw);
    default:
      return Error(Iqei::kBadType);
  }
}

RawDescriptor Encode(const ContextCacheInvalidate& d) {
  return {kContextCache | Gran::Make(static_cast<uint64_t>(d.granularity)) |
              Did::Make(d.domain_id.value()) | cc::Sid::Make(d.source_id.value()) |
              cc::Fm::Make(d.function_mask),
          0};
}

RawDescriptor Encode(const IotlbInvalidate& d) {
  RawDescriptor raw{kIotlb | Gran::Make(static_cast<uint64_t>(d.granularity)) |
                        tlb::Dw::Make(d.drain_writes) | tlb::Dr::Make(d.drain_reads) |
                        Did::Make(d.domain_id.value()),
                    0};
  if (d.granularity == Granularity::kPageOrDevice) {
    raw.qw1 = AlignDown(d.address.value(), kPageSize) | tlb::Ih::Make(d.leaf_hint) |
              tlb::Am::Make(d.address_mask);
  }
  return raw;
}

RawDescriptor Encode(const DeviceTlbInvalidate& d) {
  return {kDeviceTlb | dev::Mip::Make(d.max_invalidation_queue_depth) |
              dev::Sid::Make(d.source_id.value()),
          AlignDown(d.address.value(), kPageSize) | dev::S::Make(d.size)};
}

RawDescriptor Encode(const InterruptEntryInvalidate& d) {
  return {kInterruptEntry | iec::Selective::Make(d.index_selective) |
              iec::Mask::Make(d.index_mask) | iec::Index::Make(d.index),
          0};
}

RawDescriptor Encode(const InvalidationWait& d) {
  return {kWait | wait::If::Make(d.interrupt) | wait::Sw::Make(d.status_write) |
              wait::Fn::Make(d.fence) | wait::Data::Make(d.status_data),
          d.status_address.value()};
}

RawDescriptor Encode(const Descriptor& d) {
  return std::visit([](const auto& x) { return Encode(x); }, d);
}

std::string ToText(const Descriptor& d) {
  return std::visit(
      [](const auto& x) -> std::string {
        using T = std::decay_t<decltype(x)>;
        if constexpr (std::is_same_v<T, ContextCacheInvalidate>) {
          return absl::StrFormat("context granularity %d did %d sid 0x%04x fm %d",
                                 static_cast<int>(x.granularity), x.domain_id.value(),
                                 x.source_id.value(), x.function_mask);
        } else if constexpr (std::is_same_v<T, IotlbInvalidate>) {
          if (x.granularity == Granularity::kGlobal) return "iotlb global";
          if (x.granularity == Granularity::kDomain) {
            return absl::StrFormat("iotlb domain did %d", x.domain_id.value());
          }
          return absl::StrFormat("iotlb page did %d [0x%x, 0x%x) ih %d", x.domain_id.value(),
                                 x.range().first.value(), x.range().end.value(), x.leaf_hint);
        } else if constexpr (std::is_same_v<T, DeviceTlbInvalidate>) {
          return absl::StrFormat("device-tlb sid 0x%04x [0x%x, 0x%x)", x.source_id.value(),
                                 x.range().first.value(), x.range().end.value());
        } else if constexpr (std::is_same_v<T, InterruptEntryInvalidate>) {
          return absl::StrFormat("interrupt-entry %s %d", x.index_selective ? "index" : "global",
                                 x.index);
        } else {
          return absl::StrFormat("wait if %d sw %d fn %d data 0x%x at 0x%x", x.interrupt,
                                 x.status_write, x.fence, x.status_data, x.status_address.value());
        }
      },
      d);
}

}  // namespace viommu::vtd
