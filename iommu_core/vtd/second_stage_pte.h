// Second-stage paging entries (VT-d 9.9). There is no present bit: an entry with R = W = 0 is not
// present. Levels count from 1 (4K leaf) upwards; the root of a 3-level table is level 3.
#ifndef VIOMMU_IOMMU_CORE_VTD_SECOND_STAGE_PTE_H_
#define VIOMMU_IOMMU_CORE_VTD_SECOND_STAGE_PTE_H_

#include <cstdint>

#include "iommu_core/base/bits.h"
#include "iommu_core/base/types.h"

namespace viommu::vtd {

inline constexpr int kEntriesPerTable = 512;
inline constexpr int kIndexBits = 9;

// Bits of address below the span of one entry at `level`: 12, 21, 30, 39.
constexpr int LevelShift(int level) { return kPageShift + kIndexBits * (level - 1); }
constexpr uint64_t LevelSize(int level) { return uint64_t{1} << LevelShift(level); }
constexpr int LevelIndex(Iova iova, int level) {
  return static_cast<int>((iova.value() >> LevelShift(level)) & (kEntriesPerTable - 1));
}
constexpr int WidthOfLevels(int levels) { return kPageShift + kIndexBits * levels; }
constexpr int LevelsOfWidth(int width) { return (width - kPageShift) / kIndexBits; }

struct SecondStagePte {
  uint64_t raw = 0;

  using R = Bit<0>;
  using W = Bit<1>;
  using Ps = Bit<7>;  // levels 2 and 3: this entry is a leaf
  using A = Bit<8>;
  using D = Bit<9>;
  using Snp = Bit<11>;

  constexpr Access access() const { return {R::Get(raw) != 0, W::Get(raw) != 0}; }
  constexpr bool present() const { return (raw & 3) != 0; }
  constexpr bool leaf(int level) const { return level == 1 || Ps::Get(raw) != 0; }
  constexpr bool snoop() const { return Snp::Get(raw) != 0; }
  // Next table, or the first byte that a leaf at `level` maps.
  constexpr PhysAddr address(int haw, int level) const {
    return PhysAddr(raw & BitMask(haw - 1, leaf(level) ? LevelShift(level) : kPageShift));
  }

  static constexpr SecondStagePte Table(PhysAddr table) { return {table.value() | 3}; }
  static constexpr SecondStagePte Leaf(PhysAddr page, int level, Access access) {
    return {page.value() | R::Make(access.read) | W::Make(access.write) | Ps::Make(level > 1)};
  }
  friend constexpr bool operator==(SecondStagePte, SecondStagePte) = default;
};
static_assert(sizeof(SecondStagePte) == 8);

}  // namespace viommu::vtd

#endif  // VIOMMU_IOMMU_CORE_VTD_SECOND_STAGE_PTE_H_
