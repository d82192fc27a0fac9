// One domain with devices behind two vIOMMUs, each with a hypervisor session of its own: what one
// of them has taken up, the other has to find by itself.
#include <gtest/gtest.h>

#include <memory>
#include <random>
#include <string>
#include <vector>

#include "iommu_core/dma/guest_machine.h"
#include "iommu_core/load/in_process_sink.h"
#include "iommu_core/mem/shared_memory.h"
#include "iommu_core/shadow/hypervisor_session.h"
#include "tests/fakes/test_name.h"

namespace viommu {
namespace {

class TwoUnitsTest : public ::testing::TestWithParam<Strategy> {};

TEST_P(TwoUnitsTest, ADomainFlushReachesTheShadowsOfBoth) {
  GuestConfig config;
  config.policy = Policy::kLazy;
  config.force_lazy = true;
  config.iommu_caching_mode = {true, true};
  config.ram_bytes = uint64_t{64} << 20;
  auto ram = *SharedMemory::Create(config.ram_bytes);
  std::vector<std::unique_ptr<HypervisorSession>> sessions;
  std::vector<std::unique_ptr<InProcessSink>> sinks;
  std::vector<InvalidationSink*> raw;
  for (size_t unit = 0; unit < 2; ++unit) {
    SessionConfig session;
    session.guest_caps = GuestCapabilities(config, unit);
    session.guest_haw_bits = config.address_width;
    session.guest_ram_bytes = config.ram_bytes;
    session.strategy = GetParam();
    session.verify = Verify::kFull;
    session.dirty_log_base = DirtyLogBase(config, unit).value();
    sessions.push_back(*HypervisorSession::Create(session, *ram));
    sinks.push_back(std::make_unique<InProcessSink>(*sessions.back()));
    raw.push_back(sinks.back().get());
  }
  VirtualClock clock;
  auto machine = *GuestMachine::Create(config, *ram, clock, raw);
  const uint32_t domain = *machine->CreateDomain(64);
  const SourceId devices[] = {MakeSourceId(0, 4, 0), MakeSourceId(0, 5, 0)};
  for (uint32_t unit = 0; unit < 2; ++unit) {
    ASSERT_TRUE(machine->AttachDevice(domain, devices[unit], unit, false).ok());
  }
  std::mt19937_64 random(3);
  std::vector<Iova> live;
  for (int i = 0; i < 4'000; ++i) {
    if (live.size() < 64 || random() % 2 == 0) {
      const Segment segment{GuestPhys((1'024 + random() % 8'192) * kPageSize), kPageSize};
      auto iova = machine->Map(domain, {&segment, 1}, kReadWrite, 0);
      ASSERT_TRUE(iova.ok()) << iova.status();
      live.push_back(*iova);
    } else {
      std::swap(live[random() % live.size()], live.back());
      ASSERT_TRUE(machine->Unmap(domain, live.back(), kPageSize, 0).ok());
      live.pop_back();
    }
  }
  ASSERT_TRUE(machine->FlushDeferred().ok());
  for (size_t unit = 0; unit < 2; ++unit) {
    EXPECT_EQ(sessions[unit]->VerifyAll(), 0u) << "unit " << unit;
    EXPECT_EQ(sessions[unit]->stats().cost.shadow_mismatches, 0u) << "unit " << unit;
    EXPECT_EQ(sessions[unit]->FlattenShadow(devices[unit])->empty(), false);
    EXPECT_GT(sessions[unit]->stats().invalidations[static_cast<size_t>(vtd::Granularity::kDomain)],
              5u);
  }
}

INSTANTIATE_TEST_SUITE_P(All, TwoUnitsTest,
                         ::testing::Values(Strategy::kWalk, Strategy::kWalkShared,
                                           Strategy::kSnapshot, Strategy::kDirtyLog,
                                           Strategy::kNested),
                         [](const auto& p) { return TestName(StrategyName(p.param)); });

}  // namespace
}  // namespace viommu
