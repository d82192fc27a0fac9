// 4K entries by the line and by the table: the case that most of a sync's time goes to.
#include <algorithm>
#include <array>
#include <bit>
#include <utility>

#include "iommu_core/shadow/snapshot_shadow.h"

namespace viommu {
namespace {

// Bits of a mask of a line's slots; without a popcount instruction std::popcount is a call.
constexpr std::array<uint8_t, 256> kBits = [] {
  std::array<uint8_t, 256> bits{};
  for (size_t i = 1; i < bits.size(); ++i) {
    bits[i] = static_cast<uint8_t>(bits[i / 2] + (i & 1));
  }
  return bits;
}();
uint64_t CountSlots(uint32_t slots) { return kBits[slots]; }

// By how many mappings a line's calls, slot by slot, each unmap before its map, exceed the number
// that was mapped before.
int64_t PeakOf(uint32_t is, uint32_t was) {
  if ((was & ~is) == 0) return static_cast<int64_t>(CountSlots(is & ~was));
  int64_t gain = 0, peak = 0;
  for (uint32_t left = is ^ was; left != 0; left &= left - 1) {
    gain += (is & left & -left) != 0 ? 1 : -1;
    peak = std::max(peak, gain);
  }
  return peak;
}

}  // namespace

bool SnapshotShadow::TakeFreshTable(TableNode& node, const uint64_t* page, Pass& pass) {
  if (!TakesInBulk() || table().OpenLeafTable(Iova(node.first))) return false;
  const LeafRules rules = RulesOf(node);
  uint64_t differing = 0;
  uint64_t leaves = 0;
  const bool linked = table().LinkFreshTable(Iova(node.first), [&](uint64_t* entries) {
    for (int at = 0; at < vtd::kEntriesPerTable; at += kLineEntries) {
      EntryLine now;
      LoadLine(page + at, now);
      EntryLine host;
      const LeafMasks masks = ReadLeafLine(rules, now, node.last.data() + at, host);
      std::copy(host.begin(), host.end(), entries + at);
      leaves += CountSlots(masks.is());
      differing += CountSlots(masks.differing());
    }
    return leaves;
  });
  if (!linked) {
    node.last.fill(0);  // nothing is mapped here: every entry is to be looked at
    return false;
  }
  SyncCost& cost = pass.run.cost;
  cost.ptes_read += differing;
  cost.leaves_visited += leaves;
  cost.ptes_changed += leaves;
  cost.dma_maps += leaves;
  cost.pages_pinned += leaves;
  account_.CountRun(leaves, 0, leaves);
  return true;
}

bool SnapshotShadow::OpenLines(const TableNode& node, LeafCursor& cursor) {
  cursor.looked = true;
  if (node.level != 1 || !TakesInBulk()) return false;
  cursor.writer = table().OpenLeafTable(Iova(node.first));
  if (!cursor.writer) return false;
  cursor.rules.emplace(RulesOf(node));
  return true;
}

bool SnapshotShadow::TakeLine(TableNode& node, int at, const EntryLine& now, LeafCursor& cursor) {
  if (!cursor.looked) OpenLines(node, cursor);
  if (!cursor.writer) return false;
  uint64_t* last = node.last.data() + at;
  const DifferingSlots differing(now, last);
  const LeafRules& rules = *cursor.rules;
  LeafRun& run = cursor.run;
  if (!differing.several()) {
    if (differing.none()) return true;
    const int i = differing.first();
    const uint64_t entry = now[static_cast<size_t>(i)];
    const uint64_t effective = rules.Effective(entry);
    const uint64_t before = rules.Effective(std::exchange(last[i], entry));
    ++run.differing;
    run.visited += static_cast<uint64_t>(effective != 0);
    if (effective == before) return true;  // ignored bits only
    cursor.writer->Put(at + i, rules.HostEntry(effective));
    run.unmaps += static_cast<uint64_t>(before != 0);
    run.maps += static_cast<uint64_t>(effective != 0);
    run.peak = std::max(run.peak, static_cast<int64_t>(run.maps - run.unmaps));
    if (before != 0) NoteInvalid(node.SlotRange(at + i));
    return true;
  }
  EntryLine host;
  const LeafMasks masks = ReadLeafLine(rules, now, last, host);
  const uint32_t is = masks.is() & masks.changed();
  const uint32_t was = masks.was() & masks.changed();
  const uint64_t maps = CountSlots(is);
  const uint64_t unmaps = CountSlots(was);
  if (masks.changed() != 0) {
    cursor.writer->PutLine(at, host, CountSlots(masks.changed()), maps - unmaps);
  }
  run.peak = std::max(run.peak, static_cast<int64_t>(run.maps - run.unmaps) + PeakOf(is, was));
  run.differing += CountSlots(masks.differing());
  run.visited += CountSlots(masks.is() & masks.differing());
  run.maps += maps;
  run.unmaps += unmaps;
  for (uint32_t left = was; left != 0 && !TellsWholeDomain(); left &= left - 1) {
    NoteInvalid(node.SlotRange(at + std::countr_zero(left)));
  }
  return true;
}

uint64_t SnapshotShadow::CloseLines(TableNode& node, LeafCursor& cursor, SyncCost& cost) {
  if (!cursor.writer) return 0;
  const LeafRun& run = cursor.run;
  const bool holds_any = table().Close(*cursor.writer, cost.ptes_changed);
  account_.CountRun(run.maps, run.unmaps, static_cast<uint64_t>(run.peak));
  cost.leaves_visited += run.visited;
  cost.dma_maps += run.maps;
  cost.pages_pinned += run.maps;
  cost.dma_unmaps += run.unmaps;
  cost.pages_unpinned += run.unmaps;
  const uint64_t differing = run.differing;
  cursor.Forget();
  if (!holds_any) {
    ClearPages({Iova(node.first), Iova(node.end())}, cost);
    NoteIfEmpty(node);
  }
  return differing;
}

}  // namespace viommu
