// Guest processors change tables while every strategy synchronises with them. What nobody touches
// is never missing, not after any single store to a physical table; and once the writers have
// stopped, one invalidation that covers all leaves every strategy with the reference walk's
// mappings. Under ThreadSanitizer the same test shows that guest memory is read by atomics only.
#include <atomic>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "iommu_core/shadow/mapping_runs.h"
#include "tests/iommu_core/shadow/test_guest.h"

namespace viommu {
namespace {

constexpr int kLevels = 4;
constexpr uint16_t kDomain = 1;
constexpr uint64_t kSpan = uint64_t{1} << 21;  // of one leaf table
constexpr uint64_t kBuffers = uint64_t{64} << 20;
constexpr int kRounds = 40;

class Writers : public ::testing::TestWithParam<int> {
 protected:
  // Span 0: even pages change, odd ones do not. 1: two tables take each other's place, alike in
  // their first half. 2: a superpage becomes a table of the same pages, and back. 3: a table comes
  // and goes. From 4 on: nothing changes.
  static constexpr uint64_t kQuietSpans = 6;

  Writers() : guest_(uint64_t{512} << 20), table_(guest_.NewPage()) {
    guest_.SetContext(kNic, vtd::ContextEntry::Make(table_, kLevels, DomainId(kDomain)));
    for (uint64_t i = 0; i < 512; ++i) {
      Map(0, i, Target(0, i));
      if (i % 2 == 1) Untouched(0, i, Target(0, i));
    }
    for (PhysAddr& table : swapped_) {
      table = guest_.NewPage();
      for (uint64_t i = 0; i < 512; ++i) guest_.Put(table + 8 * i, Target(1, i) | kRw);
    }
    guest_.Put(Above(1), vtd::SecondStagePte::Table(swapped_[0]).raw);
    for (uint64_t i = 0; i < 256; ++i) Untouched(1, i, Target(1, i));
    split_ = guest_.NewPage();
    for (uint64_t i = 0; i < 512; ++i) {
      guest_.Put(split_ + 8 * i, (kSuperpage + i * kPageSize) | kRw);
      Untouched(2, i, kSuperpage + i * kPageSize);
    }
    guest_.Put(Above(2), kSuperpage | kRw | kLarge);
    freed_ = guest_.NewPage();
    for (uint64_t i = 0; i < 512; ++i) guest_.Put(freed_ + 8 * i, Target(3, i) | kRw);
    Above(3);
    for (uint64_t span = 4; span < 4 + kQuietSpans; ++span) {
      for (uint64_t i = 0; i < 512; ++i) {
        Map(span, i, Target(span, i));
        Untouched(span, i, Target(span, i));
      }
    }
  }

  // Scattered, as a guest's pages are.
  static uint64_t Target(uint64_t span, uint64_t i) {
    return kBuffers + ((span * 512 + i) * 2654435761u % 65536) * kPageSize;
  }
  void Map(uint64_t span, uint64_t i, uint64_t target) {
    guest_.Map(table_, kLevels, span * kSpan + i * kPageSize, target);
  }
  void Untouched(uint64_t span, uint64_t i, uint64_t target) {
    untouched_.push_back(
        {Iova(span * kSpan + i * kPageSize), PhysAddr(target), kPageSize, kReadWrite});
  }
  PhysAddr Above(uint64_t span) { return guest_.Slot(table_, kLevels, Iova(span * kSpan), 2); }

  void ExpectThere(const SessionImpl& session, size_t index) {
    const LeafMapping& want = untouched_[index];
    const LeafMapping have = session.HostPageForTest(kNic, want.iova);
    if (have.access == want.access && have.address == want.address) return;
    if (missing_++ == 0) ADD_FAILURE() << "page " << want.iova.value() << " went missing";
  }

  std::unique_ptr<SessionImpl> NewSession(Strategy strategy) {
    SessionConfig config;
    config.verify = Verify::kOff;
    config.host_page_shift = GetParam();
    auto session = MakeSession(guest_, strategy, config);
    EXPECT_TRUE(session->AddDevice(kNic, false).ok());
    SessionImpl* raw = session.get();
    session->ObserveStoresForTest([this, raw] {
      for (int i = 0; i < 3; ++i) ExpectThere(*raw, next_++ % untouched_.size());
    });
    return session;
  }

  std::vector<LeafMapping> Reference() {
    const Walker walker(guest_.memory(), {SessionConfig{}.guest_caps, 48});
    MappingRuns runs({Iova(0), Iova(uint64_t{1} << 48)});
    EXPECT_TRUE(walker
                    .ForEachLeaf(table_, kLevels, {Iova(0), Iova(uint64_t{1} << 48)}, ~uint64_t{0},
                                 [&](const LeafMapping& leaf) { runs.Append(leaf); })
                    .ok());
    return runs.Take();
  }

