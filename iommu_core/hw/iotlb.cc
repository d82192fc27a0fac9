#include "iommu_core/hw/iotlb.h"

#include <algorithm>
#include <bit>

#include "iommu_core/vtd/second_stage_pte.h"

namespace viommu {
namespace {

constexpr int kMaxAddressBits = 57;

// Index of the way that holds `tag`, or the number of ways. The loop has no exit: no branch to
// guess, and two vector compares where the target can compare 64-bit words (AVX2).
template <typename Line>
int MatchWay(const Line& line, uint64_t tag) {
  uint32_t mask = 0;
  for (size_t w = 0; w < line.way.size(); ++w) {
    mask |= static_cast<uint32_t>(line.way[w] == tag) << w;
  }
  return mask == 0 ? static_cast<int>(line.way.size()) : std::countr_zero(mask);
}

}  // namespace

Iotlb::Iotlb(uint32_t entries, Key key) : key_(key) {
  const size_t sets = std::bit_floor(std::max<size_t>(entries / kWays, 1));
  tags_.resize(sets);
  entries_.resize(sets);
  next_way_.resize(sets);
}

uint64_t Iotlb::PageOf(Iova iova, int level) { return iova.value() >> vtd::LevelShift(level); }

uint64_t Iotlb::MakeTag(uint32_t owner, uint64_t page, int level) {
  return TagPage::Make(page) | TagLevel::Make(static_cast<uint64_t>(level)) | TagOwner::Make(owner);
}

IovaRange Iotlb::RangeOf(uint64_t tag) {
  const int level = static_cast<int>(TagLevel::Get(tag));
  return MakeRange(Iova(TagPage::Get(tag) << vtd::LevelShift(level)), vtd::LevelSize(level));
}

size_t Iotlb::SetOf(uint64_t tag) const {
  // Fibonacci hashing over page and level, not over the owner: a domain's new tag keeps the set.
  const uint64_t hash = (tag & (TagPage::kMask | TagLevel::kMask)) * 0x9e3779b97f4a7c15ull;
  return (hash >> 32) & (tags_.size() - 1);
}

uint32_t Iotlb::OwnerOf(uint16_t id) {
  const auto it = owners_.find(id);
  if (it != owners_.end()) return it->second;
  if (next_owner_ > TagOwner::kMax) InvalidateAll();  // tags are used up: start over, empty
  return owners_[id] = next_owner_++;
}

std::optional<Iotlb::Entry> Iotlb::Find(uint16_t id, Iova iova) const {
  if ((iova.value() >> kMaxAddressBits) != 0) return std::nullopt;
  const auto owner = owners_.find(id);
  if (owner == owners_.end()) return std::nullopt;
  for (int level = 1; level <= kLevels; ++level) {
    if (!level_used_[static_cast<size_t>(level)]) continue;
    const uint64_t tag = MakeTag(owner->second, PageOf(iova, level), level);
    const size_t set = SetOf(tag);
    const int way = MatchWay(tags_[set], tag);
    if (way < kWays) return entries_[set][static_cast<size_t>(way)];
  }
  return std::nullopt;
}

void Iotlb::Insert(uint16_t id, Iova iova, const Entry& entry) {
  const uint32_t owner = OwnerOf(id);
  const uint64_t tag = MakeTag(owner, PageOf(iova, entry.level), entry.level);
  const size_t set = SetOf(tag);
  int way = MatchWay(tags_[set], tag);
  if (way == kWays) way = MatchWay(tags_[set], 0);
  if (way == kWays) {
    way = next_way_[set];
    next_way_[set] = static_cast<uint8_t>((way + 1) % kWays);
  }
  tags_[set].way[static_cast<size_t>(way)] = tag;
  entries_[set][static_cast<size_t>(way)] = entry;
  level_used_[static_cast<size_t>(entry.level)] = true;
}

void Iotlb::InvalidateAll() {
  std::fill(tags_.begin(), tags_.end(), TagLine{});
  owners_.clear();
  next_owner_ = 1;
  level_used_ = {};
}

void Iotlb::InvalidateDomain(DomainId did) {
  if (key_ == Key::kDomain) {
    owners_.erase(did.value());
    return;
  }
  for (size_t set = 0; set < tags_.size(); ++set) {
    for (size_t way = 0; way < kWays; ++way) {
      if (entries_[set][way].domain_id == did) tags_[set].way[way] = 0;
    }
  }
}

void Iotlb::DropWay(uint64_t tag) {
  TagLine& line = tags_[SetOf(tag)];
  const int way = MatchWay(line, tag);
  if (way < kWays) line.way[static_cast<size_t>(way)] = 0;
}

void Iotlb::InvalidateRange(DomainId did, IovaRange range) {
  if (range.empty()) return;
  // A small range is probed page by page, a large one is looked for in every set.
  if (key_ == Key::kDomain && range.size_bytes() / kPageSize <= tags_.size()) {
    const auto owner = owners_.find(did.value());
    if (owner == owners_.end()) return;
    for (int level = 1; level <= kLevels; ++level) {
      if (!level_used_[static_cast<size_t>(level)]) continue;
      const uint64_t last = PageOf(range.end - 1, level);
      for (uint64_t page = PageOf(range.first, level); page <= last; ++page) {
        if (page > TagPage::kMax) return;
        DropWay(MakeTag(owner->second, page, level));
      }
    }
    return;
  }
  for (size_t set = 0; set < tags_.size(); ++set) {
    for (size_t way = 0; way < kWays; ++way) {
      const uint64_t tag = tags_[set].way[way];
      if (tag != 0 && entries_[set][way].domain_id == did && RangeOf(tag).Overlaps(range)) {
        tags_[set].way[way] = 0;
      }
    }
  }
}

}  // namespace viommu
