// Hours of load with a hypervisor that verifies everything: memory stays flat, nothing ever
// differs.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <thread>

#include "tests/integration/load_client.h"
#include "tests/integration/probes.h"
#include "tests/integration/service_pair.h"

namespace viommu {
namespace {

using std::chrono::steady_clock;
using ::testing::IsEmpty;

constexpr uint64_t kMiB = uint64_t{1} << 20;
// Beside what the first tenth of the time has made resident.
constexpr uint64_t kFlatBytes = 16 * kMiB;

TEST(SoakTest, MemoryStaysFlatAndNothingDiffers) {
  const std::chrono::milliseconds length(1000 * NumberFromEnvironment("VIOMMU_SOAK_SECONDS", 2));
  ServicePair pair;
  pair.StartHypervisor();
  pair.StartGuest({"--vcpus=4"});
  std::vector<Target> targets;
  for (const uint32_t source_id : {0x18, 0x20}) {
    targets.push_back({*pair.guest().CreateDomain(), source_id});
    ASSERT_TRUE(pair.guest().Attach(targets.back().domain, source_id).ok());
  }
  LoadClient load({.guest_address = pair.guest_address, .targets = targets, .keep_history = false});
  load.Start();
  const auto begin = steady_clock::now();
  const auto sample = [&](pid_t pid, uint64_t& settled, uint64_t& most) {
    const uint64_t now = FiguresOf(pid).resident_bytes;
    if (steady_clock::now() - begin < length / 10) settled = std::max(settled, now);
    most = std::max(most, now);
  };
  uint64_t hypervisor_settled = 0, hypervisor_most = 0, guest_settled = 0, guest_most = 0;
  while (steady_clock::now() - begin < length) {
    sample(pair.hypervisor_process().pid(), hypervisor_settled, hypervisor_most);
    sample(pair.guest_process().pid(), guest_settled, guest_most);
    std::this_thread::sleep_for(length / 100);
  }
  load.Stop();
  const auto metrics = Scrape(pair.hypervisor_metrics());
  EXPECT_EQ(metrics.at("viommu_shadow_mismatches_total"), 0);
  EXPECT_GT(metrics.at("viommu_shadow_verified_pages_total"), 0);
  EXPECT_EQ(metrics.at("viommu_stale_dma_hits_total"), 0);
  EXPECT_THAT(
      SweepMappings(pair.hypervisor(), pair.guest().Status()->session_ids(0), targets, load.live()),
      IsEmpty());
  if (!kSanitized) {
    EXPECT_LT(hypervisor_most, hypervisor_settled + kFlatBytes);
    EXPECT_LT(guest_most, guest_settled + kFlatBytes);
  }
  std::printf(
      "%llu operations in %lld ms; resident at most: hypervisor %.1f MiB (%.1f at first), "
      "guest %.1f MiB (%.1f)\n",
      static_cast<unsigned long long>(load.done()), static_cast<long long>(length.count()),
      static_cast<double>(hypervisor_most) / kMiB, static_cast<double>(hypervisor_settled) / kMiB,
      static_cast<double>(guest_most) / kMiB, static_cast<double>(guest_settled) / kMiB);
}

}  // namespace
}  // namespace viommu
