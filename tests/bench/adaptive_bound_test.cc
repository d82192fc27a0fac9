// The promise of `adaptive`, on a small cut of what adaptive_table prints: under every cost preset
// at most 1.1 x the best static policy of the same stale-age bound, and a bound that it keeps.
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <string>
#include <tuple>

#include "iommu_core/load/workloads.h"
#include "svc_common/cost_presets.h"
#include "tests/bench/in_process_run.h"

namespace viommu {
namespace {

RunResult RunOne(const std::string& preset, Strategy strategy, const std::string& workload,
                 uint64_t live_pages, Policy policy,
                 absl::Duration bound = absl::Milliseconds(10)) {
  auto source = MakeWorkload(workload, {.seed = 1, .ops = 3'000, .vcpus = 1});
  auto model = LoadCostModel(preset);
  EXPECT_TRUE(source.ok() && model.ok());
  GuestConfig config;
  config.policy = policy;
  config.cost_model = *model;
  config.stale_age_bound = bound;
  auto result = RunInProcess(**source, config, strategy, live_pages);
  EXPECT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->failed_ops, 0u);
  return *result;
}

class AdaptiveBoundTest : public ::testing::TestWithParam<std::tuple<const char*, Strategy>> {};

TEST_P(AdaptiveBoundTest, CostsAtMostATenthMoreThanTheBestStaticPolicy) {
  const auto [preset, strategy] = GetParam();
  for (const char* workload : {"nic-rx-classic", "mixed", "nvme-4k-rr"}) {
    for (const uint64_t live : {1'024, 16'384}) {
      double best = 1e300;
      for (const Policy policy : {Policy::kLazy, Policy::kLazyPsi, Policy::kLazyPsiBatched}) {
        best = std::min(best, RunOne(preset, strategy, workload, live, policy).modelled_ns_total);
      }
      const RunResult adaptive = RunOne(preset, strategy, workload, live, Policy::kAdaptive);
      EXPECT_LE(adaptive.modelled_ns_total, 1.1 * best) << workload << " " << live;
      EXPECT_LE(adaptive.stale_age_max_seconds, 10e-3) << workload << " " << live;
    }
  }
}

// A load too slow to fill a ring: only the timer ends the exposure.
TEST_P(AdaptiveBoundTest, KeepsTheStaleAgeBoundThatItIsGiven) {
  const auto [preset, strategy] = GetParam();
  const RunResult lazy = RunOne(preset, strategy, "nic-page-pool", 1'024, Policy::kLazy);
  EXPECT_GT(lazy.stale_age_max_seconds, 12e-3);  // a 10 ms timer on a 250 Hz tick
  for (const int ms : {2, 10, 25}) {
    const RunResult adaptive =
        RunOne(preset, strategy, "nic-page-pool", 1'024, Policy::kAdaptive, absl::Milliseconds(ms));
    EXPECT_LE(adaptive.stale_age_max_seconds, ms * 1e-3);
    EXPECT_GT(adaptive.stale_age_max_seconds, std::min(ms, 10) * 0.5e-3);
  }
}

INSTANTIATE_TEST_SUITE_P(Trapped, AdaptiveBoundTest,
                         ::testing::Combine(::testing::Values("in-kernel-trap", "qemu-trap"),
                                            ::testing::Values(Strategy::kWalk,
                                                              Strategy::kSnapshot)));
INSTANTIATE_TEST_SUITE_P(InHardware, AdaptiveBoundTest,
                         ::testing::Combine(::testing::Values("bare-metal", "nested-queue"),
                                            ::testing::Values(Strategy::kNested)));

}  // namespace
}  // namespace viommu
