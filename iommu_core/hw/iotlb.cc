#include "iommu_core/hw/iotlb.h"

#include <algorithm>
#include <bit>

namespace viommu {
namespace {

// Index of the way that holds `tag`, or the number of ways.
template <typename Line>
int WayOf(const Line& line, uint64_t tag) {
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
  words_.resize(sets);
  next_way_.resize(sets);
  if (key_ == Key::kSource) domains_.resize(sets);
}

IovaRange Iotlb::RangeOf(uint64_t tag) {
  const int level = static_cast<int>(TagLevel::Get(tag));
  return MakeRange(Iova(TagPage::Get(tag) << vtd::LevelShift(level)), vtd::LevelSize(level));
}

uint32_t Iotlb::MakeOwner(uint16_t id) {
  if (const uint32_t owner = OwnerOf(id); owner != kNoOwner) return owner;
  if (next_owner_ > TagOwner::kMax) InvalidateAll();  // tags are used up: start over, empty
  auto& page = owners_[id >> 8];
  if (page == nullptr) page = std::make_unique<OwnerPage>();
  return (*page)[id & 0xff] = next_owner_++;
}

DomainId Iotlb::DomainInSet(size_t set, uint64_t tag) const {
  return domains_[set][static_cast<size_t>(WayOf(tags_[set], tag))];
}

void Iotlb::Insert(uint16_t id, Iova iova, const Entry& entry) {
  const uint32_t owner = MakeOwner(id);
  const uint64_t page = PageOf(iova, entry.level);
  const uint64_t tag = MakeTag(owner, page, entry.level);
  const auto [set, first_choice] = PlaceOf(page, entry.level);
  int way = WayOf(tags_[set], tag);
  if (way == kWays && tags_[set].way[first_choice] == 0) way = static_cast<int>(first_choice);
  if (way == kWays) way = WayOf(tags_[set], 0);
  if (way == kWays) {
    way = next_way_[set];
    next_way_[set] = static_cast<uint8_t>((way + 1) % kWays);
  }
  const auto w = static_cast<size_t>(way);
  tags_[set].way[w] = tag;
  words_[set].way[w] =
      entry.page.value() | kValid | (entry.access.read ? 1u : 0u) | (entry.access.write ? 2u : 0u);
  if (key_ == Key::kSource) domains_[set][w] = entry.domain_id;
  level_used_[static_cast<size_t>(entry.level)] = true;
}

void Iotlb::InvalidateAll() {
  std::fill(tags_.begin(), tags_.end(), Line{});
  for (auto& page : owners_) page.reset();
  next_owner_ = 1;
  level_used_ = {};
}

void Iotlb::InvalidateDomain(DomainId did) {
  if (key_ == Key::kDomain) {
    const auto& page = owners_[did.value() >> 8];
    if (page != nullptr) (*page)[did.value() & 0xff] = kNoOwner;
    return;
  }
  for (size_t set = 0; set < tags_.size(); ++set) {
    for (size_t way = 0; way < kWays; ++way) {
      if (domains_[set][way] == did) tags_[set].way[way] = 0;
    }
  }
}

void Iotlb::DropWay(uint64_t page, int level, uint64_t tag) {
  Line& line = tags_[PlaceOf(page, level).set];
  const int way = WayOf(line, tag);
  if (way < kWays) line.way[static_cast<size_t>(way)] = 0;
}

void Iotlb::InvalidateRange(DomainId did, IovaRange range) {
  if (range.empty()) return;
  const uint32_t owner = key_ == Key::kDomain ? OwnerOf(did.value()) : kNoOwner;
  if (key_ == Key::kDomain) {
    if (owner == kNoOwner) return;
    // A small range is probed page by page, a large one is looked for in every set.
    if (range.size_bytes() / kPageSize <= tags_.size()) {
      for (int level = 1; level <= kLevels; ++level) {
        if (!level_used_[static_cast<size_t>(level)]) continue;
        const uint64_t last = PageOf(range.end - 1, level);
        for (uint64_t page = PageOf(range.first, level); page <= last; ++page) {
          if (page > TagPage::kMax) return;
          DropWay(page, level, MakeTag(owner, page, level));
        }
      }
      return;
    }
  }
  for (size_t set = 0; set < tags_.size(); ++set) {
    for (size_t way = 0; way < kWays; ++way) {
      uint64_t& tag = tags_[set].way[way];
      const bool owned =
          key_ == Key::kDomain ? TagOwner::Get(tag) == owner : domains_[set][way] == did;
      if (tag != 0 && owned && RangeOf(tag).Overlaps(range)) tag = 0;
    }
  }
}

}  // namespace viommu
