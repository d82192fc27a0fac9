#include "guest_svc/client/top_table.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace viommu::client {
namespace {

using testing::HasSubstr;

v1::Session Session(const char* id, uint64_t submissions) {
  v1::Session s;
  s.set_session_id(id);
  s.set_strategy("walk");
  s.set_connected(true);
  s.set_completed_sequence(submissions);
  s.set_live_page_count(100);
  s.mutable_cost()->set_leaves_visited(submissions * 10);
  s.mutable_cost()->set_ptes_read(submissions * 12);
  s.mutable_cost()->set_ptes_changed(submissions);
  s.set_work_wall_ns(submissions * 1'000'000);
  return s;
}

v1::GuestStatus Guest(const char* session, uint64_t unmaps) {
  v1::GuestStatus g;
  g.mutable_policy()->set_effective_policy("lazy");
  g.set_unmap_count(unmaps);
  g.set_stale_page_count(42);
  g.add_session_ids(session);
  return g;
}

TEST(TopRows, WhatHappenedBetween) {
  TopSample before{10, {}, {Guest("a", 1000)}};
  *before.sessions.add_sessions() = Session("a", 100);
  TopSample now{12, {}, {Guest("a", 1400)}};
  *now.sessions.add_sessions() = Session("b", 50);  // new since, and idler
  *now.sessions.add_sessions() = Session("a", 300);
  CostModel model;
  model.submission_ns = 5000;
  model.leaf_visit_ns = 100;
  const auto rows = TopRows(before, now, model);
  ASSERT_EQ(rows.size(), 2u);
  EXPECT_EQ(rows[0].session_id, "a");
  EXPECT_DOUBLE_EQ(rows[0].submissions_per_second, 100);
  EXPECT_DOUBLE_EQ(*rows[0].unmaps_per_second, 200);
  EXPECT_DOUBLE_EQ(rows[0].entries_read_per_changed, 12);
  // An exit and ten leaves each; half as many exits as unmaps.
  EXPECT_DOUBLE_EQ(rows[0].modelled_ns_per_submission, 6000);
  EXPECT_DOUBLE_EQ(*rows[0].modelled_ns_per_unmap, 3000);
  EXPECT_EQ(*rows[0].stale_pages, 42u);
  EXPECT_EQ(*rows[0].policy, "lazy");
  EXPECT_DOUBLE_EQ(rows[0].work_part, 0.1);
  EXPECT_EQ(rows[1].session_id, "b");
  EXPECT_DOUBLE_EQ(rows[1].submissions_per_second, 25);
  EXPECT_FALSE(rows[1].policy.has_value());
  EXPECT_FALSE(rows[1].unmaps_per_second.has_value());
}

TEST(TopRows, AnIdleSessionDividesByNothing) {
  TopSample sample{10, {}, {Guest("a", 0)}};
  *sample.sessions.add_sessions() = Session("a", 0);
  TopSample later = sample;
  later.seconds = 11;
  const auto rows = TopRows(sample, later, {});
  EXPECT_EQ(rows[0].modelled_ns_per_submission, 0);
  EXPECT_EQ(*rows[0].unmaps_per_second, 0);
  EXPECT_FALSE(rows[0].modelled_ns_per_unmap.has_value());
}

TEST(TopRows, AsTextAndJson) {
  TopSample now{12, {}, {}};
  *now.sessions.add_sessions() = Session("0123456789", 300);
  const auto rows = TopRows({}, now, {});
  EXPECT_THAT(ToText(rows), HasSubstr("01234567"));
  EXPECT_THAT(ToText(rows), HasSubstr("7.70 us"));
  EXPECT_EQ(ToJson(rows)["schema"], "viommu.top.v1");
  EXPECT_FALSE(ToJson(rows)["sessions"][0].contains("policy"));
  EXPECT_EQ(ToText({}), "no sessions\n");
}

}  // namespace
}  // namespace viommu::client
