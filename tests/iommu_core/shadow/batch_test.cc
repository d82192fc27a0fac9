// Many descriptors in one batch: the same shadow and the same counts as one by one.
#include <random>

#include "gtest/gtest.h"
#include "tests/fakes/test_name.h"
#include "tests/iommu_core/shadow/test_guest.h"

namespace viommu {
namespace {

const SourceId kNic = MakeSourceId(0, 3, 0);
const SourceId kDisk = MakeSourceId(0, 4, 0);
constexpr uint16_t kNicDid = 1;
constexpr uint16_t kDiskDid = 2;
constexpr int kLevels = 3;
constexpr uint64_t kPages = 1200;  // of an address space; three tables of them
constexpr uint64_t kBuffers = 0x8000000;

class Batch : public ::testing::TestWithParam<std::tuple<Strategy, uint64_t>> {
 protected:
  // A guest with two devices, and its session. Twins are built and changed alike.
  struct Twin {
    Twin(Strategy strategy, uint64_t dma_entry_limit) {
      nic = guest.NewPage();
      disk = guest.NewPage();
      guest.SetContext(kNic, vtd::ContextEntry::Make(nic, kLevels, DomainId(kNicDid)));
      guest.SetContext(kDisk, vtd::ContextEntry::Make(disk, kLevels, DomainId(kDiskDid)));
      SessionConfig config;
      config.verify = Verify::kOff;
      config.dma_entry_limit = dma_entry_limit;
      session = MakeSession(guest, strategy, config);
      EXPECT_TRUE(session->AddDevice(kNic, false).ok());
      EXPECT_TRUE(session->AddDevice(kDisk, false).ok());
    }

    TestGuest guest;
    PhysAddr nic, disk;
    std::unique_ptr<SessionImpl> session;
  };

  uint64_t Below(uint64_t end) { return random_() % end; }
  bool Chance(uint64_t one_in) { return Below(one_in) == 0; }

  void ChangeSomething() {
    const bool nic = !Chance(4);
    const uint64_t iova = Below(kPages) << kPageShift;
    const uint64_t page = kBuffers + (Below(kPages) << kPageShift);
    const bool map = !Chance(3);
    for (Twin* twin : {&together_, &one_by_one_}) {
      const PhysAddr table = nic ? twin->nic : twin->disk;
      if (map) {
        twin->guest.Map(table, kLevels, iova, page);
      } else {
        twin->guest.Unmap(table, kLevels, iova);
      }
    }
  }

  vtd::RawDescriptor Descriptor() {
    const uint16_t did = Chance(5) ? kDiskDid : kNicDid;
    switch (Below(60)) {
      case 0:
        return Dsi(did);
      case 1:
        return ContextDomain(did);
      case 2:
        return Psi(did, Below(kPages) << kPageShift, /*am=*/static_cast<int>(Below(5)));
      case 3:
        return Psi(/*did=*/7, Below(kPages) << kPageShift);
      case 4:
        return Psi(did, ~uint64_t{0} << (kPageShift + Below(40)));
      case 5:
        return vtd::RawDescriptor{.qw0 = 0xf};  // no such type
      default:
        return Psi(did, Below(kPages) << kPageShift, 0, /*ih=*/Chance(2));
    }
  }

  std::mt19937_64 random_{20261128};
  Twin together_{std::get<0>(GetParam()), std::get<1>(GetParam())};
  Twin one_by_one_{std::get<0>(GetParam()), std::get<1>(GetParam())};
};

TEST_P(Batch, CostsAndLeavesWhatItsDescriptorsDoOneByOne) {
  uint64_t unchanged = 0;
  for (int round = 0; round < 400; ++round) {
    for (uint64_t n = Below(12); n > 0; --n) ChangeSomething();
    std::vector<vtd::RawDescriptor> raw(1 + Below(70));
    for (vtd::RawDescriptor& d : raw) d = Descriptor();

    const SinkCompletion together = Send(*together_.session, raw);
    SinkCompletion sum;
    for (const vtd::RawDescriptor& d : raw) {
      const SinkCompletion one = Send(*one_by_one_.session, {d});
      sum.cost += one.cost;
      sum.consumed += one.consumed;
      sum.error = one.error;
      sum.refused_pages = one.refused_pages;
      sum.pinned_pages = one.pinned_pages;
      if (one.error != vtd::Iqei::kNone) break;
      unchanged += one.cost.ptes_changed == 0 ? 1 : 0;
    }
    ASSERT_EQ(together.consumed, sum.consumed) << round;
    ASSERT_EQ(together.error, sum.error) << round;
    ASSERT_EQ(together.cost, sum.cost) << round;
    ASSERT_EQ(together.refused_pages, sum.refused_pages) << round;
    ASSERT_EQ(together.pinned_pages, sum.pinned_pages) << round;
    const SessionStats a = together_.session->stats();
    const SessionStats b = one_by_one_.session->stats();
    for (size_t g = 0; g < std::size(a.invalidations); ++g) {
      ASSERT_EQ(a.invalidations[g], b.invalidations[g]) << round;
    }
    ASSERT_EQ(a.cost, b.cost) << round;
    ASSERT_EQ(a.live_pages, b.live_pages) << round;
  }
  EXPECT_GT(unchanged, 2000u);
  for (Twin* twin : {&together_, &one_by_one_}) {
    Send(*twin->session, {GlobalIotlb()});
    EXPECT_EQ(twin->session->VerifyAll(), 0u);
  }
}

INSTANTIATE_TEST_SUITE_P(
    Strategies, Batch,
    ::testing::Combine(::testing::Values(Strategy::kWalk, Strategy::kWalkShared,
                                         Strategy::kSnapshot, Strategy::kDirtyLog),
                       ::testing::Values(SessionConfig().dma_entry_limit, 200)),
    [](const auto& instance) {
      return TestName(StrategyName(std::get<0>(instance.param))) + "_limit_" +
             std::to_string(std::get<1>(instance.param));
    });

}  // namespace
}  // namespace viommu
