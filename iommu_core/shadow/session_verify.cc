// The oracle: shadows compared with the reference walk of pt/walker. What it reads is not counted
// in the costs, and nothing here is shared with the synchronisation.
#include <algorithm>

#include "iommu_core/base/errors.h"
#include "iommu_core/shadow/mapping_runs.h"
#include "iommu_core/shadow/session_impl.h"

namespace viommu {

bool SessionImpl::WantsVerify(IovaRange range) {
  constexpr uint64_t kAlwaysPages = 64;
  constexpr uint64_t kEvery = 64;
  if (config_.verify == Verify::kOff || nested_ != nullptr) return false;
  if (config_.verify == Verify::kFull) return true;
  if (range.size_bytes() <= kAlwaysPages * kPageSize) return true;
  return verify_eligible_++ % kEvery == 0;
}

std::optional<std::vector<LeafMapping>> SessionImpl::ReferenceRuns(const GuestTable& table,
                                                                   IovaRange range) const {
  return RunsOf(reference_, table, range);
}

std::optional<std::vector<LeafMapping>> SessionImpl::RunsOf(const Walker& walker,
                                                            const GuestTable& table,
                                                            IovaRange range) const {
  MappingRuns runs(range);
  switch (table.kind) {
    case GuestTable::Kind::kNone:
      break;
    case GuestTable::Kind::kPassThrough:
      runs.Append({Iova(0), PhysAddr(0), config_.guest_ram_bytes, kReadWrite});
      break;
    case GuestTable::Kind::kSecondStage: {
      const IovaRange inside{range.first, std::min(range.end, Iova(table.end))};
      const absl::Status status =
          walker.ForEachLeaf(table.table, table.levels, inside, config_.max_work_per_invalidation,
                             [&](const LeafMapping& leaf) { runs.Append(leaf); });
      // More entries than a sync may read: there is nothing to compare with.
      if (!status.ok()) return std::nullopt;
      break;
    }
  }
  return runs.Take();
}

std::vector<LeafMapping> SessionImpl::HostRuns(PhysAddr root, int levels, IovaRange range) const {
  MappingRuns runs(range);
  const Walker walker(*host_memory_, PhysicalUnit::Rules());
  walker
      .ForEachLeaf(root, levels, range, ~uint64_t{0},
                   [&](LeafMapping leaf) {
                     leaf.address = ToPhys(map_.ToGuest(ToHostPhys(leaf.address)));
                     runs.Append(leaf);
                   })
      .IgnoreError();  // no bound was given
  return runs.Take();
}

GuestTable SessionImpl::ReferenceTable(SourceId sid) const {
  GuestTable out;
  if (!registers_.translation_enabled) return out;
  const ContextLookup found = reference_.LookupContext(registers_.root_table, sid);
  if (found.reason != vtd::FaultReason::kNone) return out;
  if (found.entry.translation_type() == vtd::TranslationType::kPassThrough) {
    out.kind = GuestTable::Kind::kPassThrough;
    return out;
  }
  out.kind = GuestTable::Kind::kSecondStage;
  out.table = found.entry.second_stage_table(config_.guest_haw_bits);
  out.levels = found.entry.levels();
  out.end = uint64_t{1} << std::min(found.entry.width_bits(), config_.guest_caps.max_guest_width());
  return out;
}

std::vector<LeafMapping> SessionImpl::FlattenLocked(SourceId sid) const {
  if (nested_ != nullptr) {
    // Both tables, walked without the unit's caches.
    const Walker walker(nested_->memory(), reference_.rules());
    MappingRuns runs(ShadowTable::kAll);
    const GuestTable table = ReferenceTable(sid);
    if (table.kind == GuestTable::Kind::kPassThrough)
      return *ReferenceRuns(table, ShadowTable::kAll);
    if (table.kind == GuestTable::Kind::kNone) return {};
    walker
        .ForEachLeaf(table.table, table.levels, {Iova(0), Iova(table.end)},
                     config_.max_work_per_invalidation,
                     [&](const LeafMapping& leaf) {
                       // What the second table does not hold is not reachable.
                       if (leaf.address.value() >= config_.guest_ram_bytes) return;
                       LeafMapping inside = leaf;
                       inside.size_bytes = std::min(leaf.size_bytes,
                                                    config_.guest_ram_bytes - leaf.address.value());
                       runs.Append(inside);
                     })
        .IgnoreError();
    return runs.Take();
  }
  const Walker walker(*host_memory_, PhysicalUnit::Rules());
  const ContextLookup found = walker.LookupContext(unit_->root_table(), sid);
  if (found.reason != vtd::FaultReason::kNone) return {};
  return HostRuns(found.entry.second_stage_table(HostMap::kHostWidth), found.entry.levels(),
                  ShadowTable::kAll);
}

absl::StatusOr<std::vector<LeafMapping>> SessionImpl::FlattenShadow(SourceId sid) const {
  absl::MutexLock lock(&mu_);
  if (devices_.count(sid) == 0) return errors::UnknownDevice(sid);
  LookAgain();
  return FlattenLocked(sid);
}

LeafMapping SessionImpl::HostPageForTest(SourceId sid, Iova iova) const {
  const Iova page(AlignDown(iova.value(), kPageSize));
  const Walker walker(*host_memory_, PhysicalUnit::Rules());
  const Translation found = walker.Translate(unit_->root_table(), sid, page, Access{});
  if (found.reason != vtd::FaultReason::kNone) return {page, PhysAddr(0), kPageSize, Access{}};
  return {page, ToPhys(map_.ToGuest(ToHostPhys(found.address))), kPageSize, found.access};
}

uint64_t SessionImpl::VerifyAllLocked(SyncCost& cost) {
  if (nested_ != nullptr) return 0;  // there is no second record that could differ
  uint64_t differing = 0;
  OracleLooksAgain();
  for (const auto& [sid, device] : devices_) {
    if (device->no_room) continue;  // refused and counted; nothing is mapped for it
    const auto reference = ReferenceRuns(ReferenceTable(sid), ShadowTable::kAll);
    if (PullFailed()) break;
    if (!reference) continue;
    std::vector<IovaRange> excluded;
    if (device->shadow != nullptr) {
      excluded = device->shadow->refused().Within(ShadowTable::kAll);
      const auto unlooked = device->shadow->unlooked().Within(ShadowTable::kAll);
      excluded.insert(excluded.end(), unlooked.begin(), unlooked.end());
      std::sort(excluded.begin(), excluded.end(),
                [](const IovaRange& a, const IovaRange& b) { return a.first < b.first; });
    }
    const RunComparison compared =
        CompareRuns(ShadowTable::kAll, FlattenLocked(sid), *reference, *reference, excluded);
    differing += compared.differing_pages;
    cost.verified_pages += compared.compared_pages;
  }
  return differing;
}

uint64_t SessionImpl::VerifyAll() {
  absl::MutexLock lock(&mu_);
  LookAgain();
  return VerifyAllLocked(stats_.cost);
}

}  // namespace viommu
