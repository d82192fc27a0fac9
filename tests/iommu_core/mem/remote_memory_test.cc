#include "iommu_core/mem/remote_memory.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <random>
#include <set>

#include "iommu_core/mem/shared_memory.h"

namespace viommu {
namespace {

constexpr uint64_t kPages = 4096;

// Serves a memory of this process, checks what it is asked for, and fails on command.
class FakeSource final : public PageSource {
 public:
  FakeSource() : memory_(*SharedMemory::Create(kPages * kPageSize)) {}

  SharedMemory& memory() { return *memory_; }

  absl::Status Fetch(std::span<const PhysAddr> pages, std::span<RemotePage* const> out) override {
    ++fetches;
    EXPECT_EQ(pages.size(), out.size());
    EXPECT_GE(pages.size(), 1u);
    EXPECT_LE(pages.size(), RemoteMemory::kMaxFetchPages);
    std::set<uint64_t> seen;
    last_fetch.clear();
    std::set<RemotePage*> targets;
    for (size_t i = 0; i < pages.size(); ++i) {
      EXPECT_TRUE(IsAligned(pages[i].value(), kPageSize));
      EXPECT_LT(pages[i].value(), kPages * kPageSize);
      EXPECT_TRUE(seen.insert(pages[i].value()).second);
      EXPECT_TRUE(targets.insert(out[i]).second);
      last_fetch.push_back(pages[i].value() >> kPageShift);
      // A source that fails halfway has written some of it.
      if (fail_after_pages-- == 0) return absl::DeadlineExceededError("no answer");
      std::memcpy(out[i], memory_->PageInPlace(pages[i]), kPageSize);
      ++fetched;
    }
    return absl::OkStatus();
  }

  absl::Status Store(PhysAddr address, std::span<const std::byte> data) override {
    if (fail_after_pages-- == 0) return absl::DeadlineExceededError("no answer");
    EXPECT_TRUE(memory_->WriteBytes(address, data));
    return absl::OkStatus();
  }

  int fetches = 0;
  uint64_t fetched = 0;
  std::vector<uint64_t> last_fetch;  // page numbers, in order
  int64_t fail_after_pages = -1;     // -1: never

 private:
  std::unique_ptr<SharedMemory> memory_;
};

class RemoteMemoryTest : public ::testing::Test {
 protected:
  void Make(RemoteMemory::Limits limits) {
    auto made = RemoteMemory::Create(kPages * kPageSize, source_, limits);
    ASSERT_TRUE(made.ok()) << made.status();
    memory_ = *std::move(made);
  }
  void SetUp() override { Make({}); }

