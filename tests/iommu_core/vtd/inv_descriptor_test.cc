// Descriptors of VT-d 6.5.2. Field positions here are the specification's tables, typed again: the
// test shares none with the decoder.
#include "iommu_core/vtd/inv_descriptor.h"

#include <gtest/gtest.h>

#include <random>
#include <string>
#include <variant>
#include <vector>

namespace viommu::vtd {
namespace {

constexpr Capabilities Caps(bool device_tlb = true) {
  Capabilities caps = QemuCapabilities(48, true);
  if (device_tlb) caps.ecap |= ecap::Dt::kMask | ecap::Dit::kMask;
  return caps;
}

template <typename T>
T DecodeAs(const RawDescriptor& raw) {
  const DecodeResult result = Decode(raw, Caps());
  EXPECT_EQ(result.error, Iqei::kNone) << ToText(result.descriptor);
  EXPECT_TRUE(std::holds_alternative<T>(result.descriptor));
  return std::get<T>(result.descriptor);
}

// Descriptors that a real kernel logged (its commit that added the qi_submit tracepoint).
TEST(InvDescriptorTest, LoggedDomainSelective) {
  const auto d = DecodeAs<IotlbInvalidate>({0x100e2, 0});
  EXPECT_EQ(d.granularity, Granularity::kDomain);
  EXPECT_EQ(d.domain_id, DomainId(1));
  EXPECT_TRUE(d.drain_reads);
  EXPECT_TRUE(d.drain_writes);
  EXPECT_EQ(ToText(d), "iotlb domain did 1");
}

TEST(InvDescriptorTest, LoggedPageSelective) {
  const auto d = DecodeAs<IotlbInvalidate>({0x800f2, 0xf9a00005});
  EXPECT_EQ(d.granularity, Granularity::kPageOrDevice);
  EXPECT_EQ(d.domain_id, DomainId(8));
  EXPECT_EQ(d.address_mask, 5);
  EXPECT_FALSE(d.leaf_hint);
  EXPECT_EQ(d.range(), MakeRange(Iova(0xf9a00000), 32 * kPageSize));
}

TEST(InvDescriptorTest, LoggedDeviceTlb) {
  const auto d = DecodeAs<DeviceTlbInvalidate>({0x1000000003, 0x7ffffffffffff001});
  EXPECT_EQ(d.source_id, SourceId(0x10));
  EXPECT_TRUE(d.size);
  EXPECT_EQ(d.range().first, Iova(0));
  EXPECT_EQ(d.range().end, Iova(~uint64_t{0}));
}

// What Linux 6.1 submitted at boot and attach in the recorded runs.
TEST(InvDescriptorTest, RecordedAttachSequence) {
  const auto device = DecodeAs<ContextCacheInvalidate>({0x1800000031, 0});
  EXPECT_EQ(device.granularity, Granularity::kPageOrDevice);
  EXPECT_EQ(device.domain_id, DomainId(0));
  EXPECT_EQ(device.source_id, MakeSourceId(0, 3, 0));
  EXPECT_EQ(DecodeAs<ContextCacheInvalidate>({0x11, 0}).granularity, Granularity::kGlobal);
  EXPECT_EQ(DecodeAs<IotlbInvalidate>({0xd2, 0}).granularity, Granularity::kGlobal);
  EXPECT_EQ(DecodeAs<IotlbInvalidate>({0x300e2, 0}).domain_id, DomainId(3));
  EXPECT_FALSE(DecodeAs<InterruptEntryInvalidate>({0x4, 0}).index_selective);
  const auto index = DecodeAs<InterruptEntryInvalidate>({0x800000014, 0});
  EXPECT_TRUE(index.index_selective);
  EXPECT_EQ(index.index, 8);
}

TEST(InvDescriptorTest, Wait) {
  const auto d = DecodeAs<InvalidationWait>({0x0000'0002'0000'0025, 0x1234'5678'9abc});
  EXPECT_TRUE(d.status_write);
  EXPECT_FALSE(d.interrupt);
  EXPECT_FALSE(d.fence);
  EXPECT_EQ(d.status_data, 2u);
  EXPECT_EQ(d.status_address, PhysAddr(0x1234'5678'9abc));
  EXPECT_TRUE(DecodeAs<InvalidationWait>({0x15, 0}).interrupt);
  EXPECT_TRUE(DecodeAs<InvalidationWait>({0x45, 0}).fence);
}

// Bits that software may set, by descriptor; every other bit is reserved.
struct Format {
  const char* name;
  uint64_t base;   // a valid word: type and granularity
  uint64_t free0;  // bits of the first word that may have any value
  uint64_t free1;
};

constexpr uint64_t Span(int hi, int lo) {
  return (hi - lo == 63 ? ~uint64_t{0} : (uint64_t{1} << (hi - lo + 1)) - 1) << lo;
}

const std::vector<Format> kFormats = {
    {"context-cache (6.5.2.1)", 0x31, Span(31, 16) | Span(47, 32) | Span(49, 48), 0},
    // IH 6, ADDR 63:12; AM is a field with a limit of its own.
    {"iotlb page (6.5.2.3)", 0x32, Span(7, 6) | Span(31, 16), Span(6, 6) | Span(63, 12)},
    {"device-tlb (6.5.2.5)", 0x3, Span(15, 12) | Span(20, 16) | Span(47, 32) | Span(63, 52),
     Span(0, 0) | Span(63, 12)},
    {"interrupt entry (6.5.2.7)", 0x4, Span(4, 4) | Span(31, 27) | Span(47, 32), 0},
    {"wait (6.5.2.8)", 0x5, Span(6, 4) | Span(63, 32), Span(63, 2)},
};
constexpr uint64_t kTypeBits = Span(3, 0) | Span(11, 9);
constexpr uint64_t kGranularityBits = Span(5, 4);
constexpr uint64_t kAddressMaskBits = Span(5, 0);

// 6.5.2.10, IQEI 4: reserved field programmed non-zero.
TEST(InvDescriptorTest, EveryReservedBitIsRefused) {
  for (const Format& f : kFormats) {
    const bool has_granularity = (f.base & kGranularityBits) != 0;
    ASSERT_EQ(Decode({f.base, 0}, Caps()).error, Iqei::kNone) << f.name;
    for (int bit = 0; bit < 64; ++bit) {
      const uint64_t mask = uint64_t{1} << bit;
      if ((mask & kTypeBits) == 0 && !(has_granularity && (mask & kGranularityBits) != 0)) {
        EXPECT_EQ(Decode({f.base | mask, 0}, Caps()).error,
                  (mask & f.free0) != 0 ? Iqei::kNone : Iqei::kReservedField)
            << f.name << " first word, bit " << bit;
      }
      if (f.base == 0x32 && (mask & kAddressMaskBits) != 0) continue;
      EXPECT_EQ(Decode({f.base, mask}, Caps()).error,
                (mask & f.free1) != 0 ? Iqei::kNone : Iqei::kReservedField)
          << f.name << " second word, bit " << bit;
    }
  }
}

// 6.5.2.3: domain-selective and global have the same layout: ADDR, AM and IH mean nothing there,
// bits 11:7 of the second word stay reserved.
TEST(InvDescriptorTest, SecondWordOfCoarseIotlbInvalidations) {
  for (const uint64_t base : {uint64_t{0x12}, uint64_t{0x22}}) {
    for (int bit = 0; bit < 64; ++bit) {
      const bool reserved = bit >= 7 && bit <= 11;
      EXPECT_EQ(Decode({base, uint64_t{1} << bit}, Caps()).error,
                reserved ? Iqei::kReservedField : Iqei::kNone)
          << std::hex << base << std::dec << " second word, bit " << bit;
    }
  }
}

TEST(InvDescriptorTest, ReservedGranularityIsRefused) {
  EXPECT_EQ(Decode({0x1, 0}, Caps()).error, Iqei::kReservedField);
  EXPECT_EQ(Decode({0x2, 0}, Caps()).error, Iqei::kReservedField);
}

// IQEI 3: the type is 11:9 and 3:0; a unit without scalable mode knows 1 to 5 only.
TEST(InvDescriptorTest, UnknownTypesAreRefused) {
  for (uint64_t high = 0; high < 8; ++high) {
    for (uint64_t low = 0; low < 16; ++low) {
      if (high == 0 && low >= 1 && low <= 5) continue;
      EXPECT_EQ(Decode({high << 9 | low | 0x10, 0}, Caps()).error, Iqei::kBadType)
          << high << ":" << low;
    }
  }
}

// 6.5.2.3: AM above CAP.MAMV, and page-selective without CAP.PSI, are errors.
TEST(InvDescriptorTest, PageSelectiveIsBoundedByTheCapability) {
  EXPECT_EQ(Decode({0x32, 18}, Caps()).error, Iqei::kNone);
  EXPECT_EQ(Decode({0x32, 19}, Caps()).error, Iqei::kReservedField);
  EXPECT_EQ(Decode({0x32, 63}, Caps()).error, Iqei::kReservedField);
  Capabilities no_psi = Caps();
  no_psi.cap &= ~cap::Psi::kMask;
  EXPECT_EQ(Decode({0x32, 0}, no_psi).error, Iqei::kReservedField);
  EXPECT_EQ(Decode({0x22, 0}, no_psi).error, Iqei::kNone);
}

// A device-TLB descriptor is known only to units with ECAP.DT; QEMU takes it anyway.
TEST(InvDescriptorTest, DeviceTlbNeedsTheCapability) {
  EXPECT_EQ(Decode({0x3, 0}, Caps(false)).error, Iqei::kBadType);
  EXPECT_EQ(Decode({0x3, 0}, Caps(false), false, {.qemu = true}).error, Iqei::kNone);
}

// PFSID means something only where ECAP.DIT says that the unit throttles by physical function.
TEST(InvDescriptorTest, PhysicalFunctionNeedsThrottling) {
  Capabilities no_dit = Caps();
  no_dit.ecap &= ~ecap::Dit::kMask;
  for (const int bit : {12, 15, 52, 63}) {
    const RawDescriptor raw{0x3 | uint64_t{1} << bit, 0};
    EXPECT_EQ(Decode(raw, Caps()).error, Iqei::kNone) << bit;
    EXPECT_EQ(Decode(raw, no_dit).error, Iqei::kReservedField) << bit;
  }
}

// 6.5.2: in a 256-bit queue the upper half of a 128-bit descriptor is zero; in a 128-bit queue
// those words belong to the next descriptor.
TEST(InvDescriptorTest, UpperHalfOfAWideQueueIsReserved) {
  EXPECT_EQ(Decode({0x100e2, 0, 0, 0}, Caps(), true).error, Iqei::kNone);
  EXPECT_EQ(Decode({0x100e2, 0, 1, 0}, Caps(), true).error, Iqei::kReservedField);
  EXPECT_EQ(Decode({0x100e2, 0, 0, uint64_t{1} << 63}, Caps(), true).error, Iqei::kReservedField);
  EXPECT_EQ(Decode({0x100e2, 0, 1, 1}, Caps(), false).error, Iqei::kNone);
}

// The low AM bits of the page number are ignored: a real kernel's VFIO map sent 0x2e00000, AM 15.
TEST(InvDescriptorTest, UnalignedAddressIsMasked) {
  const auto d = DecodeAs<IotlbInvalidate>({0x300f2, 0x2e00000 | 15});
  EXPECT_EQ(d.range(), MakeRange(Iova(0), uint64_t{1} << 27));
  EXPECT_EQ(d.address, Iova(0x2e00000));
}

// PCIe ATS 10.2.3.2: with S, the position of the lowest zero bit codes the size.
TEST(InvDescriptorTest, DeviceTlbSizes) {
  const auto range = [](uint64_t qw1) { return DecodeAs<DeviceTlbInvalidate>({0x3, qw1}).range(); };
  EXPECT_EQ(range(0x5000), MakeRange(Iova(0x5000), 0x1000));
  EXPECT_EQ(range(0x4001), MakeRange(Iova(0x4000), 0x2000));
  EXPECT_EQ(range(0x5001), MakeRange(Iova(0x4000), 0x4000));
  EXPECT_EQ(range(0x7001), MakeRange(Iova(0x0), 0x10000));
  EXPECT_EQ(range(0x1000ff001), MakeRange(Iova(0x100000000), 0x200000));
}

// Any word: what decodes encodes back to the same bits, PFSID apart (it names the physical function
// whose queue depth applies; this model has none).
TEST(InvDescriptorTest, RoundTrip) {
  std::mt19937_64 rng(7);
  constexpr uint64_t kPfsid = Span(15, 12) | Span(63, 52);
  for (const Format& f : kFormats) {
    for (int i = 0; i < 2000; ++i) {
      RawDescriptor raw{f.base | (rng() & f.free0), rng() & f.free1};
      if (f.base == 0x3) raw.qw0 &= ~kPfsid;
      if (f.base == 0x32) raw.qw1 |= rng() % 19;
      const DecodeResult result = Decode(raw, Caps());
      ASSERT_EQ(result.error, Iqei::kNone) << f.name;
      ASSERT_EQ(Encode(result.descriptor), raw) << f.name << ": " << ToText(result.descriptor);
      ASSERT_FALSE(ToText(result.descriptor).empty());
    }
  }
}

// Hostile words: a decoder that accepts one gives fields inside their ranges.
TEST(InvDescriptorTest, RandomWordsNeverGiveFieldsOutOfRange) {
  std::mt19937_64 rng(11);
  int accepted = 0;
  for (int i = 0; i < 200000; ++i) {
    // Sparse words: most dense ones die on a reserved bit.
    const RawDescriptor raw{rng() & rng() & rng() & rng(), rng() & rng() & rng(), 0, 0};
    const DecodeResult result = Decode(raw, Caps());
    if (result.error != Iqei::kNone) continue;
    ++accepted;
    if (const auto* tlb = std::get_if<IotlbInvalidate>(&result.descriptor)) {
      ASSERT_LE(tlb->address_mask, 18);
      ASSERT_NE(tlb->granularity, Granularity::kReserved);
    } else if (const auto* wait = std::get_if<InvalidationWait>(&result.descriptor)) {
      ASSERT_EQ(wait->status_address.value() % 4, 0u);
    }
  }
  EXPECT_GT(accepted, 100);
}

}  // namespace
}  // namespace viommu::vtd
