// kill -9 of guests under load: within its time to live everything that a guest held is back.
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <string>
#include <vector>

#include "tests/integration/load_client.h"
#include "tests/integration/probes.h"
#include "tests/integration/service_pair.h"

namespace viommu {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

// gRPC's own pool keeps threads that it once needed; they do not grow with the rounds.
constexpr uint64_t kGrpcThreads = 2;
constexpr milliseconds kTimeToLive{100};
// Beside its time to live: what a loaded machine may take to notice and to release.
constexpr milliseconds kGrace{10'000 * kPatience};
constexpr uint64_t kMiB = uint64_t{1} << 20;
// Malloc's own unevenness, over all rounds together.
constexpr double kFlatBytes = 8.0 * kMiB;

// By least squares: bytes gained from the first to the last round.
double Growth(const std::vector<uint64_t>& bytes) {
  const auto n = static_cast<double>(bytes.size());
  double sum_x = 0, sum_y = 0, sum_xx = 0, sum_xy = 0;
  for (size_t i = 0; i < bytes.size(); ++i) {
    const auto x = static_cast<double>(i);
    const auto y = static_cast<double>(bytes[i]);
    sum_x += x;
    sum_y += y;
    sum_xx += x * x;
    sum_xy += x * y;
  }
  const double slope = (n * sum_xy - sum_x * sum_y) / (n * sum_xx - sum_x * sum_x);
  return slope * (n - 1);
}

// Clients that map, use and unmap until `operations` are done; killed with the guest under way.
void LoadAndKill(ServicePair& pair, const std::string& memory, uint64_t seed, uint64_t operations) {
  pair.StartGuest({"--vcpus=2", "--ram_bytes=16m", "--memory=" + memory});
  const auto domain = pair.guest().CreateDomain();
  ASSERT_TRUE(domain.ok()) << domain.status();
  ASSERT_TRUE(pair.guest().Attach(*domain, 0x18).ok());
  LoadClient load({.guest_address = pair.guest_address,
                   .targets = {{*domain, 0x18}},
                   .threads = 2,
                   .seed = seed,
                   .keep_history = false});
  load.Start();
  ASSERT_TRUE(Eventually([&] { return load.done() >= operations; })) << pair.guest_process().Log();
  pair.KillGuest();
  load.Stop();
}

class GuestDeathTest : public ::testing::TestWithParam<const char*> {};

TEST_P(GuestDeathTest, NothingStaysBehindOfAGuestThatIsKilledUnderLoad) {
  const uint64_t rounds = NumberFromEnvironment("VIOMMU_GUEST_ROUNDS", 5);
  ServicePair pair;
  pair.StartHypervisor({"--session_ttl_ms=" + std::to_string(kTimeToLive.count())});
  // The first guest makes the process what it then stays: threads, arenas, descriptors.
  LoadAndKill(pair, GetParam(), 0, 20);
  ASSERT_FALSE(testing::Test::HasFatalFailure());
  ASSERT_TRUE(
      Eventually([&] { return Scrape(pair.hypervisor_metrics())["viommu_sessions"] == 0; }));
  ProcessFigures first;
  // Idle threads end after five seconds.
  ASSERT_TRUE(Eventually([&] {
    first = FiguresOf(pair.hypervisor_process().pid());
    std::this_thread::sleep_for(milliseconds(500));
    return FiguresOf(pair.hypervisor_process().pid()).threads == first.threads;
  }));

  std::vector<uint64_t> resident;
  milliseconds slowest{0};
  for (uint64_t round = 1; round <= rounds; ++round) {
    LoadAndKill(pair, GetParam(), round, 20 + round * 7 % 50);
    ASSERT_FALSE(testing::Test::HasFatalFailure()) << "round " << round;
    const auto killed = steady_clock::now();
    std::map<std::string, double> now;
    EXPECT_TRUE(Eventually([&] {
      now = Scrape(pair.hypervisor_metrics());
      return now["viommu_sessions"] == 0;
    })) << "round "
        << round;
    const auto took = std::chrono::duration_cast<milliseconds>(steady_clock::now() - killed);
    slowest = std::max(slowest, took);
    EXPECT_LT(took, kTimeToLive + kGrace) << "round " << round;
    EXPECT_EQ(now["viommu_pinned_bytes"], 0);
    EXPECT_EQ(now["viommu_shadow_table_pages"], 0);
    EXPECT_EQ(now["viommu_dma_entries_max"], 0);
    EXPECT_EQ(now["viommu_shadow_mismatches_total"], 0);
    resident.push_back(FiguresOf(pair.hypervisor_process().pid()).resident_bytes);
  }
  ProcessFigures last;
  EXPECT_TRUE(Eventually([&] {
    last = FiguresOf(pair.hypervisor_process().pid());
    return last.threads <= first.threads + kGrpcThreads && last.descriptors <= first.descriptors;
  })) << last.threads
      << " threads, " << first.threads << " before; " << last.descriptors << " descriptors, "
      << first.descriptors << " before";
  EXPECT_TRUE(kSanitized || Growth(resident) < kFlatBytes) << Growth(resident) << " bytes";
  std::printf(
      "%zu guests killed; resident %.1f MiB at first, %.1f MiB at last, trend %+.2f MiB; "
      "released within %lld ms\n",
      resident.size(), static_cast<double>(resident.front()) / kMiB,
      static_cast<double>(resident.back()) / kMiB, Growth(resident) / kMiB,
      static_cast<long long>(slowest.count()));
}

INSTANTIATE_TEST_SUITE_P(GuestMemory, GuestDeathTest, ::testing::Values("shared", "remote"));

}  // namespace
}  // namespace viommu
