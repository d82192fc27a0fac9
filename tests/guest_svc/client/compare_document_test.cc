#include "guest_svc/client/compare_document.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "guest_svc/client/pricing.h"
#include "iommu_core/base/cost_model.h"
#include "svc_common/conversions.h"

namespace viommu::client {
namespace {

using testing::HasSubstr;

Comparison Sweep() {
  Comparison c;
  c.command = "viommu compare --workload=rr";
  c.version = "1";
  c.input = "rr";
  c.seed = 7;
  c.cost_preset = ToProto(CostModel());
  c.plan = {{"strict", "lazy"}, {"walk", "snapshot"}, {16, 64}, {1, 2}, 100, 250, "each", "never"};
  uint64_t n = 1;
  for (const PlannedRow& planned : RowsOf(c.plan)) {
    CompareRow row{planned.policy,
                   planned.strategy,
                   planned.live_pages,
                   static_cast<uint32_t>(planned.vcpus),
                   {}};
    row.result.set_policy(row.policy);
    row.result.set_strategy(row.strategy);
    row.result.set_unmaps(n);
    row.result.set_exits(3 * n);
    row.result.set_map_updates(5 * n);
    row.result.mutable_sync()->set_ptes_read(1000 * n);
    row.result.mutable_sync()->set_bytes_read(8000 * n + 2048);
    row.result.mutable_sync()->set_leaves_visited(11 * n);
    row.result.set_stale_page_seconds(0.1 * static_cast<double>(n));
    row.result.set_modelled_wait_ns(13);
    row.result.set_wall_seconds(1.5);
    c.rows.push_back(row);
    ++n;
  }
  return c;
}

// What `compare --shard=index/count` of the sweep writes, read back.
NamedComparison Shard(uint64_t index, uint64_t count) {
  Comparison part = Sweep();
  const std::vector<CompareRow> all = part.rows;
  part.plan.shard = index;
  part.plan.shards = count;
  part.rows.clear();
  for (size_t i = index; i < all.size(); i += count) part.rows.push_back(all[i]);
  const std::string name = "part " + std::to_string(index);
  const auto read = ComparisonFromJson(Json::parse(ToJson(part).dump()), name);
  EXPECT_TRUE(read.ok()) << read.status();
  return {name, *read};
}

TEST(CompareDocument, ReadsBackWhatItWrote) {
  const Json written = ToJson(Sweep());
  const auto read = ComparisonFromJson(Json::parse(written.dump()), "f");
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(ToJson(*read).dump(), written.dump());
}

TEST(CompareDocument, NamesWhatIsWrong) {
  const Json good = ToJson(Sweep());
  const auto error = [&](const Json& json) {
    return std::string(ComparisonFromJson(json, "f.json").status().message());
  };
  EXPECT_THAT(error(Json::array()), HasSubstr("f.json: is no object"));
  Json bad = good;
  bad["schema"] = "viommu.load.v1";
  EXPECT_THAT(error(bad), HasSubstr("f.json: its schema is 'viommu.load.v1'"));
  bad = good;
  bad["rows"][2].erase("exits");
  EXPECT_THAT(error(bad), HasSubstr("f.json: row 3: has no exits"));
  bad = good;
  bad["rows"][0]["descriptors"]["wait"] = -1;
  EXPECT_THAT(error(bad), HasSubstr("row 1: descriptors/wait is no number that fits"));
  bad = good;
  bad["rows"][0] = 3;
  EXPECT_THAT(error(bad), HasSubstr("row 1: is no object"));
  bad = good;
  bad["plan"]["policies"] = {1};
  EXPECT_THAT(error(bad), HasSubstr("plan/policies has an item of the wrong type"));
  bad = good;
  bad["plan"]["shards"] = 0u;
  EXPECT_THAT(error(bad), HasSubstr("shard is not one of its shards"));
}

TEST(Merge, ShardsGiveTheWholeSweepInItsOrder) {
  const auto merged = MergeComparisons({Shard(2, 3), Shard(0, 3), Shard(1, 3)});
  ASSERT_TRUE(merged.ok()) << merged.status();
  EXPECT_EQ(ToJson(*merged)["rows"].dump(), ToJson(Sweep())["rows"].dump());
  EXPECT_EQ(merged->plan.shards, 1u);
}

TEST(Merge, SaysWhichShardIsMissing) {
  const auto merged = MergeComparisons({Shard(0, 3), Shard(2, 3)});
  EXPECT_THAT(std::string(merged.status().message()), HasSubstr("--shard=1/3"));
}

TEST(Merge, ARowTwiceMustBeTheSameButForWallTime) {
  NamedComparison again = Shard(0, 2);
  again.name = "again";
  again.comparison.rows[1].result.set_wall_seconds(99);
  EXPECT_TRUE(MergeComparisons({Shard(0, 2), Shard(1, 2), again}).ok());
  again.comparison.rows[1].result.mutable_sync()->set_ptes_read(1);
  const auto merged = MergeComparisons({Shard(0, 2), Shard(1, 2), again});
  EXPECT_THAT(std::string(merged.status().message()),
              HasSubstr("ptes_read differs between part 0 and again"));
}

TEST(Merge, OnlyOneSweep) {
  const auto error = [](const std::function<void(Comparison&)>& change) {
    NamedComparison other = Shard(1, 2);
    change(other.comparison);
    return std::string(MergeComparisons({Shard(0, 2), other}).status().message());
  };
  EXPECT_THAT(error([](Comparison& c) { c.seed = 8; }), HasSubstr("seed differs: part 0 has '7'"));
  EXPECT_THAT(error([](Comparison& c) { c.input = "x"; }), HasSubstr("input differs"));
  EXPECT_THAT(error([](Comparison& c) { c.plan.hz = 100; }), HasSubstr("--hz differs"));
  EXPECT_THAT(error([](Comparison& c) { c.version = "2"; }), HasSubstr("version differs"));
  EXPECT_THAT(error([](Comparison& c) { c.cost_preset.mutable_constants(0)->set_value_ns(1); }),
              HasSubstr("cost preset differs"));
}

TEST(Pricing, EventsTimesConstantsIsTheModel) {
  v1::WorkloadResult result = Sweep().rows[3].result;
  result.set_unmap_updates(17);
  v1::SyncCost& sync = *result.mutable_sync();
  sync.set_descriptor_count(19);
  sync.set_ptes_changed(23);
  sync.set_dma_maps(29);
  sync.set_dma_unmaps(31);
  sync.set_pages_pinned(37);
  sync.set_iotlb_invalidations(41);
  CostModel model;
  model.descriptor_ns = 2;
  model.pte_read_ns = 3;
  model.pte_change_ns = 5;
  // As the guest's machine prices it, submission by submission.
  ModelledCost price = PriceSync(model, FromProto(sync));
  const double exits = static_cast<double>(result.exits());
  const double expected = price.total() + (exits - 1) * model.submission_ns +
                          exits * model.queue_build_ns +
                          static_cast<double>(result.map_updates()) * model.map_update_ns +
                          17 * model.unmap_update_ns + result.modelled_wait_ns();
  EXPECT_NEAR(Reprice(ToProto(model), result), expected, 1e-6 * expected);
  // A free exit saves exactly the exits' price.
  const double with_exits = Reprice(ToProto(model), result);
  const double submission_ns = model.submission_ns;
  model.submission_ns = 0;
  EXPECT_NEAR(with_exits - Reprice(ToProto(model), result), exits * submission_ns, 1e-3);
}

}  // namespace
}  // namespace viommu::client
