#include "guest_svc/client/sensitivity.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace viommu::client {
namespace {

using testing::HasSubstr;

// 100 unmaps: `strict` pays two exits each, `lazy` one and a walk of the live set.
CompareRow Row(const char* policy, uint64_t live, uint64_t exits, uint64_t leaves) {
  CompareRow row{policy, "walk", live, 1, {}};
  row.result.set_unmaps(100);
  row.result.set_exits(exits);
  row.result.mutable_sync()->set_leaves_visited(leaves);
  return row;
}

Comparison Example() {
  Comparison c;
  c.cost_preset.set_name("example");
  for (const auto& [name, low, value, high] :
       {std::tuple{"submission_ns", 500.0, 1000.0, 2000.0},
        std::tuple{"leaf_visit_ns", 5.0, 10.0, 40.0}, std::tuple{"pin_page_ns", 10.0, 10.0, 10.0},
        std::tuple{"dma_map_ns", 1.0, 2.0, 3.0}}) {
    v1::CostConstant* constant = c.cost_preset.add_constants();
    constant->set_name(name);
    constant->set_low_ns(low);
    constant->set_value_ns(value);
    constant->set_high_ns(high);
  }
  for (uint64_t live : {100, 1000}) {
    c.rows.push_back(Row("strict", live, 200, 0));
    c.rows.push_back(Row("lazy", live, 100, 30 * live));
  }
  return c;
}

TEST(Sensitivity, RatioAndFlipMoveWithTheConstantThatMatters) {
  const auto list = ComputeSensitivity(Example());
  ASSERT_EQ(list.size(), 1u);
  const PairSensitivity& pair = list[0];
  EXPECT_EQ(pair.first, "lazy");
  EXPECT_EQ(pair.live_pages, 1000u);
  // strict 200 x 1000; lazy 100 x 1000 + 30 x 1000 x 10.
  EXPECT_DOUBLE_EQ(pair.base.ratio, 400e3 / 200e3);
  // 100e3 + 300 L = 200e3 at L = 333.
  ASSERT_TRUE(pair.base.flip_pages.has_value());
  EXPECT_NEAR(*pair.base.flip_pages, 333.3, 0.1);
  // dma_map_ns has a range but nobody maps; pin_page_ns has none.
  ASSERT_EQ(pair.swings.size(), 2u);
  EXPECT_EQ(pair.swings[0].constant, "leaf_visit_ns");
  EXPECT_DOUBLE_EQ(pair.swings[0].low.ratio, 250e3 / 200e3);
  EXPECT_DOUBLE_EQ(pair.swings[0].high.ratio, 1300e3 / 200e3);
  EXPECT_NEAR(*pair.swings[0].low.flip_pages, 666.7, 0.1);
  // At 40 ns lazy is dearer at every measured size: no flip.
  EXPECT_FALSE(pair.swings[0].high.flip_pages.has_value());
  EXPECT_EQ(pair.swings[1].constant, "submission_ns");
  EXPECT_DOUBLE_EQ(pair.swings[1].low.ratio, 350e3 / 100e3);
  EXPECT_DOUBLE_EQ(pair.swings[1].high.ratio, 500e3 / 400e3);
}

TEST(Sensitivity, AsTextAndJson) {
  const auto list = ComputeSensitivity(Example());
  EXPECT_THAT(ToText(list), HasSubstr("2.00 times the cost at 1,000 live pages, flip at 333"));
  EXPECT_THAT(ToText(list), HasSubstr("667 to none"));
  const Json json = ToJson(list);
  EXPECT_EQ(json[0]["swings"][0]["constant"], "leaf_visit_ns");
  EXPECT_TRUE(json[0]["swings"][0]["high"]["flip_pages"].is_null());
  EXPECT_THAT(ToText({}), HasSubstr("--policies needs strict"));
}

TEST(Sensitivity, NothingWithoutStrict) {
  Comparison c = Example();
  std::erase_if(c.rows, [](const CompareRow& row) { return row.policy == "strict"; });
  EXPECT_TRUE(ComputeSensitivity(c).empty());
}

}  // namespace
}  // namespace viommu::client
