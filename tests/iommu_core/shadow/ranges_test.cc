// The arithmetic that the shadows and their oracle stand on: sets of ranges, runs of mappings, and
// the map from guest-physical to host-physical.
#include <iterator>
#include <random>
#include <set>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "iommu_core/shadow/host_map.h"
#include "iommu_core/shadow/mapping_runs.h"
#include "iommu_core/shadow/range_set.h"

namespace viommu {
namespace {

using testing::ElementsAre;

constexpr IovaRange kEverything{Iova(0), Iova(uint64_t{1} << 48)};

IovaRange Pages(uint64_t first, uint64_t count = 1) {
  return MakeRange(Iova(first << kPageShift), count << kPageShift);
}

TEST(RangeSet, EqualsASetOfPages) {
  std::mt19937 random(7);
  RangeSet ranges;
  std::set<uint64_t> pages;
  for (int step = 0; step < 4000; ++step) {
    const uint64_t first = random() % 200;
    const uint64_t count = 1 + random() % 20;
    if (random() % 2 == 0) {
      ranges.Add(Pages(first, count));
      for (uint64_t p = first; p < first + count; ++p) pages.insert(p);
    } else {
      ranges.Erase(Pages(first, count));
      for (uint64_t p = first; p < first + count; ++p) pages.erase(p);
    }
    ASSERT_EQ(ranges.page_count(), pages.size()) << "step " << step;
    ASSERT_EQ(ranges.empty(), pages.empty());
    const uint64_t probe = random() % 220;
    ASSERT_EQ(ranges.Contains(Iova(probe << kPageShift)), pages.count(probe) != 0);
    if (!pages.empty()) {
      ASSERT_EQ(ranges.First().first.value() >> kPageShift, *pages.begin());
    }
    uint64_t within = 0;
    for (const IovaRange& r : ranges.Within(Pages(50, 50))) within += r.size_bytes() >> kPageShift;
    ASSERT_EQ(within,
              static_cast<uint64_t>(std::distance(pages.lower_bound(50), pages.lower_bound(100))));
  }
}

TEST(RangeSet, JoinsWhatAdjoinsAndSplitsWhatIsCut) {
  RangeSet ranges;
  ranges.Add(Pages(1));
  ranges.Add(Pages(3));
  ranges.Add(Pages(2));
  EXPECT_THAT(ranges.Within(kEverything), ElementsAre(Pages(1, 3)));
  ranges.Erase(Pages(2));
  EXPECT_THAT(ranges.Within(kEverything), ElementsAre(Pages(1), Pages(3)));
  ranges.Clear();
  EXPECT_TRUE(ranges.empty());
  EXPECT_EQ(ranges.page_count(), 0u);
}

TEST(RangeSet, IsBoundedAndThenCoversTooMuchNeverTooLittle) {
  constexpr uint64_t kRanges = RangeSet::kMaxRanges + 1000;
  RangeSet upwards;
  RangeSet downwards;  // each new range below all others
  for (uint64_t i = 0; i < kRanges; ++i) {
    upwards.Add(Pages(2 * i));
    downwards.Add(Pages(2 * (kRanges - 1 - i)));
  }
  for (const RangeSet* ranges : {&upwards, &downwards}) {
    EXPECT_LE(ranges->Within(kEverything).size(), RangeSet::kMaxRanges);
    for (uint64_t i = 0; i < kRanges; ++i) {
      ASSERT_TRUE(ranges->Contains(Iova((2 * i) << kPageShift))) << i;
    }
  }
}

LeafMapping Leaf(uint64_t page, uint64_t target, uint64_t count = 1, Access access = kReadWrite) {
  return {Iova(page << kPageShift), PhysAddr(target << kPageShift), count << kPageShift, access};
}

TEST(MappingRuns, LeavesThatAdjoinOnBothSidesAreOneRun) {
  MappingRuns runs(kEverything);
  runs.Append(Leaf(1, 11));
  runs.Append(Leaf(2, 12));
  runs.Append(Leaf(3, 20));                // another target
  runs.Append(Leaf(4, 21, 1, kReadOnly));  // another access
  runs.Append(Leaf(6, 23, 1, kReadOnly));  // a gap
  std::vector<uint64_t> sizes;
  for (const LeafMapping& run : runs.runs()) sizes.push_back(run.size_bytes >> kPageShift);
  EXPECT_THAT(sizes, ElementsAre(2, 1, 1, 1));
}

TEST(MappingRuns, KeepsWhatLiesInTheRange) {
  MappingRuns runs(Pages(5, 2));
  runs.Append(Leaf(0, 100, 5));
  runs.Append(Leaf(5, 200, 512));
  ASSERT_EQ(runs.runs().size(), 1u);
  EXPECT_EQ(runs.runs()[0].iova, Iova(5 << kPageShift));
  EXPECT_EQ(runs.runs()[0].size_bytes, 2u << kPageShift);
  MappingRuns middle(Pages(7));
  middle.Append(Leaf(5, 200, 512));
  ASSERT_EQ(middle.runs().size(), 1u);
  EXPECT_EQ(middle.runs()[0].address, PhysAddr(202 << kPageShift));
}

TEST(CompareRuns, CountsPagesThatDifferInPresenceTargetOrAccess) {
  const std::vector<LeafMapping> reference = {Leaf(0, 100, 10), Leaf(20, 300, 4)};
  const auto differing = [&](const std::vector<LeafMapping>& shadow) {
    return CompareRuns(kEverything, shadow, reference, reference, {}).differing_pages;
  };
  EXPECT_EQ(differing(reference), 0u);
  EXPECT_EQ(differing({}), 14u);
  EXPECT_EQ(differing({Leaf(0, 100, 10)}), 4u);
  EXPECT_EQ(differing({Leaf(0, 100, 4), Leaf(4, 999), Leaf(5, 105, 5), Leaf(20, 300, 4)}), 1u);
  EXPECT_EQ(differing({Leaf(0, 100, 10), Leaf(20, 300, 4, kReadOnly)}), 4u);
  EXPECT_EQ(differing({Leaf(0, 100, 10), Leaf(20, 300, 4), Leaf(50, 1, 3)}), 3u) << "surplus";
  // Cut into pages, the same mappings are equal.
  std::vector<LeafMapping> pieces;
  for (uint64_t i = 0; i < 10; ++i) pieces.push_back(Leaf(i, 100 + i));
  pieces.push_back(Leaf(20, 300, 4));
  EXPECT_EQ(differing(pieces), 0u);
}

TEST(CompareRuns, ExcludedPagesAndPagesTheGuestChangedMeanwhileDoNotCount) {
  const std::vector<LeafMapping> reference = {Leaf(0, 100, 10)};
  const std::vector<IovaRange> excluded = {Pages(0, 4), Pages(8)};
  EXPECT_EQ(CompareRuns(kEverything, {}, reference, reference, excluded).differing_pages, 5u);
  // Pages 6 to 9 read otherwise before: the guest is changing them.
  const std::vector<LeafMapping> earlier = {Leaf(0, 100, 6)};
  EXPECT_EQ(CompareRuns(kEverything, {}, reference, earlier, {}).differing_pages, 6u);
  const RunComparison none = CompareRuns(Pages(2, 3), reference, reference, reference, {});
  EXPECT_EQ(none.differing_pages, 0u);
  EXPECT_EQ(none.compared_pages, 3u);
}

TEST(HostMap, IsABijectionThatKeepsGranulesTogether) {
  for (const int shift : {12, 21, 30}) {
    const HostMap map(39, shift);
    std::mt19937_64 random(3);
    std::set<HostPhys> seen;
    for (uint64_t granule = 0; granule < 300; ++granule) {
      const GuestPhys guest(granule << shift);
      const HostPhys host = map.ToHost(guest);
      EXPECT_GE(host.value(), HostMap::kBase);
      EXPECT_TRUE(IsAligned(host.value(), uint64_t{1} << shift));
      EXPECT_TRUE(seen.insert(host).second) << "two granules in one place";
      const uint64_t offset = random() & ((uint64_t{1} << shift) - 1);
      EXPECT_EQ(map.ToHost(guest + offset), host + offset);
      EXPECT_EQ(map.ToGuest(host + offset), guest + offset);
    }
    for (int i = 0; i < 1000; ++i) {
      const GuestPhys guest(random() & ((uint64_t{1} << 39) - 1));
      ASSERT_EQ(map.ToGuest(map.ToHost(guest)), guest);
    }
  }
}

TEST(HostMap, GuestNeighboursAreNotHostNeighbours) {
  const HostMap map(48, 12);
  int adjoining = 0;
  for (uint64_t page = 0; page < 1000; ++page) {
    const GuestPhys guest(page << kPageShift);
    adjoining += map.ToHost(guest) + kPageSize == map.ToHost(guest + kPageSize) ? 1 : 0;
  }
  EXPECT_EQ(adjoining, 0);
}

}  // namespace
}  // namespace viommu
