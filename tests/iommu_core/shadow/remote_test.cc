// The same guest through shared and through remote memory: every strategy ends in the same shadow
// at the same counts, bit for bit; only the copies that the remote one needed are counted besides.
#include <gtest/gtest.h>

#include <cstring>
#include <functional>
#include <random>

#include "iommu_core/mem/remote_memory.h"
#include "tests/fakes/test_name.h"
#include "tests/iommu_core/shadow/test_guest.h"

namespace viommu {
namespace {

const SourceId kDevice = MakeSourceId(0, 3, 0);
const SourceId kOther = MakeSourceId(0, 4, 0);
constexpr uint16_t kDid = 5;

class GuestSource final : public PageSource {
 public:
  explicit GuestSource(TestGuest& guest) : guest_(guest) {}
  absl::Status Fetch(std::span<const PhysAddr> pages, std::span<RemotePage* const> out) override {
    if (fetches_left == 0) return absl::DeadlineExceededError("the guest does not answer");
    --fetches_left;
    if (before_fetch) before_fetch();
    for (size_t i = 0; i < pages.size(); ++i) {
      std::memcpy(out[i], guest_.memory().PageInPlace(pages[i]), kPageSize);
    }
    return absl::OkStatus();
  }
  absl::Status Store(PhysAddr address, std::span<const std::byte> data) override {
    guest_.memory().WriteBytes(address, data);
    return absl::OkStatus();
  }
  uint64_t fetches_left = ~uint64_t{0};
  std::function<void()> before_fetch;

 private:
  TestGuest& guest_;
};

SyncCost WithoutPulls(SyncCost cost) {
  cost.remote_pages = cost.remote_bytes = cost.remote_round_trips = 0;
  return cost;
}

class RemoteTest : public ::testing::TestWithParam<Strategy> {
 protected:
  RemoteTest()
      : source_(guest_), remote_memory_(*RemoteMemory::Create(guest_.ram_bytes(), source_, {})) {
    SessionConfig config;
    config.strategy = GetParam();
    config.guest_ram_bytes = guest_.ram_bytes();
    config.verify = Verify::kFull;
    config.dma_entry_limit = 100;
    local_ = *SessionImpl::Create(config, guest_.memory());
    remote_ = *SessionImpl::Create(config, *remote_memory_);
    table_ = guest_.NewPage();
    other_table_ = guest_.NewPage();
    Both([&](SessionImpl& s) { EXPECT_TRUE(s.UpdateRegisters({guest_.root(), true}).ok()); });
  }

  template <typename Work>
  void Both(const Work& work) {
    work(*local_);
    work(*remote_);
  }
  SinkCompletion SendBoth(std::vector<vtd::RawDescriptor> raw,
                          std::vector<DeviceTouch> touches = {},
                          TableClaim claim = TableClaim::kSettled) {
    const SinkCompletion a = local_->Apply(raw, touches, claim);
    const SinkCompletion b = remote_->Apply(raw, touches, claim);
    EXPECT_EQ(a.cost, WithoutPulls(b.cost));
    EXPECT_EQ(a.refused_pages, b.refused_pages);
    EXPECT_EQ(a.pinned_pages, b.pinned_pages);
    EXPECT_EQ(a.stale_dma_hits, b.stale_dma_hits);
    EXPECT_EQ(a.faults, b.faults);
    EXPECT_EQ(b.cost.remote_bytes, b.cost.remote_pages * kPageSize);
    EXPECT_LE(b.cost.remote_round_trips, b.cost.remote_pages);
    return b;
  }
  void ExpectSame() {
    for (const SourceId sid : {kDevice, kOther}) {
      const auto a = local_->FlattenShadow(sid);
      const auto b = remote_->FlattenShadow(sid);
      ASSERT_EQ(a.ok(), b.ok());
      if (!a.ok()) continue;
      ASSERT_EQ(a->size(), b->size());
      for (size_t i = 0; i < a->size(); ++i) {
        EXPECT_EQ((*a)[i].iova, (*b)[i].iova);
        EXPECT_EQ((*a)[i].address, (*b)[i].address);
        EXPECT_EQ((*a)[i].size_bytes, (*b)[i].size_bytes);
        EXPECT_EQ((*a)[i].access, (*b)[i].access);
      }
    }
    const SessionStats a = local_->stats();
    const SessionStats b = remote_->stats();
    EXPECT_EQ(a.cost, WithoutPulls(b.cost));
    EXPECT_EQ(a.live_pages, b.live_pages);
    EXPECT_EQ(a.shadow_table_pages, b.shadow_table_pages);
    EXPECT_EQ(a.stale_dma_hits, b.stale_dma_hits);
    EXPECT_EQ(a.iotlb_hits, b.iotlb_hits);
    EXPECT_EQ(a.iotlb_misses, b.iotlb_misses);
    EXPECT_GE(b.pulled.pages, b.cost.remote_pages);
  }
  void Attach(SourceId sid, PhysAddr table) {
    guest_.SetContext(sid, vtd::ContextEntry::Make(table, 4, DomainId(kDid),
                                                   vtd::TranslationType::kUntranslatedOnly));
  }
  bool nested() const { return GetParam() == Strategy::kNested; }

