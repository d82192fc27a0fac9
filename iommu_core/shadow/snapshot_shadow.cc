#include "iommu_core/shadow/snapshot_shadow.h"

#include <algorithm>
#include <bit>
#include <utility>

namespace viommu {
namespace {

// Fewer entries than this are read one by one: a page-selective invalidation, mostly.
constexpr int kBulkEntries = 32;

}  // namespace

absl::StatusOr<std::unique_ptr<SnapshotShadow>> SnapshotShadow::Create(const ShadowContext& context,
                                                                       GuestTable guest_table,
                                                                       DomainId host_domain,
                                                                       NodePool& pool,
                                                                       TableIndex* index) {
  auto table = ShadowTable::Create(context.pool, context.map);
  if (!table.ok()) return table.status();
  return std::unique_ptr<SnapshotShadow>(
      new SnapshotShadow(context, *std::move(table), guest_table, host_domain, pool, index));
}

SnapshotShadow::SnapshotShadow(const ShadowContext& context, std::unique_ptr<ShadowTable> table,
                               GuestTable guest_table, DomainId host_domain, NodePool& pool,
                               TableIndex* index)
    : Shadow(context, std::move(table), guest_table, host_domain,
             /*batch_invalidations=*/true),
      pool_(pool),
      index_(index),
      account_(context.dma_entry_limit, context.pins) {}

SnapshotShadow::~SnapshotShadow() {
  if (root_ != nullptr) FreeNode(std::move(root_));
}

std::unique_ptr<TableNode> SnapshotShadow::NewNode(PhysAddr guest_table, uint64_t first, int level,
                                                   uint64_t permissions) {
  if (pool_.nodes >= pool_.max_nodes) return nullptr;
  ++pool_.nodes;
  auto node = std::make_unique<TableNode>();
  PointAt(*node, guest_table);
  node->first = first;
  node->level = static_cast<uint8_t>(level);
  node->permissions = static_cast<uint8_t>(permissions);
  node->owner = this;
  if (level > 1) {
    node->below = std::make_unique<std::array<std::unique_ptr<TableNode>, vtd::kEntriesPerTable>>();
  }
  node_bytes_ += sizeof(TableNode) + (level > 1 ? sizeof(*node->below) : 0);
  if (index_ != nullptr) index_->Add(*node);
  return node;
}

void SnapshotShadow::FreeNode(std::unique_ptr<TableNode> node) {
  if (node->below != nullptr) {
    for (auto& below : *node->below) {
      if (below != nullptr) FreeNode(std::move(below));
    }
  }
  if (index_ != nullptr) index_->Remove(*node);
  if (node->queued) dirty_[node->queue_index].node = nullptr;
  node_bytes_ -= sizeof(TableNode) + (node->level > 1 ? sizeof(*node->below) : 0);
  --pool_.nodes;
}

void SnapshotShadow::Enqueue(TableNode& node) {
  if (node.queued) return;
  node.queued = true;
  node.queue_index = static_cast<uint32_t>(dirty_.size());
  const auto depth = static_cast<uint64_t>(guest_table_.levels - node.level);
  dirty_.push_back({depth << 60 | node.first >> kPageShift, &node});
}

void SnapshotShadow::ForgetAll(SyncCost& cost) {
  const Dropped all{account_.entries(), account_.pinned_pages()};
  if (root_ != nullptr) FreeNode(std::move(root_));
  complete_ = false;
  identity_mapped_ = false;
  Uncharge(all, cost);
}

void SnapshotShadow::Uncharge(Dropped dropped, SyncCost& cost) {
  if (dropped.entries == 0) return;
  account_.Unmap(dropped.entries, dropped.pages);
  ++cost.dma_unmaps;
  cost.pages_unpinned += dropped.pages;
}

bool SnapshotShadow::FindSpot(IovaRange range, bool leaf_hint, Spot& spot) const {
  if (range.size_bytes() != kPageSize || range.first >= Iova(guest_table_.end)) return false;
  if (root_ == nullptr || !nothing_noted()) return false;
  uint32_t tables = 0;
  uint32_t entries = 1;
  int shift = vtd::LevelShift(guest_table_.levels);
  for (const TableNode* node = root_.get();; shift -= vtd::kIndexBits) {
    if (node->page == nullptr) return false;
    const size_t slot = (range.first.value() >> shift) % vtd::kEntriesPerTable;
    const TableNode* const below = node->below == nullptr ? nullptr : (*node->below)[slot].get();
    ++tables;
    if (below == nullptr) {
      spot = {node->page + slot, &node->last[slot], tables, entries};
      return true;
    }
    if (!leaf_hint) {
      ++entries;
      if (LoadEntry(node->page + slot) != node->last[slot]) return false;
    }
    node = below;
  }
}

bool SnapshotShadow::SyncRange(IovaRange range, bool stop_at_refusal, SyncRun& run) {
  Pass pass(range, stop_at_refusal, run);
  pass.scarce = !refused().empty();
  Halt halt = Halt::kNo;
  switch (guest_table_.kind) {
    case GuestTable::Kind::kNone:
      break;
    case GuestTable::Kind::kPassThrough:
      halt = SyncIdentity(pass);
      break;
    case GuestTable::Kind::kSecondStage: {
      pass.range.end = std::min(range.end, Iova(guest_table_.end));
      pass.give_up_end = pass.range.end;
      if (pass.range.empty()) break;
      if (root_ == nullptr) {
        root_ = NewNode(guest_table_.table, 0, guest_table_.levels, kPermissionBits);
      }
      const bool whole = pass.range.first == Iova(0) && pass.range.end == Iova(guest_table_.end);
      if (root_ == nullptr) {
        halt = RefuseTable(guest_table_.table, pass.range, guest_table_.levels, kPermissionBits,
                           /*visit_all=*/false, pass);
      } else if (whole && goes_by_log() && !stop_at_refusal) {
        SyncDirty(pass);
      } else {
        // What was refused differs from its copy, so the pass comes by and refuses it again.
        Settle(pass.range);
        halt = SyncNode(*root_, /*visit_all=*/false, pass);
        if (whole && halt == Halt::kNo) complete_ = !pass.uncopied;
      }
      if (halt == Halt::kRefused) Refuse({Iova(pass.next), pass.range.end});
      break;
    }
  }
  if (halt == Halt::kWorkBound) {
    complete_ = false;
    GiveUp({Iova(pass.next), std::max(pass.range.end, pass.give_up_end)}, run);
  }
  if (!emptied_.empty()) FreeEmptied();
  return pass.refused;
}

Shadow::Halt SnapshotShadow::SyncIdentity(Pass& pass) {
  const IovaRange ram{Iova(0), Iova(context_.guest_ram_bytes)};
  if (identity_mapped_ || ram.empty() || !ram.Overlaps(pass.range)) return Halt::kNo;
  SyncCost& cost = pass.run.cost;
  if (!pass.run.budget.Spend(ram.size_bytes() >> context_.map.granule_shift())) {
    pass.next = 0;
    pass.give_up_end = ram.end;
    return Halt::kWorkBound;
  }
  ++cost.dma_maps;
  const uint64_t pages = ram.size_bytes() >> kPageShift;
  absl::Status status = account_.Map(pages);
  if (status.ok()) {
    cost.pages_pinned += pages;
    status = SetPages(ram, GuestPhys(0), kReadWrite, pass.run);
    if (!status.ok()) Uncharge({1, pages}, cost);
  }
  Settle(ram);
  identity_mapped_ = status.ok();
  if (!status.ok()) {
    ++cost.dma_map_failures;
    Refuse(ram);
    pass.refused = true;
  }
  return Halt::kNo;
}

// Only lines that the log named, upper levels first: they may take lower ones away.
void SnapshotShadow::SyncDirty(Pass& pass) {
  const auto before = [](const DirtyNode& a, const DirtyNode& b) { return a.order < b.order; };
  if (!std::is_sorted(dirty_.begin(), dirty_.end(), before)) {
    std::sort(dirty_.begin(), dirty_.end(), before);
    for (size_t i = 0; i < dirty_.size(); ++i) {
      if (dirty_[i].node != nullptr) dirty_[i].node->queue_index = static_cast<uint32_t>(i);
    }
  }
  bool bounded = false;
  for (size_t i = 0; i < dirty_.size(); ++i) {
    if (i + 1 < dirty_.size() && dirty_[i + 1].node != nullptr) PrefetchLines(*dirty_[i + 1].node);
    TableNode* node = dirty_[i].node;
    if (node == nullptr) continue;  // freed with a table above it
    node->queued = false;
    const uint64_t lines = std::exchange(node->dirty_lines, 0);
    if (bounded) {
      GiveUp({Iova(node->first), Iova(node->end())}, pass.run);
      continue;
    }
    pass.give_up_end = Iova(0);
    if (SyncLines(*node, lines, pass) == Halt::kNo) continue;
    // The log's marks are gone: what they were for is given up, and everything compared next time.
    bounded = true;
    complete_ = false;
    GiveUp({Iova(pass.next), std::max(pass.give_up_end, Iova(node->end()))}, pass.run);
  }
  dirty_.clear();
}

void SnapshotShadow::PrefetchLines(const TableNode& node) {
  const uint64_t* page = node.page;
  if (page == nullptr) return;
  std::optional<ShadowTable::LeafWriter> leaf;
  if (node.level == 1) leaf = table().OpenLeafTable(Iova(node.first));
  for (uint64_t lines = node.dirty_lines; lines != 0; lines &= lines - 1) {
    const int first = std::countr_zero(lines) * kLineEntries;
    __builtin_prefetch(page + first);
    __builtin_prefetch(node.last.data() + first, /*rw=*/1);
    if (leaf) __builtin_prefetch(leaf->entries() + first, /*rw=*/1);
  }
}

Shadow::Halt SnapshotShadow::SyncLines(TableNode& node, uint64_t lines, Pass& pass) {
  const uint64_t* page = node.page;
  ++pass.run.cost.table_pages_read;
  LeafCursor cursor;
  for (; lines != 0; lines &= lines - 1) {
    const int first = std::countr_zero(lines) * kLineEntries;
    Halt halt = Halt::kNo;
    if (page == nullptr) {
      halt = SyncOneByOne(node, first, first + kLineEntries, false, pass);
      if (halt != Halt::kNo) return halt;
      continue;
    }
    pass.next = node.SlotFirst(first);
    if (!pass.run.budget.Spend(kLineEntries)) {
      pass.run.cost.ptes_read += CloseLines(node, cursor, pass.run.cost);
      return Halt::kWorkBound;
    }
    pass.run.cost.bytes_read += sizeof(EntryLine);
    EntryLine now;
    LoadLine(page + first, now);
    if (TakeLine(node, first, now, cursor)) continue;
    halt = VisitLine(node, first, now, first, first + kLineEntries, kThisTable, pass);
    if (halt != Halt::kNo) return halt;
  }
  pass.run.cost.ptes_read += CloseLines(node, cursor, pass.run.cost);
  return Halt::kNo;
}

Shadow::Halt SnapshotShadow::SyncNode(TableNode& node, bool visit_all, Pass& pass) {
  ++pass.run.cost.table_pages_read;
  const int shift = vtd::LevelShift(node.level);
  const uint64_t node_end = node.end();
  const uint64_t begin = std::max(pass.range.first.value(), node.first);
  const uint64_t end = std::min(pass.range.end.value(), node_end);
  if (begin >= end) return Halt::kNo;
  const int first = static_cast<int>((begin - node.first) >> shift);
  const int last = static_cast<int>((end - 1 - node.first) >> shift) + 1;
  if (context_.pulled != nullptr) PrefetchBelow(node, first, last, visit_all, pass);
  if (last - first >= kBulkEntries) {
    if (const uint64_t* page = context_.guest.PageInPlace(node.guest_table)) {
      return SyncInBulk(node, page, first, last, visit_all, pass);
    }
  }
  return SyncOneByOne(node, first, last, visit_all, pass);
}

void SnapshotShadow::PrefetchBelow(const TableNode& node, int first, int end, bool visit_all,
                                   const Pass& pass) const {
  if (node.below == nullptr || end - first <= 1) return;
  // As SyncOneByOne: with IH the copy stands for the entry, and its page is not read.
  const bool hint = pass.run.leaf_hint && !visit_all && end - first < kBulkEntries;
  std::vector<PhysAddr> tables;
  for (int slot = first; slot < end; ++slot) {
    const size_t i = static_cast<size_t>(slot);
    uint64_t entry = node.last[i];
    if (!hint || (*node.below)[i] == nullptr) {
      entry = context_.guest.Read64(node.guest_table + sizeof(uint64_t) * i).value_or(0);
    }
    if (KindOf(entry, node) == EntryKind::kTable) {
      tables.push_back(ToPhys(context_.rules.AddressOf(entry)));
    }
  }
  context_.pulled->Prefetch(tables);
}

Shadow::Halt SnapshotShadow::SyncOneByOne(TableNode& node, int first, int end, bool visit_all,
                                          Pass& pass) {
  SyncCost& cost = pass.run.cost;
  const uint64_t* page = node.page;
  for (int slot = first; slot < end; ++slot) {
    pass.next = node.SlotFirst(slot);
    const size_t i = static_cast<size_t>(slot);
    // IH: the guest says that no table pointer changed (6.5.2.3), so the copy stands for it.
    const bool hinted =
        pass.run.leaf_hint && node.level > 1 && !visit_all && (*node.below)[i] != nullptr;
    uint64_t now = node.last[i];
    if (!hinted) {
      if (!pass.run.budget.Spend(1)) return Halt::kWorkBound;
      ++cost.ptes_read;
      cost.bytes_read += sizeof(uint64_t);
      // An entry that cannot be read maps nothing.
      now = page != nullptr
                ? LoadEntry(page + i)
                : context_.guest.Read64(node.guest_table + sizeof(uint64_t) * i).value_or(0);
    }
    Halt halt = Halt::kNo;
    if (now != node.last[i] || visit_all) {
      halt = Visit(node, slot, now, visit_all, pass);
    } else if (node.below != nullptr && (*node.below)[i] != nullptr) {
      halt = SyncNode(*(*node.below)[i], false, pass);
    }
    if (halt != Halt::kNo) return halt;
  }
  pass.next = node.SlotFirst(end);
  return Halt::kNo;
}

Shadow::Halt SnapshotShadow::SyncInBulk(TableNode& node, const uint64_t* page, int first, int end,
                                        bool visit_all, Pass& pass) {
  SyncCost& cost = pass.run.cost;
  pass.next = node.SlotFirst(first);
  if (!pass.run.budget.Spend(static_cast<uint64_t>(end - first))) return Halt::kWorkBound;
  cost.bytes_read += sizeof(uint64_t) * static_cast<uint64_t>(end - first);
  const bool leaf_table = node.below == nullptr;
  LeafCursor cursor;
  for (int at = first - first % kLineEntries; at < end; at += kLineEntries) {
    if (context_.pulled != nullptr && !leaf_table) {
      // What was read below may have pushed this page out.
      page = context_.guest.PageInPlace(node.guest_table);
      if (page == nullptr) return SyncOneByOne(node, std::max(first, at), end, visit_all, pass);
    }
    EntryLine now;
    LoadLine(page + at, now);
    if (leaf_table && !visit_all) {
      if (!Differs(now, node.last.data() + at)) [[likely]]
        continue;
      if (!cursor.looked && end - first == vtd::kEntriesPerTable &&
          TakeFreshTable(node, page, pass)) {
        break;
      }
      if (at >= first && at + kLineEntries <= end && TakeLine(node, at, now, cursor)) continue;
      cost.ptes_read += CloseLines(node, cursor, cost);
    }
    const Halt halt =
        VisitLine(node, at, now, first, end, visit_all ? kEverything : kTablesBelow, pass);
    if (halt != Halt::kNo) return halt;
  }
  cost.ptes_read += CloseLines(node, cursor, cost);
  pass.next = node.SlotFirst(end);
  return Halt::kNo;
}

Shadow::Halt SnapshotShadow::VisitLine(TableNode& node, int at, const EntryLine& now, int first,
                                       int end, Scope scope, Pass& pass) {
  for (int slot = std::max(at, first); slot < std::min(at + kLineEntries, end); ++slot) {
    const size_t s = static_cast<size_t>(slot);
    const uint64_t entry = now[static_cast<size_t>(slot - at)];
    Halt halt = Halt::kNo;
    if (entry != node.last[s] || scope == kEverything) {
      pass.next = node.SlotFirst(slot);
      ++pass.run.cost.ptes_read;
      halt = Visit(node, slot, entry, scope == kEverything, pass);
    } else if (scope == kTablesBelow && node.below != nullptr && (*node.below)[s] != nullptr) {
      pass.next = node.SlotFirst(slot);
      // The table after the next is on its way while the next one is compared.
      const int ahead_end =
          context_.pulled != nullptr ? 0 : std::min(slot + 3, vtd::kEntriesPerTable);
      for (int ahead = slot + 1; ahead < ahead_end; ++ahead) {
        const TableNode* soon = (*node.below)[static_cast<size_t>(ahead)].get();
        if (soon == nullptr) continue;
        __builtin_prefetch(soon);
        if (soon->page != nullptr) __builtin_prefetch(soon->page);
      }
      halt = SyncNode(*(*node.below)[s], false, pass);
    } else if (scope == kThisTable && !nothing_noted() &&
               (node.below == nullptr || (*node.below)[s] == nullptr)) {
      Settle(node.SlotRange(slot));  // refused once, and the guest took it away
    }
    if (halt != Halt::kNo) return halt;
  }
  return Halt::kNo;
}

Shadow::Halt SnapshotShadow::Visit(TableNode& node, int slot, uint64_t now, bool visit_all,
                                   Pass& pass) {
  if (node.level == 1 && !visit_all) {
    EntryLine line;
    const int at = slot - slot % kLineEntries;
    std::copy_n(node.last.begin() + at, kLineEntries, line.begin());
    line[static_cast<size_t>(slot - at)] = now;
    LeafCursor cursor;
    if (TakeLine(node, at, line, cursor)) {
      CloseLines(node, cursor, pass.run.cost);  // the caller counted the entry
      return Halt::kNo;
    }
  }
  const uint64_t effective = now & node.permissions & kPermissionBits;
  switch (KindOf(now, node)) {
    case EntryKind::kAbsent:
      SetAbsent(node, slot, now, visit_all, pass);
      return Halt::kNo;
    case EntryKind::kLeaf:
      return SetLeaf(node, slot, now, effective, visit_all, pass);
    case EntryKind::kTable:
      return SetTable(node, slot, now, effective, visit_all, pass);
  }
  return Halt::kNo;
}

void SnapshotShadow::SetAbsent(TableNode& node, int slot, uint64_t now, bool visit_all,
                               Pass& pass) {
  const IovaRange span = node.SlotRange(slot);
  const Dropped dropped = Drop(node, slot);
  node.last[static_cast<size_t>(slot)] = now;
  Settle(span);
  SyncCost& cost = pass.run.cost;
  if (dropped.entries == 0 && !visit_all) return;
  const uint64_t changed_before = cost.ptes_changed;
  ClearPages(span, cost);
  if (cost.ptes_changed != changed_before) Invalidate(span, cost);
  Uncharge(dropped, cost);
  NoteIfEmpty(node);
}

Shadow::Halt SnapshotShadow::SetLeaf(TableNode& node, int slot, uint64_t now, uint64_t effective,
                                     bool visit_all, Pass& pass) {
  const size_t i = static_cast<size_t>(slot);
  const IovaRange span = node.SlotRange(slot);
  SyncCost& cost = pass.run.cost;
  ++cost.leaves_visited;
  const GuestPhys guest_pa = context_.rules.AddressOf(now);
  const uint64_t old = node.last[i];
  if (!visit_all && KindOf(old, node) == EntryKind::kLeaf &&
      context_.rules.AddressOf(old) == guest_pa &&
      (old & node.permissions & kPermissionBits) == effective) {
    node.last[i] = now;  // only ignored bits changed
    return Halt::kNo;
  }
  const uint64_t entries = span.size_bytes() >> context_.map.granule_shift();
  if (entries > 1 && !pass.run.budget.Spend(entries)) {
    pass.next = span.first.value();
    pass.give_up_end = std::max(pass.give_up_end, span.end);
    return Halt::kWorkBound;
  }
  Dropped dropped;
  if (old != 0) dropped = Drop(node, slot);
  Uncharge(dropped, cost);
  Settle(span);
  const uint64_t pages = span.size_bytes() >> kPageShift;
  const uint64_t changed_before = cost.ptes_changed;
  ++cost.dma_maps;
  bool mapped = account_.TryMap(pages);
  if (mapped) {
    cost.pages_pinned += pages;
    if (!SetPages(span, guest_pa, ToAccess(effective), pass.run).ok()) {
      mapped = false;
      Uncharge({1, pages}, cost);
    }
  } else {
    ClearPages(span, cost);
  }
  if ((dropped.entries != 0 || visit_all) && cost.ptes_changed != changed_before) {
    Invalidate(span, cost);
  }
  if (mapped) {
    node.last[i] = now;
    return Halt::kNo;
  }
  node.last[i] = 0;
  ++cost.dma_map_failures;
  Refuse(span);
  pass.refused = true;
  return pass.stop_at_refusal && !visit_all ? Halt::kRefused : Halt::kNo;
}

Shadow::Halt SnapshotShadow::SetTable(TableNode& node, int slot, uint64_t now, uint64_t effective,
                                      bool visit_all, Pass& pass) {
  const size_t i = static_cast<size_t>(slot);
  const IovaRange span = node.SlotRange(slot);
  const PhysAddr guest_table = ToPhys(context_.rules.AddressOf(now));
  auto& below = (*node.below)[i];
  bool everything = true;
  if (below != nullptr && below->permissions == effective) {
    // Another table, perhaps, in the place of one: its entries are compared with the same copy.
    everything = below->guest_table != guest_table;
    if (everything) {
      if (index_ != nullptr) index_->Remove(*below);
      PointAt(*below, guest_table);
      if (index_ != nullptr) index_->Add(*below);
    }
  } else {
    // New; or a superpage, or tables under other permissions, stood here: one unmap call for all of
    // it, while its pages stay in the physical table until the entries below say otherwise.
    const Dropped dropped = Drop(node, slot);
    visit_all = visit_all || dropped.entries != 0;
    Uncharge(dropped, pass.run.cost);
    pass.next = span.first.value();
    pass.give_up_end = std::max(pass.give_up_end, span.end);
    if (pass.scarce && node.level == 2 && HasNoLeaf(guest_table, effective, pass)) {
      return ReadUncopied(guest_table, span, node.level - 1, effective, visit_all, pass);
    }
    below = NewNode(guest_table, span.first.value(), node.level - 1, effective);
    if (below == nullptr) {
      return RefuseTable(guest_table, span, node.level - 1, effective, visit_all, pass);
    }
  }
  node.last[i] = now;
  if (!everything) return SyncNode(*below, false, pass);
  // Of a table that is new here all is to be seen, whatever range was asked for.
  const IovaRange asked = std::exchange(pass.range, span);
  pass.give_up_end = std::max(pass.give_up_end, span.end);
  const Halt halt = SyncNode(*below, visit_all, pass);
  pass.range = asked;
  NoteIfEmpty(*below);
  return halt;
}

SnapshotShadow::Dropped SnapshotShadow::Drop(TableNode& node, int slot) {
  const size_t i = static_cast<size_t>(slot);
  Dropped sum;
  if (node.below != nullptr && (*node.below)[i] != nullptr) {
    TableNode& below = *(*node.below)[i];
    for (int s = 0; s < vtd::kEntriesPerTable; ++s) {
      const Dropped part = Drop(below, s);
      sum.entries += part.entries;
      sum.pages += part.pages;
    }
    FreeNode(std::move((*node.below)[i]));
  } else if (KindOf(node.last[i], node) == EntryKind::kLeaf) {
    sum = {1, node.slot_size() >> kPageShift};
  }
  node.last[i] = 0;
  return sum;
}

}  // namespace viommu
