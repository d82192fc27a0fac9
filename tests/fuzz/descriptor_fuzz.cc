// The decoder of invalidation descriptors on any words, capabilities and queue width.
#include <cstddef>
#include <cstdint>
#include <variant>

#include "fuzz_input.h"
#include "iommu_core/vtd/inv_descriptor.h"

namespace {

using namespace viommu;  // NOLINT(google-build-using-namespace)
using vtd::Iqei;

vtd::Capabilities TakeCapabilities(FuzzInput& in) {
  const auto flags = in.Take<uint8_t>();
  vtd::Capabilities caps = vtd::QemuCapabilities((flags & 1) != 0 ? 39 : 48, true);
  if ((flags & 2) != 0) caps.ecap |= vtd::ecap::Dt::kMask;
  if ((flags & 4) != 0) caps.ecap |= vtd::ecap::Dit::kMask;
  if ((flags & 8) != 0) caps.cap &= ~vtd::cap::Psi::kMask;
  if ((flags & 16) != 0) caps.cap = vtd::cap::Mamv::Set(caps.cap, flags >> 5);
  return caps;
}

void CheckRange(const IovaRange& range, Iova address) {
  FUZZ_CHECK(range.size_bytes() >= kPageSize);
  FUZZ_CHECK(IsAligned(range.first.value(), kPageSize));
  FUZZ_CHECK(address.value() - range.first.value() < range.size_bytes());
}

void CheckDecoded(const vtd::RawDescriptor& raw, const vtd::Descriptor& d,
                  const vtd::Capabilities& caps, bool wide, vtd::DecodeQuirks quirks) {
  FUZZ_CHECK(!vtd::ToText(d).empty());
  // What was understood is what is written again.
  const vtd::RawDescriptor again = vtd::Encode(d);
  const vtd::DecodeResult second = vtd::Decode(again, caps, wide, quirks);
  FUZZ_CHECK(second.error == Iqei::kNone);
  FUZZ_CHECK(second.descriptor == d);
  // 6.5.2: every legacy type is zero-padded in a 256-bit queue.
  if (wide) FUZZ_CHECK(raw.qw2 == 0 && raw.qw3 == 0);
  if (const auto* tlb = std::get_if<vtd::IotlbInvalidate>(&d)) {
    FUZZ_CHECK(tlb->granularity != vtd::Granularity::kReserved);
    if (tlb->granularity == vtd::Granularity::kPageOrDevice) {
      FUZZ_CHECK(caps.page_selective());
      FUZZ_CHECK(tlb->address_mask <= caps.max_address_mask());
      FUZZ_CHECK(again.qw0 == raw.qw0 && again.qw1 == raw.qw1);
      CheckRange(tlb->range(), tlb->address);
    }
  } else if (const auto* device = std::get_if<vtd::DeviceTlbInvalidate>(&d)) {
    FUZZ_CHECK(caps.device_tlb() || quirks.qemu);
    CheckRange(device->range(), device->address);
  } else {
    FUZZ_CHECK(again.qw0 == raw.qw0 && again.qw1 == raw.qw1);
  }
}

}  // namespace

// Input: capability flags, width and quirk flags, then the four words.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  FuzzInput in(data, size);
  const vtd::Capabilities caps = TakeCapabilities(in);
  const auto mode = in.Take<uint8_t>();
  const bool wide = (mode & 1) != 0;
  const vtd::DecodeQuirks quirks{(mode & 2) != 0};
  vtd::RawDescriptor raw;
  for (uint64_t* word : {&raw.qw0, &raw.qw1, &raw.qw2, &raw.qw3}) *word = in.Take<uint64_t>();

  const vtd::DecodeResult result = vtd::Decode(raw, caps, wide, quirks);
  FUZZ_CHECK(result.error == Iqei::kNone || result.error == Iqei::kBadType ||
             result.error == Iqei::kReservedField);
  if (result.error != Iqei::kNone) return 0;
  CheckDecoded(raw, result.descriptor, caps, wide, quirks);
  // QEMU accepts whatever the specification does.
  FUZZ_CHECK(vtd::Decode(raw, caps, wide, {true}).error == Iqei::kNone);
  return 0;
}
