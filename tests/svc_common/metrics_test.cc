#include "svc_common/metrics.h"

#include <gtest/gtest.h>

namespace viommu {
namespace {

TEST(WallHistogramTest, BucketsHoldWhatIsAtMostTheirBound) {
  WallHistogram histogram;
  for (const uint64_t ns : {0ull, 1'000ull, 1'001ull, 2'000ull, 2'001ull, 3'600'000'000'000ull}) {
    histogram.Observe(ns);
  }
  const prometheus::ClientMetric metric = histogram.Snapshot();
  EXPECT_EQ(metric.histogram.sample_count, 6u);
  EXPECT_DOUBLE_EQ(metric.histogram.bucket[0].upper_bound, 1e-6);
  EXPECT_EQ(metric.histogram.bucket[0].cumulative_count, 2u);  // 0 and 1 us
  EXPECT_EQ(metric.histogram.bucket[1].cumulative_count, 4u);  // up to 2 us
  EXPECT_EQ(metric.histogram.bucket[2].cumulative_count, 5u);
  const auto& last = metric.histogram.bucket.back();
  EXPECT_EQ(last.cumulative_count, 6u);
  EXPECT_EQ(last.upper_bound, std::numeric_limits<double>::infinity());
  EXPECT_EQ(metric.histogram.bucket[metric.histogram.bucket.size() - 2].cumulative_count, 5u);
  EXPECT_NEAR(metric.histogram.sample_sum, 3600, 0.001);
}

TEST(MetricsEndpointTest, APortInUseIsSaid) {
  const auto first = MetricsEndpoint::Start("127.0.0.1:0");
  ASSERT_TRUE(first.ok()) << first.status();
  EXPECT_NE((*first)->address(), "127.0.0.1:0");
  EXPECT_TRUE(absl::IsUnavailable(MetricsEndpoint::Start((*first)->address()).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(MetricsEndpoint::Start("unix:/tmp/x").status()));
}

}  // namespace
}  // namespace viommu
