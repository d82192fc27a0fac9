#include "iommu_core/load/workloads.h"

#include <algorithm>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "iommu_core/load/random.h"
#include "tests/fakes/test_name.h"

namespace viommu {
namespace {

using Kind = LoadOp::Kind;

// Runs a load on vCPUs that need `op_ns` for each operation.
std::vector<LoadOp> Collect(const std::string& name, const WorkloadParams& params,
                            uint64_t op_ns = 1000) {
  auto source = MakeWorkload(name, params);
  EXPECT_TRUE(source.ok()) << source.status();
  std::vector<LoadOp> ops;
  std::vector<uint64_t> ready(params.vcpus, 0);
  while (auto op = (*source)->Next(ready)) {
    ready[op->cpu] = op->time_ns + op_ns;
    ops.push_back(*op);
  }
  return ops;
}

bool Same(const LoadOp& a, const LoadOp& b) {
  return a.kind == b.kind && a.cpu == b.cpu && a.time_ns == b.time_ns && a.tag == b.tag &&
         a.guest_pa == b.guest_pa && a.size_bytes == b.size_bytes && a.access == b.access &&
         a.list_continues == b.list_continues;
}

// Blackman and Vigna's reference output of xoshiro256** with the state that splitmix64 makes of 0.
TEST(Random, ReferenceVector) {
  Random random(0);
  EXPECT_EQ(random.Next(), 0x99ec5f36cb75f2b4u);
  EXPECT_EQ(random.Next(), 0xbf6e1f784956452au);
  EXPECT_EQ(random.Next(), 0x1a5f849d4933e6e0u);
}

class WorkloadTest : public testing::TestWithParam<std::string> {};

TEST_P(WorkloadTest, DeterministicBySeed) {
  const WorkloadParams params{.seed = 7, .ops = 3000, .vcpus = 3};
  const auto a = Collect(GetParam(), params);
  const auto b = Collect(GetParam(), params);
  ASSERT_EQ(a.size(), b.size());
  for (size_t i = 0; i < a.size(); ++i) ASSERT_TRUE(Same(a[i], b[i])) << i;
  const auto c = Collect(GetParam(), {.seed = 8, .ops = 3000, .vcpus = 3});
  bool differs = c.size() != a.size();
  for (size_t i = 0; !differs && i < a.size(); ++i) differs = !Same(a[i], c[i]);
  EXPECT_TRUE(differs);
}

TEST_P(WorkloadTest, EveryUnmapHasItsMapAndTimesDoNotGoBack) {
  auto source = MakeWorkload(GetParam(), {.seed = 1, .ops = 3000, .vcpus = 2});
  ASSERT_TRUE(source.ok());
  const uint64_t ram = (*source)->ram_bytes();
  const auto ops = Collect(GetParam(), {.seed = 1, .ops = 3000, .vcpus = 2});
  ASSERT_FALSE(ops.empty());
  EXPECT_EQ(ops[0].kind, Kind::kAttach);
  std::map<uint64_t, uint64_t> live;       // tag -> bytes
  std::map<uint64_t, uint64_t> page_user;  // guest page -> tag
  std::map<uint64_t, std::vector<uint64_t>> pages_of;
  uint64_t unmaps = 0;
  uint64_t last = 0;
  std::set<uint16_t> cpus;
  for (const LoadOp& op : ops) {
    ASSERT_GE(op.time_ns, last);
    last = op.time_ns;
    if (op.kind == Kind::kAttach) continue;
    cpus.insert(op.cpu);
    ASSERT_TRUE(op.choose_iova);
    if (op.kind == Kind::kMap) {
      live[op.tag] += op.size_bytes;
      ASSERT_LE(op.guest_pa.value() + op.size_bytes, ram);
      for (uint64_t at = 0; at < op.size_bytes; at += kPageSize) {
        const uint64_t page = op.guest_pa.value() + at;
        ASSERT_TRUE(page_user.emplace(page, op.tag).second) << "one page mapped twice";
        pages_of[op.tag].push_back(page);
      }
    } else {
      ASSERT_EQ(op.kind, Kind::kUnmap);
      ASSERT_EQ(live.at(op.tag), op.size_bytes);
      live.erase(op.tag);
      for (uint64_t page : pages_of[op.tag]) page_user.erase(page);
      ++unmaps;
    }
  }
  EXPECT_GE(unmaps, 3000u);
  EXPECT_LE(unmaps, 3001u);
  EXPECT_EQ(cpus.size(), 2u);
}

INSTANTIATE_TEST_SUITE_P(All, WorkloadTest, testing::ValuesIn([] {
                           std::vector<std::string> names;
                           for (const auto& each : Workloads()) names.emplace_back(each.name);
                           return names;
                         }()),
                         [](const auto& test) { return TestName(test.param); });

TEST(Workloads, RatesAndLiveSets) {
  // nic-rx-classic: 512 live buffers and 0.81 Mpps for the device, however many vCPUs.
  for (uint32_t vcpus : {1u, 4u}) {
    const auto ops = Collect("nic-rx-classic", {.ops = 20'000, .vcpus = vcpus}, 10);
    int64_t live = 0;
    int64_t max_live = 0;
    for (const LoadOp& op : ops) {
      live += op.kind == Kind::kMap ? 1 : op.kind == Kind::kUnmap ? -1 : 0;
      max_live = std::max(max_live, live);
    }
    EXPECT_EQ(max_live, 512 * vcpus);
    const double rate = 20'000 / (1e-9 * static_cast<double>(ops.back().time_ns));
    EXPECT_NEAR(rate, 0.81e6, 0.03e6) << vcpus;
  }
  // nvme-4k-rr: QD 32 over 80 us is 400k requests a second and queue.
  const auto nvme = Collect("nvme-4k-rr", {.ops = 40'000}, 0);
  EXPECT_NEAR(40'000 / (1e-9 * static_cast<double>(nvme.back().time_ns)), 400e3, 20e3);
}

TEST(Workloads, OverloadSlowsTheLoadDown) {
  // An operation of 100 us: 32 requests in flight no longer matter, the vCPU is the limit.
  const auto ops = Collect("nvme-4k-rr", {.ops = 1'000}, 100'000);
  EXPECT_NEAR(1e-9 * static_cast<double>(ops.back().time_ns), 2 * 1'000 * 100e-6, 0.01);
}

TEST(Workloads, ListsEnd) {
  const auto ops = Collect("nvme-64k-rw", {.ops = 100});
  int run = 0;
  for (const LoadOp& op : ops) {
    if (op.kind != Kind::kMap) continue;
    ++run;
    if (!op.list_continues) {
      EXPECT_EQ(run, 16);
      run = 0;
    }
  }
  EXPECT_EQ(run, 0);
}

TEST(Workloads, RefusesByName) {
  const auto bad = MakeWorkload("nic", {});
  ASSERT_FALSE(bad.ok());
  EXPECT_THAT(std::string(bad.status().message()),
              testing::HasSubstr("nic-rx-classic, nic-page-pool, rr, nvme-4k-rr"));
  EXPECT_FALSE(MakeWorkload("rr", {.vcpus = 0}).ok());
  EXPECT_FALSE(MakeWorkload("rr", {.vcpus = kMaxWorkloadVcpus + 1}).ok());
  EXPECT_FALSE(MakeWorkload("rr", {.ops = 0}).ok());
}

}  // namespace
}  // namespace viommu
