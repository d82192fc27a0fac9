// `lazy-psi-batched` against a model that knows every page: the fewest naturally aligned pieces
// that cover exactly what was unmapped, many per wait.
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <random>
#include <vector>

#include "iommu_core/dma/guest_machine.h"
#include "iommu_core/dma/iommu_driver.h"
#include "iommu_core/mem/shared_memory.h"
#include "tests/fakes/recording_sink.h"

namespace viommu {
namespace {

const SourceId kNic = MakeSourceId(0, 4, 0);
constexpr uint64_t kUniverse = 2048;  // pages of device address space, from kBase on
constexpr uint64_t kBase = uint64_t{0x128} << 20;

struct Guest {
  explicit Guest(uint32_t vcpus) {
    GuestConfig config;
    config.policy = Policy::kLazyPsiBatched;
    config.force_lazy = true;
    config.vcpus = vcpus;
    config.ram_bytes = uint64_t{64} << 20;
    ram = *SharedMemory::Create(config.ram_bytes);
    machine = *GuestMachine::Create(config, *ram, clock, {&sink});
    domain = *machine->CreateDomain(64);
    EXPECT_TRUE(machine->AttachDevice(domain, kNic, 0, false).ok());
  }
  static Iova At(uint64_t page) { return Iova(kBase + page * kPageSize); }
  void Map(uint64_t page, uint64_t pages) {
    const Segment segment{GuestPhys(uint64_t{4} << 20), pages * kPageSize};
    ASSERT_TRUE(machine->MapAt(domain, At(page), {&segment, 1}, kReadWrite, 0).ok());
  }
  void Unmap(uint64_t page, uint64_t pages, uint32_t vcpu) {
    ASSERT_TRUE(machine->Unmap(domain, At(page), pages * kPageSize, vcpu).ok());
  }

  VirtualClock clock;
  RecordingSink sink;
  std::unique_ptr<SharedMemory> ram;
  std::unique_ptr<GuestMachine> machine;
  uint32_t domain = 0;
};

// The least number of naturally aligned power-of-two pieces that cover exactly the set pages of
// [first, first + pages): the whole if all are set, else those of both halves.
size_t FewestPieces(const std::vector<bool>& set, uint64_t first, uint64_t pages) {
  const auto begin = set.begin() + static_cast<ptrdiff_t>(first);
  const auto count =
      static_cast<uint64_t>(std::count(begin, begin + static_cast<ptrdiff_t>(pages), true));
  if (count == 0) return 0;
  if (count == pages) return 1;
  return FewestPieces(set, first, pages / 2) + FewestPieces(set, first + pages / 2, pages / 2);
}

TEST(BatchedFlushTest, SendsTheFewestPiecesThatCoverExactlyWhatWasUnmapped) {
  std::mt19937_64 random(11);
  for (int round = 0; round < 60; ++round) {
    Guest guest(2);
    std::vector<bool> mapped(kUniverse);
    std::vector<bool> gone(kUniverse);
    const uint64_t longest = 1 + random() % 40;
    for (int i = 0; i < 240; ++i) {
      const uint64_t pages = 1 + random() % longest;
      const uint64_t page = random() % (kUniverse - pages);
      const auto first = mapped.begin() + static_cast<ptrdiff_t>(page);
      if (std::find(first, first + static_cast<ptrdiff_t>(pages), true) !=
          first + static_cast<ptrdiff_t>(pages)) {
        continue;
      }
      std::fill_n(first, pages, true);
      std::fill_n(gone.begin() + static_cast<ptrdiff_t>(page), pages, true);
      guest.Map(page, pages);
      guest.Unmap(page, pages, static_cast<uint32_t>(random() % 2));
    }
    guest.sink.Clear();
    ASSERT_TRUE(guest.machine->FlushDeferred().ok());
    std::vector<bool> covered(kUniverse);
    const std::vector<vtd::Descriptor> sent = guest.sink.Sent();
    for (const vtd::Descriptor& d : sent) {
      const auto& iotlb = std::get<vtd::IotlbInvalidate>(d);
      ASSERT_EQ(iotlb.granularity, vtd::Granularity::kPageOrDevice);
      const IovaRange range = iotlb.range();
      for (Iova at = range.first; at < range.end; at += kPageSize) {
        ASSERT_GE(at.value(), kBase);
        const uint64_t page = (at.value() - kBase) / kPageSize;
        ASSERT_LT(page, kUniverse);
        ASSERT_FALSE(covered[page]) << "page " << page << " twice";
        covered[page] = true;
      }
    }
    EXPECT_EQ(covered, gone);
    // kBase is aligned to the universe's size, or pieces would not be the model's.
    EXPECT_EQ(sent.size(), FewestPieces(gone, 0, kUniverse));
    EXPECT_EQ(guest.sink.doorbells.size(),
              (sent.size() + IommuDriver::kMaxBatch - 1) / IommuDriver::kMaxBatch);
    EXPECT_EQ(guest.machine->stats().stale_pages, 0u);
  }
}

TEST(BatchedFlushTest, FallsBackToOneDomainFlushAboveTheThreshold) {
  constexpr uint32_t kVcpus = 20;
  constexpr uint64_t kEach = 240;  // 4,800 pages, no two of them neighbours
  Guest guest(kVcpus);
  for (uint64_t i = 0; i < kVcpus * kEach; ++i) {
    guest.Map(2 * i, 1);
    guest.Unmap(2 * i, 1, static_cast<uint32_t>(i % kVcpus));
  }
  guest.sink.Clear();
  ASSERT_TRUE(guest.machine->FlushDeferred().ok());
  ASSERT_EQ(guest.sink.Sent().size(), 1u);
  EXPECT_EQ(std::get<vtd::IotlbInvalidate>(guest.sink.Sent().front()).granularity,
            vtd::Granularity::kDomain);
  EXPECT_EQ(guest.machine->stats().stale_pages, 0u);
}

}  // namespace
}  // namespace viommu
