#include "iommu_core/shadow/walk_shadow.h"

#include <algorithm>
#include <utility>

namespace viommu {

namespace {

// The smallest range that holds both; an empty one counts for nothing.
IovaRange Hull(IovaRange a, IovaRange b) {
  if (a.empty()) return b;
  if (b.empty()) return a;
  return {std::min(a.first, b.first), std::max(a.end, b.end)};
}

}  // namespace

// One pass over a range, in ascending order.
struct WalkShadow::Pass {
  Pass(IovaRange r, bool stop, SyncRun& s)
      : range(r), stop_at_refusal(stop), run(s), next(r.first.value()) {}

  IovaRange range;
  const bool stop_at_refusal;
  SyncRun& run;
  uint64_t next;         // addresses below were looked at
  uint64_t gap_end = 0;  // no record starts in [next, gap_end)
  // Records here are gone while their pages may still stand in the table, until the pass gets there
  // (a superpage that the guest split).
  IovaRange residue;
  IovaRange late;  // changed in the residue, after its unmap call had told the caches
  bool refused = false;

  void LeaveBehind(IovaRange r) { residue = Hull(residue, r); }
};

absl::StatusOr<std::unique_ptr<WalkShadow>> WalkShadow::Create(const ShadowContext& context,
                                                               GuestTable guest_table,
                                                               DomainId host_domain) {
  auto table = ShadowTable::Create(context.pool, context.map);
  if (!table.ok()) return table.status();
  return std::unique_ptr<WalkShadow>(
      new WalkShadow(context, *std::move(table), guest_table, host_domain));
}

WalkShadow::WalkShadow(const ShadowContext& context, std::unique_ptr<ShadowTable> table,
                       GuestTable guest_table, DomainId host_domain)
    // Each unmap call tells the IOMMU before it returns (vfio_dma_do_unmap).
    : Shadow(context, std::move(table), guest_table, host_domain, /*batch_invalidations=*/false),
      container_(context.dma_entry_limit, context.pins) {}

void WalkShadow::ForgetAll(SyncCost& cost) {
  if (!container_.mappings().empty()) UnmapRecords(ShadowTable::kAll, cost);
}

// A record that an end of the range would cut is taken in whole: type1 unmaps nothing less.
IovaRange WalkShadow::CoverRecords(IovaRange range) const {
  const auto& all = container_.mappings();
  const auto extend = [&](Iova at) {
    const auto it = container_.FirstOverlap(MakeRange(at, 1));
    if (it == all.end()) return;
    range.first = std::min(range.first, it->first);
    range.end = std::max(range.end, it->first + it->second.size_bytes);
  };
  extend(range.first);
  extend(range.end - 1);
  return range;
}

bool WalkShadow::SyncRange(IovaRange range, bool stop_at_refusal, SyncRun& run) {
  range = CoverRecords(range);
  Pass pass(range, stop_at_refusal, run);
  Halt halt = Halt::kNo;
  switch (guest_table_.kind) {
    case GuestTable::Kind::kSecondStage:
      // Addresses beyond the width are not looked up; they are a hole (width narrowed).
      if (pass.next < guest_table_.end) {
        pass.range.end = std::min(range.end, Iova(guest_table_.end));
        halt = WalkTable(guest_table_.table, guest_table_.levels, 0, kPermissionBits, pass);
        pass.range.end = range.end;
      }
      break;
    case GuestTable::Kind::kPassThrough:
      if (pass.next < context_.guest_ram_bytes) {
        halt = OnLeaf({Iova(0), Iova(context_.guest_ram_bytes)}, GuestPhys(0), kReadWrite, pass);
      }
      break;
    case GuestTable::Kind::kNone:
      break;
  }
  if (halt == Halt::kNo && pass.next < range.end.value()) {
    OnHole({Iova(pass.next), range.end}, pass);
  }
  if (halt == Halt::kWorkBound) GiveUp(pass);
  if (!pass.late.empty()) Invalidate(pass.late, run.cost);
  return pass.refused;
}

Shadow::Halt WalkShadow::WalkTable(PhysAddr table, int level, uint64_t table_first,
                                   uint64_t permissions, Pass& pass) {
  SyncCost& cost = pass.run.cost;
  ++cost.table_pages_read;
  const int shift = vtd::LevelShift(level);
  const uint64_t span = uint64_t{1} << shift;
  const uint64_t begin = std::max(pass.range.first.value(), table_first);
  uint64_t index = (begin - table_first) >> shift;
  if (context_.pulled != nullptr && level > 1 && pass.range.end.value() > table_first) {
    const uint64_t last = (pass.range.end.value() - 1 - table_first) >> shift;
    PrefetchBelow(table, level, index, std::min(last + 1, uint64_t{vtd::kEntriesPerTable}),
                  permissions);
  }
  for (uint64_t at = table_first + (index << shift);
       index < vtd::kEntriesPerTable && at < pass.range.end.value(); ++index, at += span) {
    if (!pass.run.budget.Spend(1)) return Halt::kWorkBound;
    const auto raw = context_.guest.Read64(table + index * sizeof(uint64_t));
    ++cost.ptes_read;
    cost.bytes_read += sizeof(uint64_t);
    Halt halt = Halt::kNo;
    // An entry that cannot be read maps nothing.
    const uint64_t entry = raw.value_or(0);
    const EntryKind kind = context_.rules.Classify(entry, level);
    const uint64_t effective = entry & permissions & kPermissionBits;
    if (kind == EntryKind::kAbsent || effective == 0) {
      halt = OnHole(MakeRange(Iova(at), span), pass);
    } else if (kind == EntryKind::kLeaf) {
      ++cost.leaves_visited;
      halt = OnLeaf(MakeRange(Iova(at), span), context_.rules.AddressOf(entry), ToAccess(effective),
                    pass);
    } else {
      halt = WalkTable(ToPhys(context_.rules.AddressOf(entry)), level - 1, at, effective, pass);
    }
    if (halt != Halt::kNo) return halt;
  }
  return Halt::kNo;
}

void WalkShadow::PrefetchBelow(PhysAddr table, int level, uint64_t first, uint64_t end,
                               uint64_t permissions) const {
  if (end - first <= 1) return;  // one table below: the read of it waits just as long
  std::vector<PhysAddr> tables;
  for (uint64_t index = first; index < end; ++index) {
    const uint64_t entry = context_.guest.Read64(table + index * sizeof(uint64_t)).value_or(0);
    if ((entry & permissions) == 0) continue;
    if (context_.rules.Classify(entry, level) != EntryKind::kTable) continue;
    tables.push_back(ToPhys(context_.rules.AddressOf(entry)));
  }
  context_.pulled->Prefetch(tables);
}

IovaRange WalkShadow::UnmapRecords(IovaRange range, SyncCost& cost) {
  const auto& all = container_.mappings();
  auto it = container_.FirstOverlap(range);
  for (; it != all.end() && it->first < range.end; ++it) {
    range.first = std::min(range.first, it->first);
    range.end = std::max(range.end, it->first + it->second.size_bytes);
  }
  // Whole records only, so this cannot fail.
  const auto unmapped = container_.Unmap(range);
  ++cost.dma_unmaps;
  if (unmapped.ok()) cost.pages_unpinned += unmapped->page_count;
  return range;
}

Shadow::Halt WalkShadow::OnLeaf(IovaRange leaf, GuestPhys guest_pa, Access access, Pass& pass) {
  const auto record = container_.FirstOverlap(leaf);
  const bool some = record != container_.mappings().end();
  if (some && record->first == leaf.first && record->second.size_bytes == leaf.size_bytes() &&
      record->second.guest_pa == guest_pa && record->second.access == access) {
    pass.next = leaf.end.value();
    return Halt::kNo;
  }
  // Entries to be written count as work too: a guest's 1 GiB leaf over 4 KiB host pages is 2^18.
  const uint64_t entries = leaf.size_bytes() >> context_.map.granule_shift();
  if (entries > 1 && !pass.run.budget.Spend(entries)) {
    pass.next = std::min(pass.next, leaf.first.value());
    return Halt::kWorkBound;
  }
  SyncCost& cost = pass.run.cost;
  IovaRange unmapped;
  if (some) {
    unmapped = UnmapRecords(leaf, cost);
    pass.LeaveBehind({leaf.end, unmapped.end});
  }
  Settle(leaf);
  const uint64_t changed_before = cost.ptes_changed;
  ++cost.dma_maps;
  absl::Status status = container_.Map(leaf, guest_pa, access);
  if (status.ok()) {
    cost.pages_pinned += leaf.size_bytes() >> kPageShift;
    status = SetPages(leaf, guest_pa, access, pass.run);
    if (!status.ok()) UnmapRecords(leaf, cost);
  } else {
    ClearPages(leaf, cost);
  }
  if (some) {
    Invalidate(unmapped, cost);
  } else if (pass.residue.Overlaps(leaf) && cost.ptes_changed != changed_before) {
    pass.late = Hull(pass.late, leaf);
  }
  pass.next = leaf.end.value();
  if (status.ok()) return Halt::kNo;
  ++cost.dma_map_failures;
  Refuse(leaf);
  pass.refused = true;
  // What is left behind is gone through to its end first.
  return pass.stop_at_refusal && pass.residue.end <= leaf.end ? Halt::kRefused : Halt::kNo;
}

Shadow::Halt WalkShadow::OnHole(IovaRange hole, Pass& pass) {
  Settle(hole);
  SyncCost& cost = pass.run.cost;
  pass.next = hole.end.value();
  if (hole.end.value() > pass.gap_end) {
    const auto& all = container_.mappings();
    if (container_.FirstOverlap(hole) != all.end()) {
      ClearPages(hole, cost);
      const IovaRange unmapped = UnmapRecords(hole, cost);
      Invalidate(unmapped, cost);
      pass.LeaveBehind({hole.end, unmapped.end});
      pass.gap_end = hole.end.value();
      return Halt::kNo;
    }
    const auto next = all.lower_bound(hole.end);
    pass.gap_end = next == all.end() ? ~uint64_t{0} : next->first.value();
  }
  if (pass.residue.Overlaps(hole)) {
    const uint64_t changed_before = cost.ptes_changed;
    ClearPages(hole, cost);
    if (cost.ptes_changed != changed_before) pass.late = Hull(pass.late, hole);
  }
  return Halt::kNo;
}

void WalkShadow::GiveUp(Pass& pass) {
  pass.run.work_refused = true;
  const IovaRange rest{Iova(pass.next), std::max(pass.range.end, pass.residue.end)};
  if (rest.empty()) return;
  ClearPages(rest, pass.run.cost);
  if (container_.FirstOverlap(rest) != container_.mappings().end()) {
    UnmapRecords(rest, pass.run.cost);
  }
  Invalidate(rest, pass.run.cost);
  Abandon(rest);
}

}  // namespace viommu
