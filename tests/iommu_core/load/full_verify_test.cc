// A real trace and synthetic loads through the whole model, every page compared with the reference
// walk after every completed invalidation, for each policy under each strategy.
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <tuple>

#include "iommu_core/dma/guest_machine.h"
#include "iommu_core/load/dma_api_ops.h"
#include "iommu_core/load/in_process_sink.h"
#include "iommu_core/load/runner.h"
#include "iommu_core/load/trace_parser.h"
#include "iommu_core/load/trace_source.h"
#include "iommu_core/load/workloads.h"
#include "iommu_core/mem/shared_memory.h"
#include "iommu_core/shadow/hypervisor_session.h"
#include "tests/fakes/test_name.h"

namespace viommu {
namespace {

constexpr char kTrace[] = VIOMMU_TEST_DATA "/linux/6.1_cmon_strict0_w128k/trace.txt.gz";
constexpr uint64_t kLivePages = 300;

RunResult RunOne(LoadSource& source, Policy policy, Strategy strategy, MapSync map_sync) {
  GuestConfig config;
  config.policy = policy;
  config.force_lazy = true;
  config.map_sync = map_sync;
  config.vcpus = source.vcpus();
  config.table_region_bytes = uint64_t{16} << 20;
  config.ram_bytes = AlignUp(source.ram_bytes(), uint64_t{1} << 20) + (uint64_t{64} << 20);
  auto ram = SharedMemory::Create(config.ram_bytes);
  EXPECT_TRUE(ram.ok()) << ram.status();
  SessionConfig session;
  session.guest_caps = GuestCapabilities(config, 0);
  session.guest_haw_bits = config.address_width;
  session.guest_ram_bytes = config.ram_bytes;
  session.strategy = strategy;
  session.verify = Verify::kFull;
  session.dirty_log_base = DirtyLogBase(config, 0).value();
  auto hypervisor = HypervisorSession::Create(session, **ram);
  EXPECT_TRUE(hypervisor.ok()) << hypervisor.status();
  InProcessSink sink(**hypervisor);
  VirtualClock clock;
  auto machine = GuestMachine::Create(config, **ram, clock, {&sink});
  EXPECT_TRUE(machine.ok()) << machine.status();
  RunOptions options;
  options.live_pages = kLivePages;
  auto result = RunLoad(source, **machine, clock, options);
  EXPECT_TRUE(result.ok()) << result.status();
  EXPECT_EQ((*hypervisor)->VerifyAll(), 0u);
  EXPECT_EQ((*hypervisor)->stats().refused_pages, 0u);
  return result.value_or(RunResult{});
}

using Point = std::tuple<Policy, Strategy>;

std::string NameOf(const ::testing::TestParamInfo<Point>& info) {
  std::string name(PolicyName(std::get<0>(info.param)));
  name += "_";
  name += std::string(StrategyName(std::get<1>(info.param)));
  return TestName(name);
}

class FullVerifyTest : public ::testing::TestWithParam<Point> {};

TEST_P(FullVerifyTest, TheShadowEqualsTheReferenceWalkAfterEveryInvalidation) {
  const auto [policy, strategy] = GetParam();
  auto trace = ReadTrace(kTrace);
  ASSERT_TRUE(trace.ok()) << trace.status();
  const DmaApiOps calls = ToDmaApiOps(std::move(trace->ops));
  TraceSource source(calls.ops, trace->info.cpus);
  const RunResult first = RunOne(source, policy, strategy, MapSync::kEach);
  EXPECT_EQ(first.failed_ops, 0u);
  EXPECT_EQ(first.sync.shadow_mismatches, 0u);
  EXPECT_GT(first.unmaps, 1000u);
  // Nested translation and an identity map keep no shadow that could be compared.
  if (policy != Policy::kPassthrough && strategy != Strategy::kNested) {
    EXPECT_GT(first.sync.verified_pages, 0u);
  }
  if (policy == Policy::kStrict) {
    EXPECT_EQ(first.stale_dma_hits, 0u);
    EXPECT_EQ(first.stale_page_seconds, 0);
  }
  // Same input, same row; one policy of each kind is enough to see it.
  if (policy != Policy::kLazy && policy != Policy::kAdaptive) return;
  TraceSource again(calls.ops, trace->info.cpus);
  const RunResult second = RunOne(again, policy, strategy, MapSync::kEach);
  EXPECT_EQ(first.sync, second.sync);
  EXPECT_EQ(first.exits, second.exits);
  EXPECT_EQ(first.modelled_ns_total, second.modelled_ns_total);
  EXPECT_EQ(first.stale_page_seconds, second.stale_page_seconds);
}

INSTANTIATE_TEST_SUITE_P(
    All, FullVerifyTest,
    ::testing::Combine(::testing::Values(Policy::kPassthrough, Policy::kStrict, Policy::kLazy,
                                         Policy::kLazySingle, Policy::kLazyPsi,
                                         Policy::kLazyPsiBatched, Policy::kAdaptive),
                       ::testing::Values(Strategy::kWalk, Strategy::kWalkShared,
                                         Strategy::kSnapshot, Strategy::kDirtyLog,
                                         Strategy::kNested)),
    NameOf);

// Merged map-time invalidations: fewer submissions, the same shadow.
TEST(MergedMapsTest, SaveSubmissionsAndLeaveNoMappingBehind) {
  uint64_t exits[2] = {};
  for (const MapSync sync : {MapSync::kEach, MapSync::kMerged}) {
    auto source = MakeWorkload("nic-rx-classic", {.seed = 7, .ops = 1500, .vcpus = 2});
    ASSERT_TRUE(source.ok()) << source.status();
    const RunResult result = RunOne(**source, Policy::kLazy, Strategy::kWalkShared, sync);
    EXPECT_EQ(result.sync.shadow_mismatches, 0u);
    EXPECT_EQ(result.failed_ops, 0u);
    exits[sync == MapSync::kMerged] = result.exits;
  }
  EXPECT_LT(exits[1], exits[0]);
}

}  // namespace
}  // namespace viommu
