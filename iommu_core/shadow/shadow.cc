#include "iommu_core/shadow/shadow.h"

namespace viommu {

void Shadow::Sync(IovaRange range, SyncRun& run) {
  range.end = std::min(range.end, ShadowTable::kAll.end);
  if (Spot spot;
      FindSpot(range, run.leaf_hint, spot) && spot.Unchanged() && run.budget.Spend(spot.entries)) {
    return spot.Count(run.cost);
  }
  bool refused = !range.empty() && SyncRange(range, /*stop_at_refusal=*/false, run);
  // What was unmapped is room now.
  if (!refused && !refused_.empty()) FlushInvalidations(run.cost);
  // A limit that still holds refuses the first map again: no need to ask for each.
  while (!refused && !run.work_refused && !refused_.empty()) {
    const IovaRange again = refused_.First();
    refused = SyncRange(again, /*stop_at_refusal=*/true, run);
    if (!refused && !run.work_refused) refused_.Erase(again);
  }
  FlushInvalidations(run.cost);
}

void Shadow::Release(SyncCost& cost) {
  if (table_->live_pages() != 0) {
    ClearPages(ShadowTable::kAll, cost);
    context_.unit.InvalidateDomain(host_domain_, cost);
    TellDeviceTlbs(ShadowTable::kAll, cost);
  }
  pending_.clear();
  table_->ReleaseUnlinked();
  ForgetAll(cost);
  refused_.Clear();
  unlooked_.Clear();
}

absl::Status Shadow::SetPages(IovaRange range, GuestPhys guest_pa, Access access, SyncRun& run) {
  absl::Status status = table_->Set(range, guest_pa, access, run.cost.ptes_changed);
  if (!status.ok()) ClearPages(range, run.cost);
  return status;
}

void Shadow::TellDeviceTlbs(IovaRange range, SyncCost& cost) {
  for (DeviceTlb* tlb : device_tlbs) {
    tlb->Drop(range);
    ++cost.iotlb_invalidations;
  }
}

void Shadow::TellPending(SyncCost& cost) {
  if (pending_.size() > kMaxPieces) {
    context_.unit.InvalidateDomain(host_domain_, cost);
    TellDeviceTlbs(ShadowTable::kAll, cost);
  } else {
    for (const IovaRange& range : pending_) {
      context_.unit.InvalidateRange(host_domain_, range, cost);
      TellDeviceTlbs(range, cost);
    }
  }
  pending_.clear();
  table_->ReleaseUnlinked();
}

}  // namespace viommu
