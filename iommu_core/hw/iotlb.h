// Set-associative IOTLB (VT-d 6.2.3). That translations are cached, tagged by domain and emptied by
// the scopes of 6.5.2.3 is architecture; eight ways, the hash and round-robin are model choices.
#ifndef VIOMMU_IOMMU_CORE_HW_IOTLB_H_
#define VIOMMU_IOMMU_CORE_HW_IOTLB_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "iommu_core/base/bits.h"
#include "iommu_core/base/types.h"
#include "iommu_core/vtd/second_stage_pte.h"

namespace viommu {

// Entries of 4K, 2M and 1G share the sets. Not thread-safe.
class Iotlb {
 public:
  // What tags an entry beside its page: the domain id, as the specification says, or the source id,
  // as QEMU has it.
  enum class Key { kDomain, kSource };

  struct Entry {
    PhysAddr page;  // first byte of the leaf's page
    int level = 1;  // 1 4K, 2 2M, 3 1G
    Access access;  // effective over all levels
    DomainId domain_id;
  };

  // `entries` is rounded to a power-of-two number of sets, at least one.
  Iotlb(uint32_t entries, Key key);

  // `id` is a domain id or a source id, as Key says. `iova` beyond 57 bits is never found.
  std::optional<Entry> Find(uint16_t id, Iova iova) const {
    if ((iova.value() >> kMaxAddressBits) != 0) return std::nullopt;
    const uint32_t owner = OwnerOf(id);
    if (owner == kNoOwner) return std::nullopt;
    for (int level = 1; level <= kLevels; ++level) {
      if (!level_used_[static_cast<size_t>(level)]) continue;
      const uint64_t page = PageOf(iova, level);
      const Place place = PlaceOf(page, level);
      const uint64_t tag = MakeTag(owner, page, level);
      const Line& tags = tags_[place.set];
      const Line& words = words_[place.set];
      const uint64_t word =
          tags.way[place.way] == tag ? words.way[place.way] : Select(tags, tag, words);
      if (word == 0) continue;
      Entry entry{PhysAddr(word & ~kPageMask), level, AccessOf(word), DomainId(id)};
      if (key_ == Key::kSource) entry.domain_id = DomainInSet(place.set, tag);
      return entry;
    }
    return std::nullopt;
  }
  void Insert(uint16_t id, Iova iova, const Entry& entry);

  void InvalidateAll();
  // O(1) when keyed by domain: the domain gets a new tag, so its old entries match nothing.
  void InvalidateDomain(DomainId did);
  // Drops every entry of `did` that overlaps `range`.
  void InvalidateRange(DomainId did, IovaRange range);

  size_t sets() const { return tags_.size(); }

 private:
  static constexpr int kWays = 8;
  static constexpr int kLevels = 3;
  static constexpr int kMaxAddressBits = 57;
  static constexpr uint32_t kNoOwner = 0;
  static constexpr uint64_t kValid = 4;  // in a word, beside R = 1 and W = 2

  // The tags of a set are one cache line, its words (page and access) another. A tag of 0: empty.
  struct alignas(64) Line {
    std::array<uint64_t, kWays> way{};
  };
  using OwnerPage = std::array<uint32_t, 256>;
  // 57-bit addresses leave 45 bits of page number; a level of 1..3; the rest tells domains apart.
  using TagPage = Bits<44, 0>;
  using TagLevel = Bits<46, 45>;
  using TagOwner = Bits<63, 47>;

  // The word beside the tag in any way, or 0. Compared by vector and masked: no branch.
  static uint64_t Select(const Line& tags, uint64_t tag, const Line& words) {
    typedef uint64_t Pair __attribute__((vector_size(16), may_alias));
    const auto* t = reinterpret_cast<const Pair*>(tags.way.data());
    const auto* w = reinterpret_cast<const Pair*>(words.way.data());
    const Pair wanted = {tag, tag};
    const Pair found = (((Pair)(t[0] == wanted) & w[0]) | ((Pair)(t[1] == wanted) & w[1])) |
                       (((Pair)(t[2] == wanted) & w[2]) | ((Pair)(t[3] == wanted) & w[3]));
    return found[0] | found[1];
  }
  static uint64_t PageOf(Iova iova, int level) { return iova.value() >> vtd::LevelShift(level); }
  static uint64_t MakeTag(uint32_t owner, uint64_t page, int level) {
    return TagPage::Make(page) | TagLevel::Make(static_cast<uint64_t>(level)) |
           TagOwner::Make(owner);
  }
  static Access AccessOf(uint64_t word) { return {(word & 1) != 0, (word & 2) != 0}; }
  static IovaRange RangeOf(uint64_t tag);
  // Fibonacci hashing over page and level, not over the owner: a domain's new tag keeps its place.
  // The way is where the page goes if that one is free, and where it is looked for first: mostly
  // the processor guesses right, and fetches the word while the tag is being compared.
  struct Place {
    size_t set;
    size_t way;
  };
  Place PlaceOf(uint64_t page, int level) const {
    const uint64_t hash = page * kLevelHash[static_cast<size_t>(level - 1)];
    return {(hash >> 32) & (tags_.size() - 1), hash >> 61};
  }
  static constexpr std::array<uint64_t, kLevels> kLevelHash = {
      0x9e3779b97f4a7c15, 0xd1b54a32d192ed03, 0x8cb92ba72f3d8dd7};
  uint32_t OwnerOf(uint16_t id) const {
    const auto& page = owners_[id >> 8];
    return page == nullptr ? kNoOwner : (*page)[id & 0xff];
  }
  uint32_t MakeOwner(uint16_t id);
  DomainId DomainInSet(size_t set, uint64_t tag) const;
  void DropWay(uint64_t page, int level, uint64_t tag);

  const Key key_;
  std::vector<Line> tags_;
  std::vector<Line> words_;
  std::vector<std::array<DomainId, kWays>> domains_;  // Key::kSource only
  std::vector<uint8_t> next_way_;
  // The tag value that now stands for each id.
  std::array<std::unique_ptr<OwnerPage>, 256> owners_;
  uint32_t next_owner_ = 1;
  std::array<bool, kLevels + 1> level_used_{};
};

}  // namespace viommu

#endif  // VIOMMU_IOMMU_CORE_HW_IOTLB_H_
