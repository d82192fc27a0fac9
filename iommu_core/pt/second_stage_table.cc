#include "iommu_core/pt/second_stage_table.h"

#include <algorithm>
#include <utility>

#include "iommu_core/base/errors.h"

namespace viommu {
namespace {

// Table entries are written by one owner; HAW does not limit what it wrote itself.
constexpr int kOwnWidth = 52;

PhysAddr Slot(PhysAddr table, int index) {
  return table + sizeof(uint64_t) * static_cast<uint64_t>(index);
}

}  // namespace

absl::StatusOr<std::unique_ptr<SecondStageTable>> SecondStageTable::Create(PhysicalMemory& memory,
                                                                           FrameAllocator& frames,
                                                                           int levels,
                                                                           vtd::Capabilities caps) {
  if (levels < 3 || levels > 4) return errors::Invalid("tables have 3 or 4 levels");
  auto root = frames.Allocate();
  if (!root.ok()) return root.status();
  return std::unique_ptr<SecondStageTable>(
      new SecondStageTable(memory, frames, levels, caps, *root));
}

SecondStageTable::SecondStageTable(PhysicalMemory& memory, FrameAllocator& frames, int levels,
                                   vtd::Capabilities caps, PhysAddr root)
    : memory_(memory), frames_(frames), levels_(levels), caps_(caps), root_(root) {}

SecondStageTable::~SecondStageTable() {
  std::vector<PhysAddr> tables;
  CollectTables(root_, levels_, tables);
  for (const PhysAddr table : tables) frames_.Free(table);
}

void SecondStageTable::Store(PhysAddr slot, uint64_t raw) {
  memory_.Write64(slot, raw);
  // After the entry, never before: a reader that clears the mark and then reads must see the entry.
  if (hook_) hook_(slot);
}

int SecondStageTable::BestLevel(Iova iova, PhysAddr address, uint64_t size_bytes) const {
  for (int level = 3; level > 1; --level) {
    const bool allowed = level == 3 ? caps_.large_1g() : caps_.large_2m();
    const uint64_t span = vtd::LevelSize(level);
    if (allowed && level < levels_ + 1 && size_bytes >= span && IsAligned(iova.value(), span) &&
        IsAligned(address.value(), span)) {
      return level;
    }
  }
  return 1;
}

absl::StatusOr<PhysAddr> SecondStageTable::TableFor(Iova iova, int level) {
  PhysAddr table = root_;
  for (int at = levels_; at > level; --at) {
    const PhysAddr slot = Slot(table, vtd::LevelIndex(iova, at));
    const vtd::SecondStagePte pte{Load(slot)};
    if (!pte.present()) {
      auto frame = frames_.Allocate();
      if (!frame.ok()) return frame.status();
      ++table_pages_;
      Store(slot, vtd::SecondStagePte::Table(*frame).raw);
      table = *frame;
    } else if (pte.leaf(at)) {
      return errors::AlreadyMapped(MakeRange(iova, kPageSize));
    } else {
      table = pte.address(kOwnWidth, at);
    }
  }
  return table;
}

absl::StatusOr<MapResult> SecondStageTable::Map(Iova iova, PhysAddr address, uint64_t size_bytes,
                                                Access access) {
  const IovaRange range = MakeRange(iova, size_bytes);
  if (size_bytes == 0 || !IsAligned(iova.value() | address.value() | size_bytes, kPageSize)) {
    return errors::BadRange(range, "not whole pages");
  }
  if (range.end < range.first || (range.end.value() - 1) >> width_bits() != 0) {
    return errors::BadRange(range, "beyond the address width");
  }
  if (!access.any()) return errors::Invalid("a mapping must be readable or writable");

  MapResult result;
  Iova at = iova;
  const auto undo = [&] {
    // Nothing used it yet, so what was set can go at once; tables stay for the next map.
    if (auto undone = Unmap({iova, at}); undone.ok()) FreeTables(undone->freed_tables);
  };
  while (at < range.end) {
    const uint64_t left = range.end - at;
    const PhysAddr target = address + (at - iova);
    const int level = BestLevel(at, target, left);
    auto table = (level == 1 && at.value() >> vtd::LevelShift(2) == cached_span_)
                     ? absl::StatusOr<PhysAddr>(cached_leaf_table_)
                     : TableFor(at, level);
    if (!table.ok()) {
      undo();
      return table.status();
    }
    if (level == 1) {
      cached_span_ = at.value() >> vtd::LevelShift(2);
      cached_leaf_table_ = *table;
    }
    // As many leaves of this size as fit into this table.
    const uint64_t span = vtd::LevelSize(level);
    int index = vtd::LevelIndex(at, level);
    for (; index < vtd::kEntriesPerTable && range.end - at >= span; ++index) {
      const PhysAddr leaf_target = address + (at - iova);
      const PhysAddr slot = Slot(*table, index);
      const vtd::SecondStagePte old{Load(slot)};
      if (old.present()) {
        if (old.leaf(level) || !SubtreeEmpty(old.address(kOwnWidth, level), level - 1)) {
          undo();
          return errors::AlreadyMapped(MakeRange(at, span));
        }
        CollectTables(old.address(kOwnWidth, level), level - 1, result.replaced_tables);
        result.replaced_ranges.push_back(MakeRange(at, span));
        ForgetCursors();
      }
      Store(slot, vtd::SecondStagePte::Leaf(leaf_target, level, access).raw);
      at += span;
      // A larger leaf may fit from here on.
      if (level < 3 && BestLevel(at, address + (at - iova), range.end - at) != level) break;
    }
  }
  return result;
}

bool SecondStageTable::SubtreeEmpty(PhysAddr table, int level) const {
  for (int i = 0; i < vtd::kEntriesPerTable; ++i) {
    const vtd::SecondStagePte pte{Load(Slot(table, i))};
    if (!pte.present()) continue;
    if (pte.leaf(level) || !SubtreeEmpty(pte.address(kOwnWidth, level), level - 1)) return false;
  }
  return true;
}

void SecondStageTable::CollectTables(PhysAddr table, int level, std::vector<PhysAddr>& out) {
  if (level > 1) {
    for (int i = 0; i < vtd::kEntriesPerTable; ++i) {
      const vtd::SecondStagePte pte{Load(Slot(table, i))};
      if (pte.present() && !pte.leaf(level)) {
        CollectTables(pte.address(kOwnWidth, level), level - 1, out);
      }
    }
  }
  out.push_back(table);
}

absl::Status SecondStageTable::Split(PhysAddr slot, int level) {
  const vtd::SecondStagePte leaf{Load(slot)};
  auto frame = frames_.Allocate();
  if (!frame.ok()) return frame.status();
  ++table_pages_;
  const PhysAddr first = leaf.address(kOwnWidth, level);
  for (int i = 0; i < vtd::kEntriesPerTable; ++i) {
    Store(Slot(*frame, i),
          vtd::SecondStagePte::Leaf(first + vtd::LevelSize(level - 1) * static_cast<uint64_t>(i),
                                    level - 1, leaf.access())
              .raw);
  }
  Store(slot, vtd::SecondStagePte::Table(*frame).raw);
  return absl::OkStatus();
}

uint64_t SecondStageTable::UnmapIn(PhysAddr table, int level, Iova table_first, IovaRange range,
                                   std::vector<PhysAddr>& freed) {
  const uint64_t span = vtd::LevelSize(level);
  uint64_t cleared = 0;
  Iova at = Iova(std::max(table_first.value(), AlignDown(range.first.value(), span)));
  for (int i = static_cast<int>((at - table_first) / span);
       i < vtd::kEntriesPerTable && at < range.end; ++i, at += span) {
    const PhysAddr slot = Slot(table, i);
    const vtd::SecondStagePte pte{Load(slot)};
    if (!pte.present()) continue;
    const bool whole = range.first <= at && at + span <= range.end;
    if (pte.leaf(level)) {
      // Partly covered large leaves were split before.
      Store(slot, 0);
      cleared += span;
    } else {
      const PhysAddr child = pte.address(kOwnWidth, level);
      if (whole) {
        // The whole span goes: unlink first, so that nothing below can be reached any more, then
        // count and collect.
        Store(slot, 0);
        cleared += UnmapIn(child, level - 1, at, range, freed);
        freed.push_back(child);
        ForgetCursors();
      } else {
        cleared += UnmapIn(child, level - 1, at, range, freed);
      }
    }
  }
  return cleared;
}

absl::StatusOr<UnmapResult> SecondStageTable::Unmap(IovaRange range) {
  UnmapResult result;
  if (!IsAligned(range.first.value() | range.end.value(), kPageSize)) {
    return errors::BadRange(range, "not whole pages");
  }
  if (range.empty()) return result;
  if ((range.end.value() - 1) >> width_bits() != 0) {
    return errors::BadRange(range, "beyond the address width");
  }
  // Split large leaves that the ends of the range cut.
  for (const Iova edge : {range.first, range.end}) {
    for (;;) {
      if (edge.value() >> width_bits() != 0) break;
      PhysAddr table = root_;
      PhysAddr cut;
      int cut_level = 0;
      for (int level = levels_; level > 1; --level) {
        const PhysAddr slot = Slot(table, vtd::LevelIndex(edge, level));
        const vtd::SecondStagePte pte{Load(slot)};
        if (!pte.present()) break;
        if (pte.leaf(level)) {
          if (!IsAligned(edge.value(), vtd::LevelSize(level))) {
            cut = slot;
            cut_level = level;
          }
          break;
        }
        table = pte.address(kOwnWidth, level);
      }
      if (cut_level == 0) break;
      if (absl::Status status = Split(cut, cut_level); !status.ok()) return status;
    }
  }
  // The common case: a small range within the leaf table used last.
  const uint64_t span2 = vtd::LevelShift(2);
  if (range.first.value() >> span2 == cached_span_ &&
      (range.end.value() - 1) >> span2 == cached_span_ && range.size_bytes() < vtd::LevelSize(2)) {
    result.unmapped_bytes =
        UnmapIn(cached_leaf_table_, 1, Iova(cached_span_ << span2), range, result.freed_tables);
  } else {
    result.unmapped_bytes = UnmapIn(root_, levels_, Iova(0), range, result.freed_tables);
  }
  return result;
}

absl::Status SecondStageTable::Replace(Iova iova, int level, vtd::SecondStagePte leaf) {
  PhysAddr table = root_;
  for (int at = levels_; at >= level; --at) {
    const PhysAddr slot = Slot(table, vtd::LevelIndex(iova, at));
    const vtd::SecondStagePte pte{Load(slot)};
    if (!pte.present() || pte.leaf(at) != (at == level)) break;
    if (at == level) {
      Store(slot, leaf.raw);
      return absl::OkStatus();
    }
    table = pte.address(kOwnWidth, at);
  }
  return errors::NotMapped(MakeRange(iova, vtd::LevelSize(level)));
}

std::optional<PhysAddr> SecondStageTable::LeafTableOf(Iova iova) const {
  if (iova.value() >> width_bits() != 0) return std::nullopt;
  PhysAddr table = root_;
  for (int level = levels_; level > 1; --level) {
    const vtd::SecondStagePte pte{Load(Slot(table, vtd::LevelIndex(iova, level)))};
    if (!pte.present() || pte.leaf(level)) return std::nullopt;
    table = pte.address(kOwnWidth, level);
  }
  return table;
}

SecondStageTable::Entry SecondStageTable::Find(Iova iova) const {
  PhysAddr table = root_;
  for (int level = levels_;; --level) {
    const vtd::SecondStagePte pte{Load(Slot(table, vtd::LevelIndex(iova, level)))};
    if (!pte.present()) return {{0}, level};
    if (pte.leaf(level)) return {pte, level};
    table = pte.address(kOwnWidth, level);
  }
}

void SecondStageTable::FreeTables(const std::vector<PhysAddr>& tables) {
  for (const PhysAddr table : tables) frames_.Free(table);
  table_pages_ -= tables.size();
}

}  // namespace viommu
