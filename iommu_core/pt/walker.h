// The reference translation walk: read-only, no caches, written as the specification's steps. It is
// the oracle that every cache and every shadow is compared with, so it shares no code with them.
#ifndef VIOMMU_IOMMU_CORE_PT_WALKER_H_
#define VIOMMU_IOMMU_CORE_PT_WALKER_H_

#include <cstdint>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "iommu_core/base/types.h"
#include "iommu_core/mem/physical_memory.h"
#include "iommu_core/vtd/capability.h"
#include "iommu_core/vtd/fault.h"
#include "iommu_core/vtd/root_context.h"
#include "iommu_core/vtd/second_stage_pte.h"

namespace viommu {

// What the walk may assume about the unit it stands for.
struct WalkRules {
  vtd::Capabilities caps;
  int haw_bits = 48;  // host address width: address bits at and above it are reserved

  // Bits that must be zero in a present entry at `level` (VT-d 9.9, tables of the SS-entries).
  uint64_t ReservedBits(vtd::SecondStagePte pte, int level) const;
  // Whether a leaf may stand at `level`.
  bool LeafAllowed(int level) const {
    return level == 1 || (level == 2 && caps.large_2m()) || (level == 3 && caps.large_1g());
  }
};

// The context entry of a device, or why there is none.
struct ContextLookup {
  vtd::FaultReason reason = vtd::FaultReason::kNone;
  bool fault_processing_disabled = false;  // FPD, known from kContextNotPresent on
  vtd::ContextEntry entry;
  int entries_read = 0;  // 8-byte reads
};

struct TableWalk {
  vtd::FaultReason reason = vtd::FaultReason::kNone;
  PhysAddr page;  // start of the leaf's page, valid when reason is kNone
  int level = 0;  // of the leaf, or of the entry that ended the walk
  Access access;  // AND of R and W over the levels visited
  bool snoop = false;
  int entries_read = 0;
};

struct Translation {
  vtd::FaultReason reason = vtd::FaultReason::kNone;
  bool fault_processing_disabled = false;
  bool pass_through = false;
  PhysAddr address;        // of the byte asked for
  uint64_t page_size = 0;  // bytes of the leaf
  Access access;
  DomainId domain_id;
};

// One leaf as a flattening of the table sees it.
struct LeafMapping {
  Iova iova;
  PhysAddr address;
  uint64_t size_bytes = 0;
  Access access;  // effective, never none
};

class Walker {
 public:
  Walker(const PhysicalMemory& memory, WalkRules rules)
      : memory_(memory), pulled_(memory.pulled()), rules_(rules) {}

  // VT-d 3.4.3: root table -> context table -> context entry. Checks every rule of 9.1 and 9.3.
  ContextLookup LookupContext(PhysAddr root_table, SourceId sid) const;

  // VT-d 3.7: from `table` (a table of `levels`) to the leaf of `iova`. `wanted` none: any leaf.
  // The caller has checked `iova` against the width.
  TableWalk WalkTable(PhysAddr table, int levels, Iova iova, Access wanted) const;

  // Both of the above, with the width check between them and pass-through.
  Translation Translate(PhysAddr root_table, SourceId sid, Iova iova, Access wanted) const;

  // Calls `visit` for every present leaf that overlaps `range`, in ascending order. Entries that a
  // request would fault on (reserved bits, unreadable table) give no leaf. Ends with
  // ResourceExhausted once `max_entries` entries were read.
  absl::Status ForEachLeaf(PhysAddr table, int levels, IovaRange range, uint64_t max_entries,
                           absl::FunctionRef<void(const LeafMapping&)> visit) const;

  const WalkRules& rules() const { return rules_; }

 private:
  // Pulled memory: the tables below the slots of `table` that `range` touches, in one wait.
  void PrefetchBelow(PhysAddr table, int level, uint64_t first, uint64_t end) const;

  const PhysicalMemory& memory_;
  const PulledMemory* const pulled_;  // null: memory in place
  const WalkRules rules_;
};

}  // namespace viommu

#endif  // VIOMMU_IOMMU_CORE_PT_WALKER_H_
