// kill -9 of the hypervisor under load, again and again: nothing is lost, nobody gets in.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <iterator>
#include <random>
#include <string>
#include <vector>

#include "tests/fakes/test_name.h"
#include "tests/integration/load_client.h"
#include "tests/integration/probes.h"
#include "tests/integration/service_pair.h"

namespace viommu {
namespace {

using std::chrono::milliseconds;
using ::testing::IsEmpty;

struct Guest {
  int units;  // vIOMMUs, each of which has a session of its own
  std::string policy;
  std::string map_sync;
};

class RecoveryTest : public ::testing::TestWithParam<Guest> {
 protected:
  static int units() { return GetParam().units; }
  // A device's page leads where the record says, whichever session it belongs to.
  void Sweep(const std::vector<Target>& targets, const std::vector<LiveMapping>& live) {
    const auto status = pair_.guest().Status();
    ASSERT_TRUE(status.ok()) << status.status();
    ASSERT_EQ(status->session_ids_size(), units());
    for (int unit = 0; unit < units(); ++unit) {
      std::vector<Target> behind;
      std::vector<LiveMapping> mapped;
      for (size_t i = static_cast<size_t>(unit); i < targets.size();
           i += static_cast<size_t>(units())) {
        behind.push_back(targets[i]);
        std::copy_if(live.begin(), live.end(), std::back_inserter(mapped),
                     [&](const LiveMapping& m) { return m.domain == targets[i].domain; });
      }
      EXPECT_THAT(SweepMappings(pair_.hypervisor(), status->session_ids(unit), behind, mapped),
                  IsEmpty())
          << "vIOMMU " << unit;
    }
  }

  ServicePair pair_;
};

TEST_P(RecoveryTest, NothingIsLostWhenTheHypervisorIsKilledUnderLoad) {
  const uint64_t rounds = NumberFromEnvironment("VIOMMU_CHAOS_ROUNDS", 5);
  const uint64_t seed = NumberFromEnvironment("VIOMMU_CHAOS_SEED", 1);
  static constexpr const char* kStrategies[] = {"walk", "walk-shared", "snapshot", "dirty-log",
                                                "nested"};
  std::mt19937_64 random(seed);
  pair_.StartHypervisor();
  const bool strict = GetParam().policy == "strict";
  pair_.StartGuest({"--vcpus=4", units() == 1 ? "--iommus=cm" : "--iommus=cm,cm", "--force_lazy",
                    "--policy=" + GetParam().policy, "--map_sync=" + GetParam().map_sync});
  const std::vector<Target> targets = {
      MakeTarget(pair_.guest(), 0x18),
      MakeTarget(pair_.guest(), 0x20, static_cast<uint32_t>(units() - 1))};
  LoadClient load({.guest_address = pair_.guest_address, .targets = targets, .seed = seed});
  History history;
  uint64_t verified = 0;
  for (uint64_t round = 0; round < rounds; ++round) {
    load.Start();
    const uint64_t until = load.done() + random() % 200;
    ASSERT_TRUE(Eventually([&] { return load.done() >= until; }));
    std::this_thread::sleep_for(std::chrono::microseconds(random() % 5'000));
    // Sometimes again while the guest is still building its state anew.
    const int kills = random() % 3 == 0 ? 2 : 1;
    for (int i = 0; i < kills; ++i) {
      history.outages.push_back(
          RestartHypervisor(pair_, milliseconds(random() % 100),
                            {"--strategy=" + std::string(kStrategies[round % 5])}));
      ASSERT_FALSE(HasFatalFailure());
      if (i + 1 < kills) std::this_thread::sleep_for(milliseconds(random() % 60));
    }
    // Until every thread had an answer from the new one.
    const uint64_t before = load.done();
    ASSERT_TRUE(Eventually([&] { return load.done() > before + 40; }))
        << pair_.guest_process().Log();
    load.Stop();
    const std::vector<Op> ops = load.TakeOps();
    history.ops.insert(history.ops.end(), ops.begin(), ops.end());

    SCOPED_TRACE("round " + std::to_string(round));
    if (!strict) {
      EXPECT_TRUE(pair_.guest().Flush().ok());
    }
    Sweep(targets, LiveMappings(history));
    const auto metrics = Scrape(pair_.hypervisor_metrics());
    EXPECT_EQ(metrics.at("viommu_shadow_mismatches_total"), 0);
    EXPECT_EQ(metrics.at("viommu_sessions"), units());
    verified += static_cast<uint64_t>(metrics.at("viommu_shadow_verified_pages_total"));
  }
  // A deferred unmap leaves the page within reach until its flush: the rules are those of strict.
  if (strict) {
    EXPECT_THAT(CheckHistory(history), IsEmpty());
  }
  const auto status = pair_.guest().Status();
  ASSERT_TRUE(status.ok());
  EXPECT_THAT(CheckTotals(history, {status->map_count(), status->unmap_count(),
                                    status->iova_allocated_bytes()}),
              IsEmpty());
  EXPECT_GT(verified, 0u);
  std::printf("%zu operations, %zu kills, %llu pages verified, seed %llu\n", history.ops.size(),
              history.outages.size(), static_cast<unsigned long long>(verified),
              static_cast<unsigned long long>(seed));
}

INSTANTIATE_TEST_SUITE_P(Guests, RecoveryTest,
                         ::testing::Values(Guest{1, "strict", "each"}, Guest{2, "strict", "each"},
                                           Guest{1, "lazy", "merged"},
                                           Guest{2, "lazy-psi-batched", "each"}),
                         [](const auto& p) {
                           return TestName(p.param.policy + (p.param.units == 1 ? "_one" : "_two"));
                         });

}  // namespace
}  // namespace viommu
