// Entries read by the line mean what they mean one by one.
#include "iommu_core/shadow/leaf_line.h"

#include <random>

#include "gtest/gtest.h"
#include "iommu_core/vtd/second_stage_pte.h"

namespace viommu {
namespace {

uint64_t OneByOne(const GuestPteRules& rules, const HostMap& map, uint64_t raw,
                  uint64_t permissions) {
  const uint64_t effective = raw & permissions & kPermissionBits;
  if (effective == 0 || rules.Classify(raw, 1) != EntryKind::kLeaf) return 0;
  return vtd::SecondStagePte::Leaf(ToPhys(map.ToHost(rules.AddressOf(raw))), 1, ToAccess(effective))
      .raw;
}

TEST(LeafLine, ReadsEightEntriesAsTheyAreReadOneByOne) {
  std::mt19937_64 random(1);
  for (const int shift : {12, 21, 30}) {
    const GuestPteRules rules(vtd::QemuCapabilities(48, true), 48);
    const HostMap map(48, shift);
    uint64_t leaves = 0, absent = 0, kept = 0;
    for (int round = 0; round < 3000; ++round) {
      const uint64_t permissions = 1 + random() % 3;
      // Addresses, permissions and ignored bits at random; a reserved bit now and then.
      const auto entry = [&] {
        uint64_t raw = random() & (0x0000fffffffff7ff | uint64_t{0x3ff} << 52);
        raw &= ~(uint64_t{1} << 62);
        if (random() % 8 == 0) raw |= uint64_t{1} << (random() % 2 == 0 ? 50 : 62);
        if (random() % 8 == 0) raw &= ~kPermissionBits;
        return random() % 8 == 0 ? 0 : raw;
      };
      EntryLine now, last, was;
      for (size_t i = 0; i < now.size(); ++i) {
        was[i] = last[i] = entry();
        now[i] = random() % 2 == 0 ? last[i] : entry();
        if (random() % 8 == 0) now[i] = last[i] ^ uint64_t { 1 } << 55;  // ignored
      }
      EntryLine host;
      const LeafMasks masks =
          ReadLeafLine(LeafRules(rules, map, permissions), now, last.data(), host);
      EXPECT_EQ(last, now);
      for (size_t i = 0; i < now.size(); ++i) {
        const uint64_t after = OneByOne(rules, map, now[i], permissions);
        const uint64_t before = OneByOne(rules, map, was[i], permissions);
        ASSERT_EQ(host[i], after);
        ASSERT_EQ(masks.differing() >> i & 1, now[i] != was[i]);
        ASSERT_EQ(masks.is() >> i & 1, after != 0);
        ASSERT_EQ(masks.was() >> i & 1, before != 0);
        ASSERT_EQ(masks.changed() >> i & 1, after != before);
        leaves += after != 0;
        absent += after == 0 && now[i] != 0;
        kept += now[i] != was[i] && after == before;
      }
    }
    EXPECT_GT(leaves, 1000u);
    EXPECT_GT(absent, 1000u);
    EXPECT_GT(kept, 1000u);
  }
}

}  // namespace
}  // namespace viommu
