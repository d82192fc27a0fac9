// A guest whose tables a benchmark writes itself: one device, one domain, `pages` mappings of 4K
// each at scattered guest pages, and the entries of all of them at hand.
#ifndef VIOMMU_TESTS_BENCH_BENCH_GUEST_H_
#define VIOMMU_TESTS_BENCH_BENCH_GUEST_H_

#include <bit>
#include <cstdint>
#include <memory>
#include <vector>

#include "tests/iommu_core/shadow/test_guest.h"

namespace viommu {

class BenchGuest {
 public:
  static constexpr uint64_t kFirst = uint64_t{1} << 36;
  static constexpr uint16_t kDomain = 5;
  static SourceId Device() { return MakeSourceId(0, 3, 0); }

  explicit BenchGuest(uint64_t pages)
      : pages_(pages), slots_(std::bit_ceil(pages)), guest_(RamFor(pages)) {
    root_ = guest_.NewPage();
    for (uint64_t i = 0; i < pages; ++i) {
      const Iova iova(kFirst + i * kPageSize);
      if (i % vtd::kEntriesPerTable == 0) {
        leaf_tables_.push_back(
            PhysAddr(AlignDown(guest_.Slot(root_, kLevels, iova, 1).value(), kPageSize)));
      }
      Set(i, i);
    }
    guest_.SetContext(Device(), vtd::ContextEntry::Make(root_, kLevels, DomainId(kDomain)));
  }

  // Points mapping `i` at the guest page that mapping `of` had at the start.
  void Set(uint64_t i, uint64_t of) {
    // An odd multiplier over a power of two: no two neighbours side by side.
    const uint64_t page = of * 0x9e3779b1 & (slots_ - 1);
    guest_.Put(EntryAt(i), (kBuffers + page * kPageSize) | kRw);
  }
  PhysAddr EntryAt(uint64_t i) const {
    return leaf_tables_[i / vtd::kEntriesPerTable] + sizeof(uint64_t) * (i % vtd::kEntriesPerTable);
  }
  vtd::RawDescriptor PageFlush(uint64_t i) const { return Psi(kDomain, kFirst + i * kPageSize); }
  vtd::RawDescriptor DomainFlush() const { return Dsi(kDomain); }

  // A session that knows the guest's registers and no device.
  std::unique_ptr<SessionImpl> NewSession(Strategy strategy) {
    SessionConfig config;
    config.verify = Verify::kOff;
    config.dma_entry_limit = uint64_t{1} << 24;
    return MakeSession(guest_, strategy, config);
  }
  // One that is in step with the tables.
  std::unique_ptr<SessionImpl> NewSyncedSession(Strategy strategy) {
    auto session = NewSession(strategy);
    if (!session->AddDevice(Device(), false).ok()) std::abort();
    return session;
  }

  uint64_t pages() const { return pages_; }

 private:
  static constexpr int kLevels = 4;
  static constexpr uint64_t kBuffers = uint64_t{256} << 20;  // tables lie below
  static uint64_t RamFor(uint64_t pages) {
    const uint64_t used = kBuffers + std::bit_ceil(pages) * kPageSize;
    return AlignUp(used + used / 32, uint64_t{1} << 20);  // and the dirty log above
  }

  const uint64_t pages_;
  const uint64_t slots_;
  TestGuest guest_;
  PhysAddr root_;
  std::vector<PhysAddr> leaf_tables_;
};

}  // namespace viommu

#endif  // VIOMMU_TESTS_BENCH_BENCH_GUEST_H_
