#include "iommu_core/load/table_listing.h"

#include <algorithm>

#include "absl/status/status.h"
#include "absl/strings/str_format.h"

namespace viommu {

std::string BdfName(SourceId sid) {
  return absl::StrFormat("0000:%02x:%02x.%d", sid.value() >> 8, sid.value() >> 3 & 0x1f,
                         sid.value() & 7);
}

std::vector<ListedDevice> ListDevices(const PhysicalMemory& memory, const WalkRules& rules,
                                      PhysAddr root_table) {
  const Walker walker(memory, rules);
  std::vector<ListedDevice> devices;
  for (uint32_t sid = 0; sid <= 0xffff; ++sid) {
    const ContextLookup found =
        walker.LookupContext(root_table, SourceId(static_cast<uint16_t>(sid)));
    switch (found.reason) {
      case vtd::FaultReason::kRootNotPresent:
      case vtd::FaultReason::kRootTableAccess:
      case vtd::FaultReason::kContextTableAccess:
      case vtd::FaultReason::kRootReserved:
        sid |= 0xff;  // the same for the whole bus
        break;
      case vtd::FaultReason::kContextNotPresent:
        break;
      default:
        devices.push_back({SourceId(static_cast<uint16_t>(sid)), found.reason, found.entry});
    }
  }
  return devices;
}

void AppendMapping(std::vector<ListedMapping>& list, const ListedMapping& next) {
  if (!list.empty()) {
    ListedMapping& last = list.back();
    if (last.source_id == next.source_id && last.range.end == next.range.first &&
        last.guest_pa + last.range.size_bytes() == next.guest_pa && last.access == next.access &&
        last.pass_through == next.pass_through) {
      last.range.end = next.range.end;
      return;
    }
  }
  list.push_back(next);
}

absl::StatusOr<std::vector<ListedMapping>> ListMappings(const PhysicalMemory& memory,
                                                        const WalkRules& rules,
                                                        const std::vector<ListedDevice>& devices,
                                                        std::optional<SourceId> only) {
  const Walker walker(memory, rules);
  std::vector<ListedMapping> list;
  uint64_t entries_left = kMaxListingEntries;
  for (const ListedDevice& device : devices) {
    if (only && device.source_id != *only) continue;
    if (device.reason != vtd::FaultReason::kNone) continue;
    ListedMapping mapping;
    mapping.source_id = device.source_id;
    mapping.domain_id = device.entry.domain_id();
    const int width = std::min(device.entry.width_bits(), rules.caps.max_guest_width());
    if (device.entry.translation_type() == vtd::TranslationType::kPassThrough) {
      mapping.pass_through = true;
      mapping.range = {Iova(0), Iova(uint64_t{1} << width)};
      mapping.access = kReadWrite;
      AppendMapping(list, mapping);
      continue;
    }
    uint64_t leaves = 0;
    absl::Status status = walker.ForEachLeaf(
        device.entry.second_stage_table(rules.haw_bits), device.entry.levels(),
        {Iova(0), Iova(uint64_t{1} << width)}, entries_left, [&](const LeafMapping& leaf) {
          ++leaves;
          mapping.range = MakeRange(leaf.iova, leaf.size_bytes);
          mapping.guest_pa = ToGuestPhys(leaf.address);
          mapping.access = leaf.access;
          AppendMapping(list, mapping);
        });
    if (!status.ok()) return status;
    entries_left -= std::min(entries_left, leaves);
  }
  return list;
}

}  // namespace viommu
