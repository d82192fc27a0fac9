#include "iommu_core/shadow/shadow_table.h"

#include <algorithm>

#include "iommu_core/base/errors.h"
#include "iommu_core/vtd/second_stage_pte.h"

namespace viommu {
namespace {

using vtd::SecondStagePte;

constexpr uint64_t kNoSpan = ~uint64_t{0};

uint64_t Load(const uint64_t* slot) { return __atomic_load_n(slot, __ATOMIC_RELAXED); }

PhysAddr TableOf(uint64_t raw) { return SecondStagePte{raw}.address(HostMap::kHostWidth, 1); }

}  // namespace

absl::StatusOr<PhysAddr> TablePool::Allocate() {
  if (pages_ >= max_pages_) return errors::LimitReached("--max_shadow_table_pages", max_pages_);
  auto frame = memory_.Allocate();
  if (!frame.ok()) return frame.status();
  ++pages_;
  const uint64_t number = frame->value() >> kPageShift;
  if (number >= used_.size()) used_.resize(number + 1);
  used_[number] = 0;
  return frame;
}

void TablePool::Free(PhysAddr table) {
  --pages_;
  if (used(table) == 0) {
    memory_.FreeZeroed(table);
  } else {
    memory_.Free(table);
  }
}

absl::StatusOr<std::unique_ptr<ShadowTable>> ShadowTable::Create(TablePool& pool,
                                                                 const HostMap& map) {
  auto root = pool.Allocate();
  if (!root.ok()) return root.status();
  return std::unique_ptr<ShadowTable>(new ShadowTable(pool, map, *root));
}

ShadowTable::ShadowTable(TablePool& pool, const HostMap& map, PhysAddr root)
    : pool_(pool),
      map_(map),
      max_leaf_level_((map.granule_shift() - kPageShift) / vtd::kIndexBits + 1),
      root_(root) {}

ShadowTable::~ShadowTable() {
  ReleaseUnlinked();
  FreeTree(root_, kLevels);
}

std::pair<uint64_t, uint64_t> ShadowTable::CountBelow(PhysAddr table, int level) const {
  if (level == 1) {
    const uint64_t used = pool_.used(table);
    return {used, used};
  }
  std::pair<uint64_t, uint64_t> sum{0, 0};
  const uint64_t* entries = pool_.memory().Entries(table);
  for (int i = 0; i < vtd::kEntriesPerTable; ++i) {
    const uint64_t raw = Load(entries + i);
    if (raw == 0) continue;
    if (SecondStagePte{raw}.leaf(level)) {
      ++sum.first;
      sum.second += vtd::LevelSize(level) / kPageSize;
    } else {
      const auto below = CountBelow(TableOf(raw), level - 1);
      sum.first += below.first;
      sum.second += below.second;
    }
  }
  return sum;
}

void ShadowTable::Unlink(PhysAddr table, int level) {
  unlinked_.emplace_back(table, level);
  cached_span_ = kNoSpan;
  cached_upper_span_ = kNoSpan;
}

void ShadowTable::FreeTree(PhysAddr table, int level) {
  if (level > 1) {
    const uint64_t* entries = pool_.memory().Entries(table);
    for (int i = 0; i < vtd::kEntriesPerTable; ++i) {
      const uint64_t raw = Load(entries + i);
      if (raw != 0 && !SecondStagePte{raw}.leaf(level)) FreeTree(TableOf(raw), level - 1);
    }
  }
  pool_.Free(table);
}

void ShadowTable::ReleaseUnlinked() {
  for (const auto& [table, level] : unlinked_) FreeTree(table, level);
  unlinked_.clear();
}

absl::StatusOr<PhysAddr> ShadowTable::SplitTable(uint64_t leaf, int level) {
  auto table = pool_.Allocate();
  if (!table.ok()) return table.status();
  uint64_t* entries = pool_.memory().Entries(*table);
  const SecondStagePte pte{leaf};
  const PhysAddr first = pte.address(HostMap::kHostWidth, level);
  const uint64_t span = vtd::LevelSize(level - 1);
  for (uint64_t i = 0; i < vtd::kEntriesPerTable; ++i) {
    const auto piece = SecondStagePte::Leaf(first + span * i, level - 1, pte.access());
    __atomic_store_n(entries + i, piece.raw, __ATOMIC_RELAXED);
  }
  pool_.used(*table) = vtd::kEntriesPerTable;
  return table;
}

absl::Status ShadowTable::SetIn(PhysAddr table, int level, uint64_t table_first,
                                const Target& target, uint64_t& changed) {
  const uint64_t span = vtd::LevelSize(level);
  const uint64_t* entries = pool_.memory().Entries(table);
  const uint64_t begin = std::max(target.first, table_first);
  int index = static_cast<int>((begin - table_first) >> vtd::LevelShift(level));
  for (uint64_t at = table_first + (static_cast<uint64_t>(index) << vtd::LevelShift(level));
       index < vtd::kEntriesPerTable && at < target.end; ++index, at += span) {
    const uint64_t old = Load(entries + index);
    const uint64_t guest_pa = at + target.guest_pa_minus_iova;
    const bool whole = target.first <= at && at + span <= target.end;
    if (whole && level <= max_leaf_level_ && IsAligned(guest_pa, span)) {
      const auto leaf =
          SecondStagePte::Leaf(ToPhys(map_.ToHost(GuestPhys(guest_pa))), level, target.access);
      if (leaf.raw == old) continue;
      ++changed;
      Store(table, index, leaf.raw);
      live_pages_ += span / kPageSize;
      if (old == 0) continue;
      if (SecondStagePte{old}.leaf(level)) {
        live_pages_ -= span / kPageSize;
      } else {
        const auto [leaves, pages] = CountBelow(TableOf(old), level - 1);
        changed += leaves;
        live_pages_ -= pages;
        Unlink(TableOf(old), level - 1);
      }
      continue;
    }
    PhysAddr below;
    bool link = false;
    if (old == 0) {
      auto made = pool_.Allocate();
      if (!made.ok()) return made.status();
      below = *made;
      link = true;  // once it is complete
    } else if (SecondStagePte{old}.leaf(level)) {
      auto made = SplitTable(old, level);
      if (!made.ok()) return made.status();
      below = *made;
      Store(table, index, SecondStagePte::Table(below).raw);
    } else {
      below = TableOf(old);
    }
    const absl::Status status = SetIn(below, level - 1, at, target, changed);
    if (link) {
      if (pool_.used(below) == 0) {
        pool_.Free(below);
      } else {
        Store(table, index, SecondStagePte::Table(below).raw);
      }
    }
    if (!status.ok()) return status;
    if (level == 2) {
      cached_span_ = at >> vtd::LevelShift(2);
      cached_table_ = below;
    }
  }
  return absl::OkStatus();
}

absl::Status ShadowTable::Set(IovaRange range, GuestPhys guest_pa, Access access,
                              uint64_t& changed) {
  const Target target{range.first.value(), range.end.value(),
                      guest_pa.value() - range.first.value(), access};
  const uint64_t span = range.first.value() >> vtd::LevelShift(2);
  if (span == cached_span_ && (range.end.value() - 1) >> vtd::LevelShift(2) == span &&
      range.size_bytes() < vtd::LevelSize(2)) {
    return SetIn(cached_table_, 1, span << vtd::LevelShift(2), target, changed);
  }
  return SetIn(root_, kLevels, 0, target, changed);
}

void ShadowTable::ClearIn(PhysAddr table, int level, uint64_t table_first, IovaRange range,
                          uint64_t& changed) {
  const uint64_t span = vtd::LevelSize(level);
  const uint64_t* entries = pool_.memory().Entries(table);
  const uint64_t begin = std::max(range.first.value(), table_first);
  int index = static_cast<int>((begin - table_first) >> vtd::LevelShift(level));
  for (uint64_t at = table_first + (static_cast<uint64_t>(index) << vtd::LevelShift(level));
       index < vtd::kEntriesPerTable && at < range.end.value(); ++index, at += span) {
    const uint64_t old = Load(entries + index);
    if (old == 0) continue;
    const bool whole = range.first.value() <= at && at + span <= range.end.value();
    if (SecondStagePte{old}.leaf(level)) {
      if (!whole) {
        if (auto split = SplitTable(old, level); split.ok()) {
          Store(table, index, SecondStagePte::Table(*split).raw);
          ClearIn(*split, level - 1, at, range, changed);
          continue;
        }
      }
      Store(table, index, 0);
      ++changed;
      live_pages_ -= span / kPageSize;
      continue;
    }
    const PhysAddr below = TableOf(old);
    if (whole) {
      Store(table, index, 0);
      const auto [leaves, pages] = CountBelow(below, level - 1);
      changed += leaves;
      live_pages_ -= pages;
      Unlink(below, level - 1);
      continue;
    }
    ClearIn(below, level - 1, at, range, changed);
    if (pool_.used(below) == 0) {
      Store(table, index, 0);
      Unlink(below, level - 1);
    }
  }
}

void ShadowTable::Clear(IovaRange range, uint64_t& changed) {
  range.end = std::min(range.end, kAll.end);
  if (!range.empty()) ClearIn(root_, kLevels, 0, range, changed);
}

std::optional<ShadowTable::LeafWriter> ShadowTable::OpenLeafTable(Iova iova) {
  if (iova.value() >> vtd::LevelShift(3) != cached_upper_span_) {
    PhysAddr table = root_;
    for (int level = kLevels; level > 2; --level) {
      const uint64_t raw = Load(pool_.memory().Entries(table) + vtd::LevelIndex(iova, level));
      if (raw == 0 || SecondStagePte{raw}.leaf(level)) return std::nullopt;
      table = TableOf(raw);
    }
    cached_upper_span_ = iova.value() >> vtd::LevelShift(3);
    cached_upper_ = table;
  }
  const uint64_t raw = Load(pool_.memory().Entries(cached_upper_) + vtd::LevelIndex(iova, 2));
  if (raw == 0 || SecondStagePte{raw}.leaf(2)) return std::nullopt;
  const PhysAddr table = TableOf(raw);
  return LeafWriter(table, pool_.memory().Entries(table), &pool_.store_observer);
}

bool ShadowTable::Close(const LeafWriter& leaf, uint64_t& changed) {
  uint16_t& used = pool_.used(leaf.table_);
  used = static_cast<uint16_t>(used + leaf.gain_);
  live_pages_ += leaf.gain_;
  changed += leaf.stores_;
  return used != 0;
}

bool ShadowTable::LinkIn(PhysAddr table, int level, Iova iova, PhysAddr leaf_table) {
  const int index = vtd::LevelIndex(iova, level);
  const uint64_t old = Load(pool_.memory().Entries(table) + index);
  if (level == 2) {
    if (old != 0) return false;
    Store(table, index, SecondStagePte::Table(leaf_table).raw);
    return true;
  }
  if (old != 0) {
    return !SecondStagePte{old}.leaf(level) && LinkIn(TableOf(old), level - 1, iova, leaf_table);
  }
  auto made = pool_.Allocate();
  if (!made.ok()) return false;
  if (!LinkIn(*made, level - 1, iova, leaf_table)) {
    pool_.Free(*made);
    return false;
  }
  Store(table, index, SecondStagePte::Table(*made).raw);  // complete
  return true;
}

bool ShadowTable::LinkFreshTable(Iova iova, absl::FunctionRef<uint64_t(uint64_t*)> fill) {
  auto table = pool_.Allocate();
  if (!table.ok()) return false;
  const uint64_t used = fill(pool_.memory().Entries(*table));
  pool_.used(*table) = static_cast<uint16_t>(used);
  if (used != 0 && LinkIn(root_, kLevels, iova, *table)) {
    live_pages_ += used;
    return true;
  }
  pool_.Free(*table);
  return used == 0;
}

std::optional<ShadowTable::Page> ShadowTable::Lookup(Iova iova) const {
  if (!kAll.Contains(iova)) return std::nullopt;
  PhysAddr table = root_;
  for (int level = kLevels;; --level) {
    const SecondStagePte pte{Load(pool_.memory().Entries(table) + vtd::LevelIndex(iova, level))};
    if (pte.raw == 0) return std::nullopt;
    if (pte.leaf(level)) {
      const uint64_t offset = iova.value() & (vtd::LevelSize(level) - 1) & ~kPageMask;
      return Page{ToHostPhys(pte.address(HostMap::kHostWidth, level) + offset), pte.access()};
    }
    table = TableOf(pte.raw);
  }
}

}  // namespace viommu
