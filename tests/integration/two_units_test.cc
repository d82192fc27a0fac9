// A domain with a device behind each of two vIOMMUs: two sessions synchronise with the same tables.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <vector>

#include "tests/integration/probes.h"
#include "tests/integration/service_pair.h"

namespace viommu {
namespace {

using ::testing::IsEmpty;

constexpr uint64_t kPage = 4096;

class TwoUnitsTest : public ::testing::TestWithParam<const char*> {};

TEST_P(TwoUnitsTest, AFlushTakesPagesFromTheDevicesOfBoth) {
  ServicePair pair;
  pair.StartHypervisor({std::string("--strategy=") + GetParam()});
  pair.StartGuest({"--policy=lazy", "--force_lazy", "--iommus=cm,cm"});
  ASSERT_FALSE(HasFatalFailure());
  const Target first = MakeTarget(pair.guest(), 0x18, 0);
  const Target second{first.domain, 0x20};
  ASSERT_TRUE(pair.guest().Attach(second.domain, second.source_id, 1).ok());
  std::vector<LiveMapping> live;
  const auto expect_the_same = [&] {
    const auto status = pair.guest().Status();
    ASSERT_TRUE(status.ok()) << status.status();
    ASSERT_EQ(status->session_ids_size(), 2);
    EXPECT_THAT(SweepMappings(pair.hypervisor(), status->session_ids(0), {first}, live), IsEmpty());
    EXPECT_THAT(SweepMappings(pair.hypervisor(), status->session_ids(1), {second}, live),
                IsEmpty());
  };
  for (uint64_t i = 0; i < 100; ++i) {
    const auto mapped = pair.guest().Map(first.domain, kPage);
    ASSERT_TRUE(mapped.ok()) << mapped.status();
    live.push_back({first.domain, i, mapped->iova(), kPage, mapped->guest_pa()});
  }
  expect_the_same();
  for (int i = 0; i < 50; ++i) {
    ASSERT_TRUE(pair.guest().Unmap(first.domain, live.back().iova, kPage).ok());
    live.pop_back();
  }
  ASSERT_TRUE(pair.guest().Flush().ok());
  expect_the_same();
}

INSTANTIATE_TEST_SUITE_P(Strategies, TwoUnitsTest,
                         ::testing::Values("walk", "walk-shared", "snapshot", "dirty-log",
                                           "nested"));

}  // namespace
}  // namespace viommu