  TestGuest guest_{uint64_t{64} << 20};
  GuestSource source_;
  std::unique_ptr<RemoteMemory> remote_memory_;
  std::unique_ptr<SessionImpl> local_;
  std::unique_ptr<SessionImpl> remote_;
  PhysAddr table_;
  PhysAddr other_table_;
};

// A guest that maps a page while its doorbell is carried out has that page's own invalidation to
// come, whichever of the copies of one doorbell is older.
TEST_P(RemoteTest, PageMappedDuringABatchIsNoMismatch) {
  Attach(kDevice, table_);
  guest_.Map(table_, 4, 0x1000, 0x200000);
  ASSERT_TRUE(remote_->AddDevice(kDevice, false).ok());
  uint64_t changes = 0;
  for (uint64_t wait = 0; wait < 16; ++wait) {
    const uint64_t iova = 0x10000 + wait * kPageSize;
    uint64_t left = wait;
    source_.before_fetch = [&] {
      if (left-- != 0) return;
      guest_.Map(table_, 4, iova, 0x300000);
      ++changes;
    };
    SinkCompletion done =
        remote_->Apply(std::vector{Dsi(kDid), Dsi(kDid), Dsi(kDid)}, {}, TableClaim::kQuiet);
    EXPECT_EQ(done.cost.shadow_mismatches, 0u) << "changed before fetch " << wait;
    source_.before_fetch = nullptr;
    done = remote_->Apply(std::vector{Psi(kDid, iova)}, {}, TableClaim::kSettled);
    EXPECT_EQ(done.cost.shadow_mismatches, 0u);
  }
  EXPECT_GE(changes, nested() ? 0u : 3u);  // `nested` reads no tables here
  EXPECT_EQ(remote_->VerifyAll(), 0u);
}

TEST_P(RemoteTest, RandomHistoryIsTheSame) {
  Attach(kDevice, table_);
  Attach(kOther, other_table_);
  Both([&](SessionImpl& s) {
    EXPECT_TRUE(s.AddDevice(kDevice, false).ok());
    EXPECT_TRUE(s.AddDevice(kOther, false).ok());
  });
  std::mt19937_64 random(3);
  for (int step = 0; step < 150; ++step) {
    for (uint64_t edits = random() % 6; edits > 0; --edits) {
      const PhysAddr table = random() % 4 == 0 ? other_table_ : table_;
      // Two regions of 1 GiB, three of 2 MiB in each, and single pages; now and then a superpage.
      const uint64_t iova = (random() % 2) << 30 | (random() % 3) << 21 | (random() % 40) << 12;
      const int level = random() % 30 == 0 ? 2 : 1;
      const uint64_t target = AlignDown(random() % guest_.ram_bytes(), vtd::LevelSize(level));
      if (random() % 3 == 0) {
        guest_.Unmap(table, 4, iova, level);
      } else {
        guest_.Map(table, 4, iova, target, 1 + random() % 3, level);
      }
    }
    std::vector<vtd::RawDescriptor> raw;
    switch (random() % 6) {
      case 0:
        raw.push_back(Dsi(kDid));
        break;
      case 1:
        raw.push_back(ContextGlobal());
        raw.push_back(GlobalIotlb());
        break;
      case 2:
        Attach(kOther, random() % 2 == 0 ? table_ : other_table_);
        raw.push_back(ContextDevice(kOther));
        raw.push_back(Dsi(kDid));
        break;
      default:
        // IH now and then says what is not so: that is the guest's loss, and the same for both.
        raw.push_back(Psi(kDid, (random() % 2) << 30 | (random() % 3) << 21,
                          static_cast<int>(random() % 11), random() % 2 == 0));
        raw.push_back(Psi(kDid, (random() % 2) << 30 | (random() % 40) << 12));
    }
    const TableClaim claim =
        raw.back() == GlobalIotlb() ? TableClaim::kSettled : TableClaim::kQuiet;
    SendBoth(raw, {{kDevice, Iova((random() % 40) << 12), random() % 2 == 0}}, claim);
    std::array<std::byte, 5000> a{};
    std::array<std::byte, 5000> b{};
    const Iova iova((random() % 40) << 12 | (random() % 4096));
    const DmaResult read_a = local_->Dma(kDevice, iova, false, a, false);
    const DmaResult read_b = remote_->Dma(kDevice, iova, false, b, false);
    EXPECT_EQ(read_a.reason, read_b.reason);
    EXPECT_EQ(read_a.bytes_moved, read_b.bytes_moved);
    EXPECT_EQ(read_a.stale, read_b.stale);
    EXPECT_EQ(a, b);
    EXPECT_EQ(local_->TakeFaults(), remote_->TakeFaults());
    ExpectSame();
    if (HasFailure()) FAIL() << "step " << step;
  }
  if (!nested()) {
    EXPECT_GT(remote_->stats().cost.remote_pages, 500u);
  }
}

TEST_P(RemoteTest, AWholeDomainComesLevelByLevel) {
  if (nested()) GTEST_SKIP() << "no table is read at an invalidation";
  constexpr uint64_t kTables = 90;  // within the DMA container's limit
  Attach(kDevice, table_);
  Both([&](SessionImpl& s) { EXPECT_TRUE(s.AddDevice(kDevice, false).ok()); });
  for (uint64_t i = 0; i < kTables; ++i) guest_.Map(table_, 4, i << 21, 0x200000, kRw);
  const SyncCost cost = SendBoth({Dsi(kDid)}).cost;
  // Root table, context table and level 4, all of which were read last time; then levels 3 and 2,
  // and all of level 1.
  EXPECT_EQ(cost.remote_pages, 3 + 2 + kTables);
  EXPECT_EQ(cost.remote_round_trips, 1 + 2 + 1u);
  ExpectSame();
  // One page afterwards: its path was among what was read first.
  guest_.Unmap(table_, 4, 0);
  EXPECT_EQ(SendBoth({Psi(kDid, 0)}).cost.remote_round_trips, 1u);
  ExpectSame();
}

TEST_P(RemoteTest, AGuestThatDoesNotAnswerIsNoStatementAboutItsTables) {
  guest_.Map(table_, 4, 0x1000, 0x200000, kRw);
  Attach(kDevice, table_);
  Both([&](SessionImpl& s) { EXPECT_TRUE(s.AddDevice(kDevice, false).ok()); });
  SendBoth({ContextGlobal(), GlobalIotlb()});
  source_.fetches_left = 0;
  const std::vector<vtd::RawDescriptor> raw = {GlobalIotlb()};
  const std::vector<DeviceTouch> touches = {{kDevice, Iova(0x1000), false}};
  const SinkCompletion done = remote_->Apply(raw, touches, TableClaim::kSettled);
  EXPECT_TRUE(remote_memory_->failed());
  EXPECT_EQ(done.stale_dma_hits, 0u);
  EXPECT_EQ(done.cost.shadow_mismatches, 0u);
  EXPECT_TRUE(done.faults.empty());
  std::array<std::byte, 8> data{};
  remote_->Dma(kDevice, Iova(0x1000), false, data, false);
  EXPECT_TRUE(remote_memory_->failed());
  EXPECT_EQ(remote_->stats().stale_dma_hits, 0u);
  EXPECT_TRUE(remote_->TakeFaults().empty());
  // The guest is back, and its state is replayed.
  source_.fetches_left = ~uint64_t{0};
  EXPECT_TRUE(remote_->UpdateRegisters({guest_.root(), true}).ok());
  EXPECT_EQ(remote_->Apply(raw, touches, TableClaim::kSettled).cost.shadow_mismatches, 0u);
  EXPECT_FALSE(remote_memory_->failed());
  EXPECT_EQ(remote_->FlattenShadow(kDevice)->size(), 1u);
}

TEST_P(RemoteTest, ADeviceWritesIntoTheGuest) {
  guest_.Map(table_, 4, 0x1000, 0x201000, kRw);
  guest_.Map(table_, 4, 0x2000, 0x300000, kRw);
  Attach(kDevice, table_);
  Both([&](SessionImpl& s) { EXPECT_TRUE(s.AddDevice(kDevice, false).ok()); });
  SendBoth({ContextGlobal(), GlobalIotlb()});
  std::vector<std::byte> data(6000, std::byte{0x77});
  EXPECT_EQ(remote_->Dma(kDevice, Iova(0x1004), true, data, false).bytes_moved, data.size());
  EXPECT_EQ(guest_.memory().Read32(PhysAddr(0x201004)), 0x77777777u);
  EXPECT_EQ(guest_.memory().Read64(PhysAddr(0x300000)), 0x7777777777777777u);
}

INSTANTIATE_TEST_SUITE_P(Strategies, RemoteTest,
                         ::testing::Values(Strategy::kWalk, Strategy::kWalkShared,
                                           Strategy::kSnapshot, Strategy::kDirtyLog,
                                           Strategy::kNested),
                         [](const auto& p) { return TestName(StrategyName(p.param)); });

}  // namespace
}  // namespace viommu
