#include "iommu_core/base/cost_model.h"

#include <gtest/gtest.h>

namespace viommu {
namespace {

// Constants that make every term readable in the sum.
CostModel Model() {
  CostModel m;
  m.submission_ns = 1000;
  m.descriptor_ns = 7;
  m.leaf_visit_ns = 100;
  m.pte_read_ns = 3;
  m.bulk_read_ns_per_kib = 20;
  m.pte_change_ns = 11;
  m.dma_map_ns = 4700;
  m.dma_unmap_ns = 820;
  m.pin_page_ns = 940;
  m.hw_invalidation_ns = 700;
  return m;
}

TEST(CostModelTest, EmptySubmissionCostsItsExit) {
  const ModelledCost price = PriceSync(Model(), {});
  EXPECT_DOUBLE_EQ(price.exit_ns, 1000);
  EXPECT_DOUBLE_EQ(price.total(), 1000);
}

TEST(CostModelTest, EveryCountIsPricedOnce) {
  SyncCost cost;
  cost.descriptors = 2;
  cost.ptes_read = 10;
  cost.bytes_read = 10 * 8;
  cost.leaves_visited = 5;
  cost.ptes_changed = 4;
  cost.dma_maps = 3;
  cost.dma_unmaps = 2;
  cost.pages_pinned = 6;
  cost.iotlb_invalidations = 1;
  const ModelledCost price = PriceSync(Model(), cost);
  EXPECT_DOUBLE_EQ(price.exit_ns, 1000 + 2 * 7);
  EXPECT_DOUBLE_EQ(price.walk_ns, 5 * 100 + 10 * 3 + 4 * 11);
  EXPECT_DOUBLE_EQ(price.dma_ns, 3 * 4700 + 2 * 820 + 6 * 940);
  EXPECT_DOUBLE_EQ(price.hw_ns, 700);
  EXPECT_DOUBLE_EQ(price.guest_ns, 0);
  EXPECT_DOUBLE_EQ(price.wait_ns, 0);
  EXPECT_DOUBLE_EQ(price.total(), price.exit_ns + price.walk_ns + price.dma_ns + price.hw_ns);
}

// Bytes beyond those of the entries read one by one were compared in bulk.
TEST(CostModelTest, BulkIsWhatIsLeftOfTheBytes) {
  SyncCost cost;
  cost.ptes_read = 512;
  cost.bytes_read = 512 * 8 + 3 * 4096;
  EXPECT_DOUBLE_EQ(PriceSync(Model(), cost).walk_ns, 512 * 3 + 12 * 20);
  cost.bytes_read = 0;  // a counter that lags behind never gives a negative price
  EXPECT_DOUBLE_EQ(PriceSync(Model(), cost).walk_ns, 512 * 3);
}

// Counts that describe the outcome, not work, have no price.
TEST(CostModelTest, OutcomesAreFree) {
  SyncCost cost;
  cost.dma_map_failures = 5;
  cost.pages_unpinned = 5;
  cost.shadow_mismatches = 5;
  cost.verified_pages = 5;
  EXPECT_DOUBLE_EQ(PriceSync(Model(), cost).total(), 1000);
}

// The default preset (anchors: 6.7 us a trapped submission, 100 ns a leaf visited).
TEST(CostModelTest, DefaultIsQemuTrap) {
  SyncCost cost;
  cost.leaves_visited = 16384;
  const CostModel m;
  EXPECT_EQ(m.preset_name, "qemu-trap");
  EXPECT_DOUBLE_EQ(PriceSync(m, cost).total(), 6700 + 1638400);
}

// Every field: a sum that forgets one would make a run's total lie.
TEST(SyncCostTest, SumAddsEveryField) {
  static_assert(sizeof(SyncCost) % sizeof(uint64_t) == 0);
  constexpr size_t kFields = sizeof(SyncCost) / sizeof(uint64_t);
  SyncCost a;
  SyncCost b;
  auto* pa = reinterpret_cast<uint64_t*>(&a);
  auto* pb = reinterpret_cast<uint64_t*>(&b);
  for (size_t i = 0; i < kFields; ++i) {
    pa[i] = i + 1;
    pb[i] = 100 * (i + 1);
  }
  a += b;
  for (size_t i = 0; i < kFields; ++i) EXPECT_EQ(pa[i], 101 * (i + 1)) << "field " << i;
  EXPECT_NE(a, b);
}

TEST(ModelledCostTest, SumAddsEveryField) {
  ModelledCost a{1, 2, 3, 4, 5, 6};
  a += ModelledCost{10, 20, 30, 40, 50, 60};
  EXPECT_DOUBLE_EQ(a.guest_ns, 11);
  EXPECT_DOUBLE_EQ(a.exit_ns, 22);
  EXPECT_DOUBLE_EQ(a.walk_ns, 33);
  EXPECT_DOUBLE_EQ(a.dma_ns, 44);
  EXPECT_DOUBLE_EQ(a.hw_ns, 55);
  EXPECT_DOUBLE_EQ(a.wait_ns, 66);
  EXPECT_DOUBLE_EQ(a.total(), 231);
}

}  // namespace
}  // namespace viommu
