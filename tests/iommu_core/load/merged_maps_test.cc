// --map_sync=merged through the whole model: a device cannot use a mapping before the invalidation
// that covers it, and can right after.
#include <gtest/gtest.h>

#include <map>
#include <memory>
#include <random>
#include <set>
#include <tuple>

#include "iommu_core/dma/guest_machine.h"
#include "iommu_core/load/in_process_sink.h"
#include "iommu_core/mem/shared_memory.h"
#include "iommu_core/shadow/hypervisor_session.h"

namespace viommu {
namespace {

const SourceId kNic = MakeSourceId(0, 4, 0);

class MergedMapsPropertyTest : public ::testing::TestWithParam<std::tuple<Policy, Strategy>> {};

TEST_P(MergedMapsPropertyTest, NoAccessBeforeItsInvalidation) {
  const auto [policy, strategy] = GetParam();
  GuestConfig config;
  config.policy = policy;
  config.force_lazy = true;
  config.map_sync = MapSync::kMerged;
  config.ram_bytes = uint64_t{64} << 20;
  auto ram = *SharedMemory::Create(config.ram_bytes);
  SessionConfig session;
  session.guest_caps = GuestCapabilities(config, 0);
  session.guest_haw_bits = config.address_width;
  session.guest_ram_bytes = config.ram_bytes;
  session.strategy = strategy;
  session.verify = Verify::kFull;
  session.dirty_log_base = DirtyLogBase(config, 0).value();
  auto hypervisor = *HypervisorSession::Create(session, *ram);
  InProcessSink sink(*hypervisor);
  VirtualClock clock;
  auto machine = *GuestMachine::Create(config, *ram, clock, {&sink});
  const uint32_t domain = *machine->CreateDomain(64);
  ASSERT_TRUE(machine->AttachDevice(domain, kNic, 0, false).ok());

  std::mt19937_64 random(5);
  std::map<uint64_t, uint64_t> live;  // iova -> guest page
  std::set<uint64_t> unsynced;        // iova
  const auto reaches = [&](uint64_t iova) -> bool {
    auto found = hypervisor->Translate(kNic, Iova(iova), kReadOnly);
    EXPECT_TRUE(found.ok()) << found.status();
    if (!found.ok() || found->reason != vtd::FaultReason::kNone) return false;
    EXPECT_EQ(found->guest.value() >> kPageShift, live[iova]);
    return true;
  };
  uint64_t blocked = 0;
  for (int i = 0; i < 3'000; ++i) {
    const uint64_t submissions = machine->stats().submissions;
    const uint64_t dice = random() % 16;
    if (dice < 9 || live.empty()) {
      const uint64_t page = 1'024 + random() % 8'192;
      const Segment segment{GuestPhys(page * kPageSize), kPageSize};
      auto iova = machine->Map(domain, {&segment, 1}, kReadWrite, 0);
      ASSERT_TRUE(iova.ok()) << iova.status();
      live[iova->value()] = page;
      unsynced.insert(iova->value());
      // A full batch goes out on its own.
      if (machine->stats().submissions != submissions) unsynced.clear();
    } else if (dice < 15) {
      auto victim = live.lower_bound(random() % (uint64_t{1} << 32));
      if (victim == live.end()) victim = live.begin();
      const uint64_t iova = victim->first;
      // A mapping that the hypervisor has not seen is shown to it before it goes: all that wait
      // go with it.
      if (unsynced.contains(iova)) unsynced.clear();
      auto outcome = machine->Unmap(domain, Iova(iova), kPageSize, 0);
      ASSERT_TRUE(outcome.ok()) << outcome.status();
      live.erase(iova);
      // A domain flush of a full ring covers what waits, too.
      if (policy != Policy::kStrict && machine->stats().submissions != submissions) {
        unsynced.clear();
      }
    } else {
      ASSERT_TRUE(machine->SyncMaps().ok());
      unsynced.clear();
    }
    for (const uint64_t iova : unsynced) {
      ASSERT_FALSE(reaches(iova)) << "step " << i;
      ++blocked;
    }
    if (unsynced.empty() && i % 64 == 0) {
      for (const auto& [iova, page] : live) ASSERT_TRUE(reaches(iova)) << "step " << i;
    }
  }
  ASSERT_TRUE(machine->SyncMaps().ok());
  for (const auto& [iova, page] : live) ASSERT_TRUE(reaches(iova));
  EXPECT_GT(blocked, 1'000u);
  EXPECT_EQ(machine->stats().sync.shadow_mismatches, 0u);
}

INSTANTIATE_TEST_SUITE_P(All, MergedMapsPropertyTest,
                         ::testing::Combine(::testing::Values(Policy::kStrict, Policy::kLazy),
                                            ::testing::Values(Strategy::kWalk, Strategy::kSnapshot,
                                                              Strategy::kDirtyLog)));

}  // namespace
}  // namespace viommu
