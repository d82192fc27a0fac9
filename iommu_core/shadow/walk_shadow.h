// The strategies `walk` and `walk-shared`: read every slot one by one, look each leaf up in a tree
// of mappings (QEMU vtd_page_walk and its iova tree).
#ifndef VIOMMU_IOMMU_CORE_SHADOW_WALK_SHADOW_H_
#define VIOMMU_IOMMU_CORE_SHADOW_WALK_SHADOW_H_

#include <memory>

#include "iommu_core/shadow/shadow.h"

namespace viommu {

// The tree is the DMA container's. (QEMU keeps one of its own beside the kernel's.)
class WalkShadow final : public Shadow {
 public:
  static absl::StatusOr<std::unique_ptr<WalkShadow>> Create(const ShadowContext& context,
                                                            GuestTable guest_table,
                                                            DomainId host_domain);

  // The device moved to another table. The mappings stay until Sync finds them different, so that a
  // page which both tables map alike never goes missing.
  void Retarget(const GuestTable& guest_table) { guest_table_ = guest_table; }

  const DmaAccount& account() const override { return container_.account(); }
  uint64_t bookkeeping_bytes() const override {
    return container_.bookkeeping_bytes() + extra_bytes();
  }
  const DmaContainer& container() const { return container_; }

 private:
  struct Pass;

  WalkShadow(const ShadowContext& context, std::unique_ptr<ShadowTable> table,
             GuestTable guest_table, DomainId host_domain);
  bool SyncRange(IovaRange range, bool stop_at_refusal, SyncRun& run) override;
  void ForgetAll(SyncCost& cost) override;

  IovaRange CoverRecords(IovaRange range) const;
  Halt WalkTable(PhysAddr table, int level, uint64_t table_first, uint64_t permissions, Pass& pass);
  // Remote guest memory: the tables below slots [first, end) in one wait.
  void PrefetchBelow(PhysAddr table, int level, uint64_t first, uint64_t end,
                     uint64_t permissions) const;
  Halt OnLeaf(IovaRange leaf, GuestPhys guest_pa, Access access, Pass& pass);
  Halt OnHole(IovaRange hole, Pass& pass);
  // Everything from `pass.next` on could not be looked at.
  void GiveUp(Pass& pass);
  // One unmap call for the mappings that overlap `range`; returns what they covered.
  IovaRange UnmapRecords(IovaRange range, SyncCost& cost);

  DmaContainer container_;
};

}  // namespace viommu

#endif  // VIOMMU_IOMMU_CORE_SHADOW_WALK_SHADOW_H_
