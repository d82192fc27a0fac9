// Register-based invalidation (VT-d 6.5.1): one request at a time, as one descriptor.
#include <utility>

#include "iommu_core/iq/vtd_unit_state.h"

namespace viommu {

using vtd::Granularity;

void VtdUnit::State::OnContextCommand() {
  const uint64_t value = registers.Get64(vtd::kCcmd);
  if (vtd::ccmd::Icc::Get(value) == 0) return;
  if (queue_enabled()) {
    // Software must not mix the two interfaces. The request is ignored; reporting no granularity
    // says so and lets a driver that polls ICC go on. QEMU leaves ICC set.
    if (!options.qemu_quirks) {
      registers.Set64(vtd::kCcmd, value & ~(vtd::ccmd::Icc::kMask | vtd::ccmd::Caig::kMask));
    }
    return;
  }
  pending_context_command = true;
  Run();
}

void VtdUnit::State::OnIotlbCommand() {
  const uint32_t offset = iotlb_offset + 8;
  const uint64_t value = registers.Get64(offset);
  if (vtd::iotlb::Ivt::Get(value) == 0) return;
  if (queue_enabled()) {
    if (!options.qemu_quirks) {
      registers.Set64(offset, value & ~(vtd::iotlb::Ivt::kMask | vtd::iotlb::Iaig::kMask));
    }
    return;
  }
  pending_iotlb_command = true;
  Run();
}

absl::Status VtdUnit::State::RunContextCommand() {
  const uint64_t value = registers.Get64(vtd::kCcmd);
  vtd::ContextCacheInvalidate d;
  d.granularity = static_cast<Granularity>(vtd::ccmd::Cirg::Get(value));
  // QEMU carries a domain's request out on everything, and CAIG says so.
  if (options.qemu_quirks && d.granularity == Granularity::kDomain) {
    d.granularity = Granularity::kGlobal;
  }
  d.domain_id = DomainId(static_cast<uint16_t>(vtd::ccmd::Did::Get(value)));
  d.source_id = SourceId(static_cast<uint16_t>(vtd::ccmd::Sid::Get(value)));
  d.function_mask = static_cast<uint8_t>(vtd::ccmd::Fm::Get(value));
  auto done = ExecuteOne(d, d.granularity);
  if (!done.ok()) return done.status();
  pending_context_command = false;
  registers.Set64(vtd::kCcmd, vtd::ccmd::Caig::Set(value & ~vtd::ccmd::Icc::kMask,
                                                   static_cast<uint64_t>(*done)));
  return absl::OkStatus();
}

absl::Status VtdUnit::State::RunIotlbCommand() {
  const uint32_t offset = iotlb_offset + 8;
  const uint64_t value = registers.Get64(offset);
  const uint64_t address = registers.Get64(iotlb_offset);
  vtd::IotlbInvalidate d;
  d.granularity = static_cast<Granularity>(vtd::iotlb::Iirg::Get(value));
  d.domain_id = DomainId(static_cast<uint16_t>(vtd::iotlb::Did::Get(value)));
  d.drain_reads = vtd::iotlb::Dr::Get(value) != 0;
  d.drain_writes = vtd::iotlb::Dw::Get(value) != 0;
  // Without CAP.PSI a page request is carried out on its domain, and IAIG says so (11.4.6.2).
  if (d.granularity == Granularity::kPageOrDevice && !options.caps.page_selective()) {
    d.granularity = Granularity::kDomain;
  }
  if (d.granularity == Granularity::kPageOrDevice) {
    d.address_mask = static_cast<uint8_t>(vtd::iva::Am::Get(address));
    d.leaf_hint = vtd::iva::Ih::Get(address) != 0;
    d.address = Iova(AlignDown(address, kPageSize));
  }
  auto done = ExecuteOne(d, d.granularity);
  if (!done.ok()) return done.status();
  pending_iotlb_command = false;
  registers.Set64(
      offset, vtd::iotlb::Iaig::Set(value & ~vtd::iotlb::Ivt::kMask, static_cast<uint64_t>(*done)));
  return absl::OkStatus();
}

absl::StatusOr<Granularity> VtdUnit::State::ExecuteOne(const vtd::Descriptor& descriptor,
                                                       Granularity granularity) {
  const vtd::RawDescriptor raw = vtd::Encode(descriptor);
  const vtd::DecodeResult checked =
      vtd::Decode(raw, options.caps, /*wide_queue=*/false, {options.qemu_quirks});
  if (checked.error != vtd::Iqei::kNone) return Granularity::kReserved;
  auto outcome = backend.Execute({&raw, 1}, {&checked.descriptor, 1});
  if (!outcome.ok()) return outcome.status();
  return outcome->consumed == 1 ? granularity : Granularity::kReserved;
}

}  // namespace viommu
