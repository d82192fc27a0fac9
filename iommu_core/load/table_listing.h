// Lists what a guest's tables, or a shadow, let each device reach, in maximal contiguous pieces.
#ifndef VIOMMU_IOMMU_CORE_LOAD_TABLE_LISTING_H_
#define VIOMMU_IOMMU_CORE_LOAD_TABLE_LISTING_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "iommu_core/base/types.h"
#include "iommu_core/mem/physical_memory.h"
#include "iommu_core/pt/walker.h"

namespace viommu {

// Table entries that one listing may read.
inline constexpr uint64_t kMaxListingEntries = uint64_t{1} << 28;

// A device that has a context entry.
struct ListedDevice {
  SourceId source_id;
  vtd::FaultReason reason = vtd::FaultReason::kNone;  // not kNone: its entry is not usable
  vtd::ContextEntry entry;
};

// Both coordinates are contiguous and the access is the same all over.
struct ListedMapping {
  SourceId source_id;
  DomainId domain_id;
  bool pass_through = false;  // no table: guest_pa equals iova
  IovaRange range;
  GuestPhys guest_pa;
  Access access;
};

// "0000:00:03.0"
std::string BdfName(SourceId sid);

// Every device whose context entry is present, ascending; entries that fault are listed with their
// reason. `root_table` as RTADDR points to it.
std::vector<ListedDevice> ListDevices(const PhysicalMemory& memory, const WalkRules& rules,
                                      PhysAddr root_table);

// Walks the tables of every device of the list (only `only`, if given) with the reference walk.
// ResourceExhausted: more entries than kMaxListingEntries.
absl::StatusOr<std::vector<ListedMapping>> ListMappings(const PhysicalMemory& memory,
                                                        const WalkRules& rules,
                                                        const std::vector<ListedDevice>& devices,
                                                        std::optional<SourceId> only);

// Appends `next` to `list`, or grows its last entry if `next` continues it.
void AppendMapping(std::vector<ListedMapping>& list, const ListedMapping& next);

}  // namespace viommu

#endif  // VIOMMU_IOMMU_CORE_LOAD_TABLE_LISTING_H_
