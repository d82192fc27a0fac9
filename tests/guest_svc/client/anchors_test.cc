#include "guest_svc/client/anchors.h"

#include <limits>
#include <set>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace viommu::client {
namespace {

using testing::HasSubstr;

// Every load costs the same and takes a second.
v1::WorkloadResult Flat() {
  v1::WorkloadResult r;
  r.set_unmaps(1000);
  r.set_exits(2000);
  r.set_modelled_exit_ns(2000 * 6700);
  r.set_modelled_hw_ns(2000 * 700);
  r.set_modelled_ns_total(1000 * 10'000);
  r.set_virtual_seconds(1);
  r.set_stale_page_seconds(400);
  return r;
}

const Anchor& Find(const std::vector<Anchor>& anchors, const std::string& id,
                   const std::string& what) {
  for (const Anchor& a : anchors) {
    if (a.id == id && a.what.find(what) != std::string::npos) return a;
  }
  ADD_FAILURE() << id << " " << what;
  return anchors.front();
}

TEST(Anchors, ComputedFromTheRunsNotFromThePublishedFigures) {
  const auto anchors =
      ComputeAnchors([](const AnchorRun&) -> absl::StatusOr<v1::WorkloadResult> { return Flat(); });
  ASSERT_TRUE(anchors.ok()) << anchors.status();
  // A model to which every load is the same finds no difference between them.
  EXPECT_DOUBLE_EQ(Find(*anchors, "A3", "bare metal").model, 1);
  EXPECT_DOUBLE_EQ(Find(*anchors, "A5", "32768").model, 1);
  EXPECT_DOUBLE_EQ(Find(*anchors, "A6", "nested").model, 1);
  EXPECT_DOUBLE_EQ(Find(*anchors, "A13", "adds to an I/O").model, 0);
  EXPECT_DOUBLE_EQ(Find(*anchors, "A12", "invalidations").model, 1000);
  EXPECT_DOUBLE_EQ(Find(*anchors, "A20", "256").model, 400);
  EXPECT_DOUBLE_EQ(Find(*anchors, "A10", "submission").model, 6700 + 930);
  EXPECT_FALSE(Find(*anchors, "A5", "32768").in_band());
  EXPECT_TRUE(Find(*anchors, "A5", "32768").surprising());
}

TEST(Anchors, PublishedFormulas) {
  const auto anchors =
      ComputeAnchors([](const AnchorRun&) -> absl::StatusOr<v1::WorkloadResult> { return Flat(); });
  ASSERT_TRUE(anchors.ok());
  // anchors.md: 33 % for the sidecore; 79.6 and 35.5 Gb/s of 100 for F&S.
  EXPECT_NEAR(Find(*anchors, "A2", "sidecore").model, 33.8, 0.1);
  EXPECT_NEAR(Find(*anchors, "A16", "5 flows").model, 20.4, 0.1);
  EXPECT_NEAR(Find(*anchors, "A16", "40 flows").model, 64.5, 0.1);
}

TEST(Anchors, EachNamesSourceBasisAndABandAroundThePublishedFigure) {
  const auto anchors =
      ComputeAnchors([](const AnchorRun&) -> absl::StatusOr<v1::WorkloadResult> { return Flat(); });
  ASSERT_TRUE(anchors.ok());
  EXPECT_GE(anchors->size(), 20u);
  std::set<std::string> names;
  for (const Anchor& a : *anchors) {
    EXPECT_TRUE(names.insert(a.id + a.what).second) << a.what;
    EXPECT_FALSE(a.source.empty()) << a.what;
    EXPECT_FALSE(a.basis.empty()) << a.what;
    EXPECT_LE(a.low, a.published) << a.what;
    EXPECT_GE(a.high, a.published) << a.what;
  }
}

TEST(Anchors, AnErrorOfARunIsTheErrorOfAll) {
  int runs = 0;
  const auto anchors = ComputeAnchors([&](const AnchorRun&) -> absl::StatusOr<v1::WorkloadResult> {
    ++runs;
    return absl::UnavailableError("gone");
  });
  EXPECT_EQ(anchors.status(), absl::UnavailableError("gone"));
  EXPECT_EQ(runs, 1);
}

TEST(Anchors, MissesAreShownAsMisses) {
  Anchor a;
  a.id = "X";
  a.what = "a figure";
  a.published = 10;
  a.low = 9;
  a.high = std::numeric_limits<double>::infinity();
  a.model = 8;
  EXPECT_TRUE(a.surprising());
  EXPECT_THAT(ToText({a}), HasSubstr("MISS"));
  EXPECT_THAT(ToText({a}), HasSubstr("0 of 1 in their band, 0 missed as documented, 1 not as"));
  a.known_miss = "a reason";
  EXPECT_FALSE(a.surprising());
  EXPECT_THAT(ToText({a}), HasSubstr("Known miss X, a figure: a reason."));
  EXPECT_THAT(ToText({a}), HasSubstr("at least 9.00"));
  const Json json = ToJson({a});
  EXPECT_EQ(json["schema"], "viommu.anchors.v1");
  EXPECT_TRUE(json["anchors"][0]["band_high"].is_null());
  EXPECT_EQ(json["anchors"][0]["in_band"], false);
  EXPECT_GE(json["not_compared"].size(), 5u);
  // What was said to miss and does not is as wrong as the reverse.
  a.model = 10;
  EXPECT_TRUE(a.surprising());
}

}  // namespace
}  // namespace viommu::client
