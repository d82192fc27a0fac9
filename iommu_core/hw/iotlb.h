// Set-associative IOTLB (VT-d 6.2.3). That translations are cached, tagged by domain and emptied by
// the scopes of 6.5.2.3 is architecture; eight ways, the hash and round-robin are model choices.
#ifndef VIOMMU_IOMMU_CORE_HW_IOTLB_H_
#define VIOMMU_IOMMU_CORE_HW_IOTLB_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "iommu_core/base/bits.h"
#include "iommu_core/base/types.h"

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
  std::optional<Entry> Find(uint16_t id, Iova iova) const;
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

  // The tags of a set are one cache line; a miss touches nothing else. 0: empty way.
  struct alignas(64) TagLine {
    std::array<uint64_t, kWays> way{};
  };
  // 57-bit addresses leave 45 bits of page number; a level of 1..3; the rest tells domains apart.
  using TagPage = Bits<44, 0>;
  using TagLevel = Bits<46, 45>;
  using TagOwner = Bits<63, 47>;

  static uint64_t PageOf(Iova iova, int level);
  static uint64_t MakeTag(uint32_t owner, uint64_t page, int level);
  static IovaRange RangeOf(uint64_t tag);
  size_t SetOf(uint64_t tag) const;
  uint32_t OwnerOf(uint16_t id);
  void DropWay(uint64_t tag);

  const Key key_;
  std::vector<TagLine> tags_;
  std::vector<std::array<Entry, kWays>> entries_;
  std::vector<uint8_t> next_way_;
  // The tag value that now stands for each id; ids never seen have none.
  absl::flat_hash_map<uint16_t, uint32_t> owners_;
  uint32_t next_owner_ = 1;
  std::array<bool, kLevels + 1> level_used_{};
};

}  // namespace viommu

#endif  // VIOMMU_IOMMU_CORE_HW_IOTLB_H_
