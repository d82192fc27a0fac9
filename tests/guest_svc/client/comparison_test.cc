#include "guest_svc/client/comparison.h"

#include <set>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "guest_svc/client/compare_document.h"
#include "guest_svc/client/report.h"

namespace viommu::client {
namespace {

using testing::HasSubstr;

CompareRow Row(const char* policy, const char* strategy, uint64_t live, double ns_per_unmap,
               uint64_t read_per_unmap) {
  CompareRow row{policy, strategy, live, 1, {}};
  row.result.set_policy(policy);
  row.result.set_unmaps(100);
  row.result.set_modelled_ns_total(100 * ns_per_unmap);
  row.result.mutable_sync()->set_ptes_read(100 * read_per_unmap);
  return row;
}

Comparison Example() {
  Comparison c;
  c.command = "viommu compare --trace='a b'";
  c.input = "<trace>";
  c.cost_preset.set_name("qemu-trap");
  for (uint64_t live : {1000, 11000}) {
    c.rows.push_back(Row("strict", "walk", live, 10'000, 5));
    c.rows.push_back(Row("lazy", "walk", live, 8'000.0 + static_cast<double>(live), 5 * live));
    // 4 us below strict at 1000, 6 us above at 11000: equal at 1000 + 10000 * 4 / 10 = 5000.
    c.rows.push_back(Row("lazy-single", "walk", live, live == 1000 ? 6'000 : 16'000, 50));
  }
  return c;
}

TEST(Comparison, CrossoverIsInterpolated) {
  const auto cross = FindCrossover(Example(), "lazy-single", "strict", "walk", 1);
  ASSERT_TRUE(cross.has_value());
  EXPECT_EQ(cross->below, 1000u);
  EXPECT_EQ(cross->above, 11000u);
  EXPECT_DOUBLE_EQ(cross->live_pages, 5000);
  EXPECT_TRUE(cross->first_cheaper_below);
  // The other way round it is the same place.
  const auto reverse = FindCrossover(Example(), "strict", "lazy-single", "walk", 1);
  ASSERT_TRUE(reverse.has_value());
  EXPECT_DOUBLE_EQ(reverse->live_pages, 5000);
  EXPECT_FALSE(reverse->first_cheaper_below);
}

TEST(Comparison, NoCrossoverWithoutOne) {
  Comparison c = Example();
  EXPECT_FALSE(FindCrossover(c, "lazy-single", "strict", "walk-shared", 1).has_value());
  EXPECT_FALSE(FindCrossover(c, "lazy-single", "strict", "walk", 2).has_value());
  c.rows[5].result.set_modelled_ns_total(100 * 7'000);
  EXPECT_FALSE(FindCrossover(c, "lazy-single", "strict", "walk", 1).has_value());
}

TEST(Comparison, AnswerInSentences) {
  const auto sentences = Answer(Example());
  ASSERT_EQ(sentences.size(), 3u);
  EXPECT_THAT(sentences[0], HasSubstr("1,000 times at 1,000, 11,000 times at 11,000 live pages"));
  EXPECT_THAT(sentences[1],
              HasSubstr("swap places between 1,000 and 11,000 live pages, about 5,000 by linear "
                        "interpolation: `lazy-single` is cheaper below, `strict` above."));
  EXPECT_THAT(sentences[1], HasSubstr("qemu-trap"));
  EXPECT_THAT(sentences[2], HasSubstr("`lazy` and `strict` swap places between 1,000 and 11,000"));
  Comparison c = Example();
  c.rows[5].result.set_modelled_ns_total(100 * 7'000);
  EXPECT_THAT(Answer(c)[1], HasSubstr("do not swap places: `lazy-single` is cheaper at every "
                                      "measured size from 1,000 to 11,000 live pages"));
  Comparison only_strict;
  only_strict.rows = {Row("strict", "walk", 1, 1, 1)};
  EXPECT_THAT(Answer(only_strict)[0], HasSubstr("both needed"));
}

// contracts.md names these; a consumer may rely on each.
TEST(Comparison, JsonHasEveryNamedField) {
  const Json json = ToJson(Example());
  EXPECT_EQ(json["schema"], "viommu.compare.v1");
  for (const char* name : {"seed", "cost_preset", "input", "rows"}) {
    EXPECT_TRUE(json.contains(name)) << name;
  }
  ASSERT_EQ(json["rows"].size(), 6u);
  for (const Json& row : json["rows"]) {
    for (const char* name : {"policy",
                             "strategy",
                             "live_pages",
                             "vcpus",
                             "maps",
                             "unmaps",
                             "pages_mapped",
                             "pages_unmapped",
                             "exits",
                             "descriptors",
                             "table_pages_read",
                             "ptes_read",
                             "bytes_read",
                             "ptes_changed",
                             "dma_maps",
                             "dma_unmaps",
                             "pinned_pages_max",
                             "iotlb_invalidations",
                             "shadow_mismatches",
                             "stale_page_seconds",
                             "stale_age_max_seconds",
                             "stale_dma_hits",
                             "reused_while_stale_pages",
                             "modelled_ns_per_unmap",
                             "modelled_ns_total",
                             "wall_seconds",
                             "wall_ns_per_unmap_p50",
                             "wall_ns_per_unmap_p99"}) {
      EXPECT_TRUE(row.contains(name)) << name;
    }
    for (const char* name :
         {"iotlb_page", "iotlb_domain", "iotlb_global", "context", "device_tlb", "wait"}) {
      EXPECT_TRUE(row["descriptors"].contains(name)) << name;
    }
  }
  EXPECT_EQ(json["rows"][0]["modelled_ns_per_unmap"], 10'000.0);
}

TEST(Comparison, MismatchesAreSummed) {
  Comparison c = Example();
  EXPECT_EQ(ShadowMismatches(c), 0u);
  c.rows[1].result.mutable_sync()->set_shadow_mismatches(2);
  c.rows[4].result.mutable_sync()->set_shadow_mismatches(3);
  EXPECT_EQ(ShadowMismatches(c), 5u);
}

TEST(Comparison, VerdictNamesTheCheapestAndTheExposure) {
  Comparison c = Example();
  EXPECT_THAT(Verdict(c), HasSubstr("with `walk`, `lazy-single` up to about 5,000 live pages, "
                                    "`strict` above."));
  EXPECT_THAT(Verdict(c), HasSubstr("`lazy-single` never, `strict` never."));
  c.rows[2].result.set_stale_age_max_seconds(1.05);
  EXPECT_THAT(Verdict(c), HasSubstr("`lazy-single` for up to 1.05 s, `strict` never."));
  // A second strategy with the same answer is named with the first; lazy wins nowhere.
  for (CompareRow row : Example().rows) {
    row.strategy = "snapshot";
    c.rows.push_back(row);
  }
  EXPECT_THAT(Verdict(c), HasSubstr("with `walk` and `snapshot`, `lazy-single` up to"));
  EXPECT_THAT(Verdict(c), testing::Not(HasSubstr("`lazy` ")));
  c = Example();
  for (CompareRow& row : c.rows) {
    if (row.policy == "lazy-single") row.result.set_modelled_ns_total(100 * 7'000);
  }
  EXPECT_THAT(Verdict(c), HasSubstr("`lazy-single` at every live set from 1,000 to 11,000 pages."));
  EXPECT_EQ(Verdict({}), "");
}

TEST(Report, IsSelfContainedAndEscaped) {
  Comparison c = Example();
  c.notes = {"</script><script>alert(1)</script>"};
  const std::string html = ToHtml(c);
  EXPECT_THAT(html, HasSubstr("&lt;trace&gt;"));
  EXPECT_THAT(html, HasSubstr("--trace=&#39;a b&#39;"));
  EXPECT_THAT(html, testing::Not(HasSubstr("<trace>")));
  EXPECT_THAT(html, testing::Not(HasSubstr("<script>alert")));
  EXPECT_THAT(html, HasSubstr("\\u003c/script>"));
  EXPECT_THAT(html, HasSubstr("<code>lazy-single</code> up to about 5,000 live pages"));
  for (const char* reference :
       {" src=", "@import", "url(http", "href=\"http", "<iframe", "<object"}) {
    EXPECT_THAT(html, testing::Not(HasSubstr(reference)));
  }
  EXPECT_LT(html.size(), 400'000u);
}

TEST(Report, CarriesTheDocumentItself) {
  const std::string html = ToHtml(Example());
  const std::string open = "<script type=\"application/json\" id=\"comparison\">";
  const size_t begin = html.find(open);
  ASSERT_NE(begin, std::string::npos);
  const size_t end = html.find("</script>", begin);
  const Json embedded = Json::parse(html.substr(begin + open.size(), end - begin - open.size()));
  EXPECT_EQ(embedded, ToJson(Example()));
}

}  // namespace
}  // namespace viommu::client