  FakeSource source_;
  std::unique_ptr<RemoteMemory> memory_;
};

TEST_F(RemoteMemoryTest, APageIsCopiedOnceUntilRefresh) {
  source_.memory().Write64(PhysAddr(0x3008), 7);
  EXPECT_EQ(memory_->Read64(PhysAddr(0x3008)), 7u);
  source_.memory().Write64(PhysAddr(0x3008), 8);
  EXPECT_EQ(memory_->Read64(PhysAddr(0x3008)), 7u);
  EXPECT_EQ(memory_->PageInPlace(PhysAddr(0x3000))[1], 7u);
  EXPECT_EQ(memory_->counts(), (PullCounts{1, kPageSize, 1}));
  memory_->Refresh();
  EXPECT_EQ(memory_->Read64(PhysAddr(0x3008)), 8u);
  EXPECT_EQ(memory_->counts(), (PullCounts{2, 2 * kPageSize, 2}));
}

TEST_F(RemoteMemoryTest, APrefetchTakesOneWaitAndOnlyWhatIsMissing) {
  memory_->Read64(PhysAddr(0x5000));
  // One is there, one comes twice, one is no memory.
  memory_->Prefetch(std::vector<PhysAddr>{PhysAddr(0x7000), PhysAddr(0x5000), PhysAddr(0x6000),
                                          PhysAddr(0x7000), PhysAddr(kPages * kPageSize),
                                          PhysAddr(~uint64_t{0} << kPageShift)});
  EXPECT_EQ(memory_->counts(), (PullCounts{3, 3 * kPageSize, 2}));
  memory_->Read64(PhysAddr(0x6000));
  memory_->Read64(PhysAddr(0x7ff8));
  memory_->Prefetch({});
  EXPECT_EQ(source_.fetches, 2);
}

TEST_F(RemoteMemoryTest, TheFirstWaitBringsTheTablesOfTheLastTime) {
  const auto walk = [&](uint64_t last) {
    memory_->Refresh();
    for (const uint64_t page : {uint64_t{1}, uint64_t{2}, uint64_t{3}, last}) {
      memory_->Read64(PhysAddr(page << kPageShift));
    }
  };
  walk(4);
  EXPECT_EQ(memory_->counts(), (PullCounts{4, 4 * kPageSize, 4}));
  walk(4);
  EXPECT_EQ(memory_->counts(), (PullCounts{8, 8 * kPageSize, 5}));
  walk(5);  // 4 came along for nothing
  EXPECT_EQ(memory_->counts(), (PullCounts{13, 13 * kPageSize, 7}));
  walk(4);  // unless two domains take turns
  EXPECT_EQ(memory_->counts(), (PullCounts{18, 18 * kPageSize, 8}));
  for (uint64_t i = 0; i < RemoteMemory::kAlongRefreshes; ++i) walk(5);
  const uint64_t pages = memory_->counts().pages;
  walk(5);  // 4 comes no more
  EXPECT_EQ(memory_->counts().pages, pages + 4);
  // A device's data are no tables: the walk after it finds its own.
  memory_->Refresh();
  std::array<std::byte, 16> bytes;
  EXPECT_TRUE(memory_->ReadBytes(PhysAddr(0x9000), bytes));
  const uint64_t round_trips = memory_->counts().round_trips;
  walk(5);
  EXPECT_EQ(memory_->counts().round_trips, round_trips + 1);
  // Of many tables only the first come along.
  memory_->Refresh();
  for (uint64_t page = 100; page < 140; ++page) memory_->Read64(PhysAddr(page << kPageShift));
  memory_->Refresh();
  memory_->Read64(PhysAddr(100 << kPageShift));
  EXPECT_EQ(source_.last_fetch.size(), RemoteMemory::kMaxAlongPages);
}

TEST_F(RemoteMemoryTest, NothingBeyondTheEndIsAskedFor) {
  constexpr PhysAddr kEnd(kPages * kPageSize);
  EXPECT_EQ(memory_->Read64(kEnd), std::nullopt);
  EXPECT_EQ(memory_->Read64(PhysAddr(~uint64_t{7})), std::nullopt);
  EXPECT_EQ(memory_->Read32(kEnd), std::nullopt);
  EXPECT_EQ(memory_->PageInPlace(kEnd), nullptr);
  std::array<std::byte, 16> bytes;
  EXPECT_FALSE(memory_->ReadBytes(PhysAddr(kEnd.value() - 8), bytes));
  EXPECT_FALSE(memory_->WriteBytes(PhysAddr(kEnd.value() - 8), bytes));
  EXPECT_FALSE(memory_->Write64(kEnd, 1));
  EXPECT_EQ(source_.fetches, 0);
  EXPECT_FALSE(memory_->failed());
}

TEST_F(RemoteMemoryTest, WritesArriveAndAreReadBack) {
  memory_->Read64(PhysAddr(0x2ff8));
  memory_->oracle_view().Read64(PhysAddr(0x3000));
  std::vector<std::byte> bytes(3 * kPageSize, std::byte{0x5a});
  ASSERT_TRUE(memory_->WriteBytes(PhysAddr(0x2800), bytes));
  ASSERT_TRUE(memory_->Write32(PhysAddr(0x3004), 0x01020304));
  EXPECT_EQ(source_.memory().Read64(PhysAddr(0x2800)), 0x5a5a5a5a5a5a5a5au);
  EXPECT_EQ(memory_->Read64(PhysAddr(0x2ff8)), 0x5a5a5a5a5a5a5a5au);
  EXPECT_EQ(memory_->oracle_view().Read64(PhysAddr(0x3000)), 0x010203045a5a5a5au);
  EXPECT_EQ(memory_->Read32(PhysAddr(0x3004)), 0x01020304u);
  EXPECT_EQ(memory_->Read32(PhysAddr(0x3000)), 0x5a5a5a5au);
}

TEST_F(RemoteMemoryTest, TheOraclesReadsAreItsOwn) {
  const PhysicalMemory& oracle = memory_->oracle_view();
  memory_->Read64(PhysAddr(0x1000));
  source_.memory().Write64(PhysAddr(0x1000), 5);
  EXPECT_EQ(oracle.Read64(PhysAddr(0x1000)), 5u);
  EXPECT_EQ(memory_->Read64(PhysAddr(0x1000)), 0u);
  EXPECT_EQ(memory_->counts().pages, 1u);
  EXPECT_EQ(oracle.pulled()->counts().pages, 1u);
  oracle.pulled()->Refresh();
  oracle.Read64(PhysAddr(0x1000));
  memory_->Read64(PhysAddr(0x1000));
  EXPECT_EQ(memory_->counts().pages, 1u);
  EXPECT_EQ(oracle.pulled()->counts().pages, 2u);
  memory_->Refresh();
  oracle.Read64(PhysAddr(0x1000));
  EXPECT_EQ(oracle.pulled()->counts().pages, 3u);
}

TEST_F(RemoteMemoryTest, AfterAFailedPullNothingIsPulledUntilRefresh) {
  memory_->Read64(PhysAddr(0x1000));
  source_.fail_after_pages = 1;
  memory_->Prefetch(std::vector<PhysAddr>{PhysAddr(0x2000), PhysAddr(0x3000)});
  EXPECT_TRUE(memory_->failed());
  EXPECT_EQ(memory_->status().code(), absl::StatusCode::kDeadlineExceeded);
  const int fetches = source_.fetches;
  EXPECT_EQ(memory_->Read64(PhysAddr(0x2000)), std::nullopt);  // it had been written before the end
  EXPECT_EQ(memory_->PageInPlace(PhysAddr(0x4000)), nullptr);
  EXPECT_EQ(memory_->oracle_view().Read64(PhysAddr(0x4000)), std::nullopt);
  EXPECT_FALSE(memory_->Write64(PhysAddr(0x4000), 1));
  EXPECT_EQ(memory_->Read64(PhysAddr(0x1000)), 0u);  // that copy is good
  memory_->oracle_view().pulled()->Refresh();
  EXPECT_TRUE(memory_->failed());
  EXPECT_EQ(source_.fetches, fetches);
  memory_->Refresh();
  EXPECT_FALSE(memory_->failed());
  EXPECT_EQ(memory_->Read64(PhysAddr(0x2000)), 0u);
  EXPECT_EQ(memory_->counts().pages, 3u);  // the one read before it came along

  source_.fail_after_pages = 0;
  EXPECT_EQ(memory_->oracle_view().Read64(PhysAddr(0x5000)), std::nullopt);
  EXPECT_TRUE(memory_->failed());
  EXPECT_FALSE(memory_->status().ok());
  EXPECT_EQ(memory_->Read64(PhysAddr(0x6000)), std::nullopt);
}

TEST_F(RemoteMemoryTest, WhatOneInvalidationMayPullIsBounded) {
  Make({.cached_pages = 1024, .pages_per_refresh = 100});
  for (uint64_t page = 0; page < 100; ++page) {
    EXPECT_TRUE(memory_->Read64(PhysAddr(page << kPageShift)).has_value());
  }
  EXPECT_FALSE(memory_->Read64(PhysAddr(100 << kPageShift)).has_value());
  EXPECT_EQ(memory_->status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(source_.fetched, 100u);
  memory_->Refresh();
  EXPECT_TRUE(memory_->Read64(PhysAddr(100 << kPageShift)).has_value());
}

TEST_F(RemoteMemoryTest, LimitsBelowTheirLeastAreRefused) {
  EXPECT_FALSE(RemoteMemory::Create(0, source_, {}).ok());
  EXPECT_FALSE(RemoteMemory::Create(kPageSize + 1, source_, {}).ok());
  EXPECT_FALSE(RemoteMemory::Create(kPageSize, source_, {.cached_pages = 1023}).ok());
  EXPECT_FALSE(RemoteMemory::Create(kPageSize, source_, {.pages_per_refresh = 0}).ok());
}

// A model that knows when each page was copied, with room for a part of the memory only: every read
// is what was there at a copy since the last refresh, and at most the bound is kept.
TEST_F(RemoteMemoryTest, AgreesWithAModelUnderEviction) {
  constexpr size_t kRoom = 1024;
  Make({.cached_pages = kRoom, .pages_per_refresh = ~uint64_t{0}});
  std::mt19937_64 random(11);
  // Values only grow, so a read lies between the value at refresh and the value now.
  std::map<uint64_t, std::pair<uint64_t, uint64_t>> value;  // page -> at refresh, now
  std::vector<uint64_t> order;  // pages that the model holds, oldest first
  uint64_t pulled = 0;
  std::set<uint64_t> read;         // since refresh
  std::set<uint64_t> read_before;  // ever
  const auto touch = [&](uint64_t page, const std::set<uint64_t>& asked) {
    if (order.empty()) {  // the tables of the last time came along, no others
      order = source_.last_fetch;
      pulled += order.size();
      EXPECT_EQ(std::count(order.begin(), order.end(), page), 1);
      size_t along = 0;
      for (const uint64_t p : order) along += asked.contains(p) ? 0 : 1;
      EXPECT_LE(along, RemoteMemory::kMaxAlongPages);
      for (const uint64_t p : order) EXPECT_TRUE(asked.contains(p) || read_before.contains(p));
    }
    if (std::find(order.begin(), order.end(), page) != order.end()) return;
    order.push_back(page);
    if (order.size() > kRoom) order.erase(order.begin());
    ++pulled;
  };
  for (int step = 0; step < 20'000; ++step) {
    const uint64_t page = random() % (kRoom + 200);
    const PhysAddr at((page << kPageShift) + 8 * (page % 512));
    switch (random() % 12) {
      case 0: {
        auto& [at_refresh, now] = value[page];
        source_.memory().Write64(at, ++now);
        break;
      }
      case 1: {
        std::vector<PhysAddr> pages;
        std::set<uint64_t> missing;
        for (uint64_t i = page; i < page + random() % 40; ++i) {
          pages.push_back(PhysAddr(i << kPageShift));
          missing.insert(i);
        }
        memory_->Prefetch(pages);
        for (const uint64_t p : missing) touch(p, missing);
        break;
      }
      case 2:
        if (step % 50 != 0) break;
        memory_->Refresh();
        order.clear();
        read_before.merge(read);
        for (auto& [p, v] : value) v.first = v.second;
        break;
      default: {
        const auto got = memory_->Read64(at);
        touch(page, {page});
        read.insert(page);
        ASSERT_TRUE(got.has_value());
        EXPECT_GE(*got, value[page].first);
        EXPECT_LE(*got, value[page].second);
      }
    }
    ASSERT_EQ(memory_->counts().pages, pulled) << "step " << step;
  }
  EXPECT_GT(pulled, 2 * kRoom);
}

}  // namespace
}  // namespace viommu
