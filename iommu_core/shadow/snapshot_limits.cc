// What has no place: tables without a copy, and what a bounded pass did not reach.
#include <algorithm>
#include <utility>

#include "iommu_core/shadow/snapshot_shadow.h"

namespace viommu {

Shadow::Halt SnapshotShadow::RefuseTable(PhysAddr table, IovaRange span, int level,
                                         uint64_t permissions, bool visit_all, Pass& pass) {
  if (pass.stop_at_refusal && !visit_all) {
    LeaveUncopied(pass);
    pass.refused = true;
    ++pass.run.cost.dma_maps;
    ++pass.run.cost.dma_map_failures;
    pass.next = std::max(span.first, pass.range.first).value();
    return Halt::kRefused;
  }
  return ReadUncopied(table, span, level, permissions, visit_all, pass);
}

void SnapshotShadow::LeaveUncopied(Pass& pass) {
  // The log names lines of copies only, so a flush compares everything until there is room.
  pass.uncopied = true;
  complete_ = false;
}

Shadow::Halt SnapshotShadow::ReadUncopied(PhysAddr table, IovaRange span, int level,
                                          uint64_t permissions, bool visit_all, Pass& pass) {
  LeaveUncopied(pass);
  SyncCost& cost = pass.run.cost;
  if (visit_all) {
    const uint64_t changed_before = cost.ptes_changed;
    ClearPages(span, cost);
    if (cost.ptes_changed != changed_before) Invalidate(span, cost);
  }
  Settle(span);
  pass.give_up_end = std::max(pass.give_up_end, span.end);
  return RefuseLeaves(table, span, level, permissions, pass);
}

Shadow::Halt SnapshotShadow::RefuseLeaves(PhysAddr table, IovaRange span, int level,
                                          uint64_t permissions, Pass& pass) {
  SyncCost& cost = pass.run.cost;
  ++cost.table_pages_read;
  const uint64_t size = uint64_t{1} << vtd::LevelShift(level);
  const uint64_t mask = vtd::kEntriesPerTable - 1;
  for (Iova at(AlignDown(span.first.value(), size)); at < span.end; at = at + size) {
    pass.next = std::max(at, span.first).value();
    if (!pass.run.budget.Spend(1)) return Halt::kWorkBound;
    const uint64_t slot = (at.value() >> vtd::LevelShift(level)) & mask;
    const uint64_t entry = context_.guest.Read64(table + slot * sizeof(uint64_t)).value_or(0);
    ++cost.ptes_read;
    cost.bytes_read += sizeof(uint64_t);
    const EntryKind kind = context_.rules.Classify(entry, level);
    const uint64_t effective = entry & permissions & kPermissionBits;
    if (kind == EntryKind::kAbsent || effective == 0) continue;
    const IovaRange range = MakeRange(at, size);
    if (kind == EntryKind::kLeaf) {
      ++cost.leaves_visited;
      ++cost.dma_maps;
      ++cost.dma_map_failures;
      Refuse(range);
      pass.refused = true;
      continue;
    }
    const IovaRange inside{std::max(range.first, span.first), std::min(range.end, span.end)};
    const PhysAddr below = ToPhys(context_.rules.AddressOf(entry));
    const Halt halt = RefuseLeaves(below, inside, level - 1, effective, pass);
    if (halt != Halt::kNo) return halt;
  }
  pass.next = span.end.value();
  return Halt::kNo;
}

bool SnapshotShadow::HasNoLeaf(PhysAddr table, uint64_t permissions, Pass& pass) const {
  const uint64_t* page = context_.guest.PageInPlace(table);
  if (page == nullptr || !pass.run.budget.Spend(vtd::kEntriesPerTable)) return false;
  SyncCost& cost = pass.run.cost;
  cost.ptes_read += vtd::kEntriesPerTable;
  cost.bytes_read += kPageSize;
  const LeafRules rules(context_.rules, context_.map, permissions);
  return std::none_of(page, page + vtd::kEntriesPerTable, [&](const uint64_t& entry) {
    return rules.Effective(LoadEntry(&entry)) != 0;
  });
}

void SnapshotShadow::NoteIfEmpty(const TableNode& node) {
  if (node.level != 1 || pool_.nodes < pool_.max_nodes) return;
  if (!table().OpenLeafTable(Iova(node.first))) emptied_.push_back(node.first);
}

void SnapshotShadow::FreeEmptied() {
  for (const uint64_t first : std::exchange(emptied_, {})) {
    const auto slot_of = [&](const TableNode& node) {
      return (first >> vtd::LevelShift(node.level)) % vtd::kEntriesPerTable;
    };
    TableNode* above = root_.get();
    while (above != nullptr && above->level > 2) above = (*above->below)[slot_of(*above)].get();
    if (above == nullptr) continue;
    const size_t slot = slot_of(*above);
    const TableNode* leaves = (*above->below)[slot].get();
    if (leaves == nullptr) continue;
    const bool empty = std::none_of(leaves->last.begin(), leaves->last.end(), [&](uint64_t raw) {
      return KindOf(raw, *leaves) == EntryKind::kLeaf;
    });
    if (!empty) continue;
    Drop(*above, static_cast<int>(slot));
    complete_ = false;  // the log no longer names its lines
  }
}

void SnapshotShadow::DropRange(TableNode& node, IovaRange range, Dropped& sum, IovaRange& hull) {
  for (int slot = 0; slot < vtd::kEntriesPerTable; ++slot) {
    const IovaRange span = node.SlotRange(slot);
    if (!span.Overlaps(range)) continue;
    const bool whole = range.first <= span.first && span.end <= range.end;
    if (!whole && node.below != nullptr && (*node.below)[static_cast<size_t>(slot)] != nullptr) {
      DropRange(*(*node.below)[static_cast<size_t>(slot)], range, sum, hull);
      continue;
    }
    const Dropped part = Drop(node, slot);
    if (part.entries == 0) continue;
    sum.entries += part.entries;
    sum.pages += part.pages;
    hull = {std::min(hull.first, span.first), std::max(hull.end, span.end)};
  }
}

void SnapshotShadow::GiveUp(IovaRange rest, SyncRun& run) {
  run.work_refused = true;
  if (rest.empty()) return;
  SyncCost& cost = run.cost;
  Dropped dropped;
  const IovaRange asked = rest;
  if (root_ != nullptr) DropRange(*root_, asked, dropped, rest);
  ClearPages(rest, cost);
  Invalidate(rest, cost);
  Uncharge(dropped, cost);
  Abandon(rest);
}

}  // namespace viommu