  const SourceId kNic = MakeSourceId(0, 3, 0);
  static constexpr uint64_t kSuperpage = uint64_t{448} << 20;

  TestGuest guest_;
  const PhysAddr table_;
  PhysAddr swapped_[2];
  PhysAddr split_;
  PhysAddr freed_;
  std::vector<LeafMapping> untouched_;
  size_t next_ = 0;
  uint64_t missing_ = 0;
};

TEST_P(Writers, NothingUntouchedGoesMissingAndAllStrategiesEndAlike) {
  const std::vector<Strategy> strategies = {Strategy::kWalk, Strategy::kWalkShared,
                                            Strategy::kSnapshot, Strategy::kDirtyLog};
  std::vector<std::unique_ptr<SessionImpl>> sessions;
  for (const Strategy s : strategies) sessions.push_back(NewSession(s));
  for (const auto& session : sessions) {
    for (size_t i = 0; i < untouched_.size(); ++i) ExpectThere(*session, i);
  }
  std::atomic<bool> stop{false};
  std::atomic<uint64_t> writes{0};
  const PhysAddr above[] = {Above(0), Above(1), Above(2), Above(3)};
  const PhysAddr leaves(guest_.Get(above[0]) & 0xfffffffff000);
  // Entries: remapped, taken away, without one of the permissions, with ignored bits.
  std::thread entries([&] {
    std::mt19937_64 random(1);
    while (!stop.load(std::memory_order_relaxed)) {
      guest_.Put(leaves + 16 * (random() % 256),
                 Target(random() % 16, random() % 512) | random() % 4 | (random() % 2) << 55);
      const uint64_t half = 256 + random() % 256;
      guest_.Put(swapped_[random() % 2] + 8 * half, Target(random() % 16, half) | random() % 4);
      guest_.Put(freed_ + 8 * (random() % 512), Target(random() % 16, half) | kRw);
      writes.fetch_add(3, std::memory_order_relaxed);
    }
  });
  std::thread tables([&] {
    std::mt19937_64 random(2);
    while (!stop.load(std::memory_order_relaxed)) {
      guest_.Put(above[1], vtd::SecondStagePte::Table(swapped_[random() % 2]).raw);
      guest_.Put(above[2], random() % 2 == 0 ? kSuperpage | kRw | kLarge
                                             : vtd::SecondStagePte::Table(split_).raw);
      guest_.Put(above[3], random() % 2 == 0 ? 0 : vtd::SecondStagePte::Table(freed_).raw);
      writes.fetch_add(3, std::memory_order_relaxed);
      if (random() % 8 == 0) std::this_thread::yield();
    }
  });
  for (int round = 0; round < kRounds; ++round) {
    const uint64_t before = writes.load(std::memory_order_relaxed);
    for (const auto& session : sessions) {
      Send(*session, {Psi(kDomain, kSpan * static_cast<uint64_t>(round % 4), 9), Dsi(kDomain),
                      Psi(kDomain, (kSpan + kPageSize * 300), 3, /*ih=*/true), GlobalIotlb()});
    }
    for (const auto& session : sessions) {
      for (size_t i = round % 7; i < untouched_.size(); i += 7) ExpectThere(*session, i);
    }
    // The writers do get their turns.
    while (writes.load(std::memory_order_relaxed) == before) std::this_thread::yield();
  }
  stop = true;
  entries.join();
  tables.join();
  EXPECT_EQ(missing_, 0u);
  const std::vector<LeafMapping> want = Reference();
  EXPECT_FALSE(want.empty());
  for (size_t s = 0; s < sessions.size(); ++s) {
    Send(*sessions[s], {Dsi(kDomain)});
    const auto have = sessions[s]->FlattenShadow(kNic);
    ASSERT_TRUE(have.ok());
    const RunComparison compared =
        CompareRuns({Iova(0), Iova(uint64_t{1} << 48)}, *have, want, want, {});
    EXPECT_EQ(compared.differing_pages, 0u) << StrategyName(strategies[s]);
    EXPECT_GE(compared.compared_pages, untouched_.size());
    EXPECT_EQ(sessions[s]->VerifyAll(), 0u) << StrategyName(strategies[s]);
    EXPECT_EQ(sessions[s]->stats().pinned_pages, sessions[0]->stats().pinned_pages);
  }
}

INSTANTIATE_TEST_SUITE_P(HostPageShift, Writers, ::testing::Values(12, 21),
                         [](const auto& p) { return std::to_string(p.param); });

}  // namespace
}  // namespace viommu
