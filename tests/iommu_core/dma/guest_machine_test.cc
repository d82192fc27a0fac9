#include "iommu_core/dma/guest_machine.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "iommu_core/mem/shared_memory.h"
#include "iommu_core/pt/walker.h"
#include "tests/fakes/recording_sink.h"

namespace viommu {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using vtd::ContextCacheInvalidate;
using vtd::Granularity;
using vtd::IotlbInvalidate;

constexpr uint64_t kMs = 1'000'000;
const SourceId kNvme = MakeSourceId(0, 3, 0);
const SourceId kNic = MakeSourceId(0, 4, 0);

// "cc device did 0 sid 0x18" in short, so that a sequence reads as one line.
std::string Short(const vtd::Descriptor& d) {
  if (const auto* cc = std::get_if<ContextCacheInvalidate>(&d)) {
    return "cc" + std::to_string(static_cast<int>(cc->granularity)) + " did" +
           std::to_string(cc->domain_id.value());
  }
  if (const auto* i = std::get_if<IotlbInvalidate>(&d)) {
    if (i->granularity == Granularity::kGlobal) return "global";
    if (i->granularity == Granularity::kDomain) return "dsi" + std::to_string(i->domain_id.value());
    return "psi" + std::to_string(i->domain_id.value()) + " am" + std::to_string(i->address_mask) +
           (i->leaf_hint ? " ih" : "");
  }
  if (std::holds_alternative<vtd::DeviceTlbInvalidate>(d)) return "devtlb";
  return "?";
}

class GuestMachineTest : public ::testing::Test {
 protected:
  void Make(GuestConfig config) {
    config.ram_bytes = uint64_t{256} << 20;
    ram_ = *SharedMemory::Create(config.ram_bytes);
    sinks_.clear();
    std::vector<InvalidationSink*> raw;
    for (size_t i = 0; i < config.iommu_caching_mode.size(); ++i) {
      sinks_.push_back(std::make_unique<RecordingSink>());
      raw.push_back(sinks_.back().get());
    }
    auto machine = GuestMachine::Create(config, *ram_, clock_, raw);
    ASSERT_TRUE(machine.ok()) << machine.status();
    machine_ = *std::move(machine);
  }
  void MakeAttached(Policy policy, bool force_lazy = true) {
    GuestConfig config;
    config.policy = policy;
    config.force_lazy = force_lazy;
    Make(config);
    domain_ = *machine_->CreateDomain(64);
    ASSERT_TRUE(machine_->AttachDevice(domain_, kNvme, 0, false).ok());
    sinks_[0]->Clear();
    machine_->ResetStats();
  }
  std::vector<std::string> Sent(size_t sink = 0) {
    std::vector<std::string> out;
    for (const vtd::Descriptor& d : sinks_[sink]->Sent()) out.push_back(Short(d));
    sinks_[sink]->Clear();
    return out;
  }
  Iova MapPages(uint64_t guest_page, uint64_t pages = 1) {
    const Segment segment{GuestPhys((256 + guest_page) * kPageSize), pages * kPageSize};
    auto iova = machine_->Map(domain_, {&segment, 1}, kReadWrite, 0);
    EXPECT_TRUE(iova.ok()) << iova.status();
    return iova.value_or(Iova(0));
  }
  void AdvanceTo(uint64_t ns) {
    while (auto next = machine_->NextTimerNs()) {
      if (*next > ns) break;
      clock_.AdvanceTo(*next);
      ASSERT_TRUE(machine_->RunTimers().ok());
    }
    clock_.AdvanceTo(ns);
  }

  VirtualClock clock_;
  std::unique_ptr<SharedMemory> ram_;
  std::vector<std::unique_ptr<RecordingSink>> sinks_;
  std::unique_ptr<GuestMachine> machine_;
  uint32_t domain_ = 0;
};

// intel_iommu_init: global context and IOTLB invalidation before translation goes on.
TEST_F(GuestMachineTest, BringUpInvalidatesGloballyThenEnables) {
  Make(GuestConfig{});
  EXPECT_THAT(Sent(), ElementsAre("cc1 did0", "global"));
  EXPECT_TRUE(sinks_[0]->registers.translation_enabled);
}

// real/README, "What real Linux did", 3: context invalidation with domain id 0, then DSI of the new
// id; detach with the old id; ids are reused at once, from 2 up.
TEST_F(GuestMachineTest, AttachAndDetachUnderCachingMode) {
  Make(GuestConfig{});
  Sent();
  const uint32_t a = *machine_->CreateDomain(64);
  EXPECT_EQ(machine_->AttachDevice(a, kNvme, 0, false)->value(), 2);
  EXPECT_THAT(Sent(), ElementsAre("cc3 did0", "dsi2"));
  ASSERT_TRUE(machine_->DetachDevice(kNvme).ok());
  EXPECT_THAT(Sent(), ElementsAre("cc3 did2", "dsi2"));
  const uint32_t b = *machine_->CreateDomain(64);
  EXPECT_EQ(machine_->AttachDevice(b, kNvme, 0, false)->value(), 2);
}

TEST_F(GuestMachineTest, AttachWithoutCachingModeSendsNothing) {
  GuestConfig config;
  config.iommu_caching_mode = {false};
  Make(config);
  Sent();
  const uint32_t a = *machine_->CreateDomain(64);
  ASSERT_TRUE(machine_->AttachDevice(a, kNvme, 0, false).ok());
  EXPECT_THAT(Sent(), ElementsAre());
}

TEST_F(GuestMachineTest, StrictSendsOnePsiAtMapAndOneAtUnmapEachWithItsWait) {
  MakeAttached(Policy::kStrict);
  const Iova iova = MapPages(0);
  ASSERT_EQ(sinks_[0]->doorbells.size(), 1u);
  EXPECT_EQ(sinks_[0]->doorbells[0].raw.size(), 2u);
  EXPECT_THAT(Sent(), ElementsAre("psi2 am0"));
  const auto outcome = machine_->Unmap(domain_, iova, kPageSize, 0);
  ASSERT_TRUE(outcome.ok());
  EXPECT_FALSE(outcome->deferred);
  EXPECT_THAT(Sent(), ElementsAre("psi2 am0"));
  EXPECT_EQ(machine_->stats().stale_page_seconds, 0);
}

// iommu_map_sg: one iotlb_sync_map for the whole list.
TEST_F(GuestMachineTest, AListMakesOneMapTimeInvalidation) {
  MakeAttached(Policy::kStrict);
  const Segment list[] = {{GuestPhys(0x400000), 2 * kPageSize},
                          {GuestPhys(0x900000), kPageSize},
                          {GuestPhys(0x700000), kPageSize}};
  ASSERT_TRUE(machine_->Map(domain_, list, kReadWrite, 0).ok());
  EXPECT_THAT(Sent(), ElementsAre("psi2 am2"));
}

TEST_F(GuestMachineTest, HintOnlyAsThatKernelSetsIt) {
  GuestConfig config;
  config.hint = HintMode::kLinux612;
  Make(config);
  domain_ = *machine_->CreateDomain(64);
  ASSERT_TRUE(machine_->AttachDevice(domain_, kNvme, 0, false).ok());
  Sent();
  const Iova small = MapPages(0);
  ASSERT_TRUE(machine_->Unmap(domain_, small, kPageSize, 0).ok());
  EXPECT_THAT(Sent(), ElementsAre("psi2 am0", "psi2 am0 ih"));
  // 2 MiB of 4K pages: its table is freed, so upper levels changed and the hint must be clear.
  std::vector<Segment> list;
  for (uint64_t i = 0; i < 512; ++i) {
    list.push_back({GuestPhys((1024 + (i ^ 1)) * kPageSize), kPageSize});
  }
  ASSERT_TRUE(machine_->MapAt(domain_, Iova(0x40000000), list, kReadWrite, 0).ok());
  ASSERT_TRUE(machine_->Unmap(domain_, Iova(0x40000000), 512 * kPageSize, 0).ok());
  EXPECT_THAT(Sent(), ElementsAre("psi2 am9", "psi2 am9"));
}

// real/README 8: a superpage that replaces small tables sends an invalidation before its own.
TEST_F(GuestMachineTest, SuperpageOverEmptyTablesFlushesThemFirst) {
  MakeAttached(Policy::kStrict);
  const Segment page{GuestPhys(0x200000), kPageSize};
  ASSERT_TRUE(machine_->MapAt(domain_, Iova(0x40000000), {&page, 1}, kReadWrite, 0).ok());
  ASSERT_TRUE(machine_->Unmap(domain_, Iova(0x40000000), kPageSize, 0).ok());
  Sent();
  const Segment large{GuestPhys(0x400000), uint64_t{2} << 20};
  ASSERT_TRUE(machine_->MapAt(domain_, Iova(0x40000000), {&large, 1}, kReadWrite, 0).ok());
  EXPECT_THAT(Sent(), ElementsAre("psi2 am9", "psi2 am9"));
}

// The page before the superpage stands in the table, and its own invalidation is yet to come.
TEST_F(GuestMachineTest, TablesAreNotSettledInTheMiddleOfAMap) {
  MakeAttached(Policy::kStrict);
  const Segment page{GuestPhys(0x200000), kPageSize};
  ASSERT_TRUE(machine_->MapAt(domain_, Iova(0x40200000), {&page, 1}, kReadWrite, 0).ok());
  ASSERT_TRUE(machine_->Unmap(domain_, Iova(0x40200000), kPageSize, 0).ok());
  sinks_[0]->Clear();
  const Segment list[] = {page, {GuestPhys(0x400000), uint64_t{2} << 20}};
  ASSERT_TRUE(machine_->MapAt(domain_, Iova(0x401ff000), list, kReadWrite, 0).ok());
  ASSERT_EQ(sinks_[0]->doorbells.size(), 2u);
  EXPECT_EQ(sinks_[0]->doorbells[0].claim, TableClaim::kQuiet);
  EXPECT_EQ(sinks_[0]->doorbells[1].claim, TableClaim::kSettled);
}

// 29b32839725f and its review: any unit with CM decides for all, before anything is attached.
TEST_F(GuestMachineTest, AnyCachingModeUnitForcesStrict) {
  GuestConfig config;
  config.policy = Policy::kLazy;
  config.iommu_caching_mode = {false, true};
  Make(config);
  EXPECT_EQ(machine_->policy().effective, Policy::kStrict);
  EXPECT_THAT(machine_->policy().reason, HasSubstr("batching disallowed"));
  config.force_lazy = true;
  Make(config);
  EXPECT_EQ(machine_->policy().effective, Policy::kLazy);
  config.force_lazy = false;
  config.iommu_caching_mode = {false, false};
  Make(config);
  EXPECT_EQ(machine_->policy().effective, Policy::kLazy);
}

// A scripted sequence: 600 unmaps, 10 a millisecond, one CPU. By Linux's rules the timer fires at
// 16, 32, 48 ms (160 entries each, below 255), so three timer flushes and none for a full ring.
TEST_F(GuestMachineTest, LazyFlushesOnTheTimer) {
  MakeAttached(Policy::kLazy);
  for (uint64_t i = 0; i < 600; ++i) {
    AdvanceTo(i * kMs / 10);
    const Iova iova = MapPages(i);
    ASSERT_TRUE(machine_->Unmap(domain_, iova, kPageSize, 0)->deferred);
  }
  const GuestStats stats = machine_->stats();
  EXPECT_EQ(stats.flushes_timeout, 3u);
  EXPECT_EQ(stats.flushes_full, 0u);
  EXPECT_EQ(stats.descriptors_iotlb_domain, 3u);
  EXPECT_EQ(stats.descriptors_iotlb_page, 600u);  // at map
  EXPECT_GT(stats.stale_page_seconds, 0);
  EXPECT_LE(stats.stale_age_max_seconds, 0.017);
}

TEST_F(GuestMachineTest, LazySingleWaitsASecond) {
  MakeAttached(Policy::kLazySingle);
  const Iova iova = MapPages(0);
  ASSERT_TRUE(machine_->Unmap(domain_, iova, kPageSize, 0).ok());
  Sent();
  AdvanceTo(1023 * kMs);
  EXPECT_THAT(Sent(), ElementsAre());
  AdvanceTo(1024 * kMs);
  EXPECT_THAT(Sent(), ElementsAre("dsi2"));
}

// Intel's driver before 4.14 under CM: 250 entries, each its own page-selective submission.
TEST_F(GuestMachineTest, LazyPsiFlushesAt250OnePsiEach) {
  MakeAttached(Policy::kLazyPsi);
  for (uint64_t i = 0; i < 251; ++i) {
    const Iova iova = MapPages(i);
    ASSERT_TRUE(machine_->Unmap(domain_, iova, kPageSize, 0).ok());
  }
  const GuestStats stats = machine_->stats();
  EXPECT_EQ(stats.flushes_full, 1u);
  EXPECT_EQ(stats.descriptors_iotlb_page, 251u + 250u);
  EXPECT_EQ(stats.descriptors_iotlb_domain, 0u);
  EXPECT_EQ(stats.flush_queue_entries, 1u);
}

// The ranges are merged: 200 single pages that lie side by side are few aligned pieces, one
// doorbell.
TEST_F(GuestMachineTest, LazyPsiBatchedSendsFewPiecesInOneSubmission) {
  MakeAttached(Policy::kLazyPsiBatched);
  std::vector<Iova> iovas;
  for (uint64_t i = 0; i < 200; ++i) iovas.push_back(MapPages(i));
  for (const Iova iova : iovas) ASSERT_TRUE(machine_->Unmap(domain_, iova, kPageSize, 0).ok());
  sinks_[0]->Clear();
  ASSERT_TRUE(machine_->FlushDeferred().ok());
  ASSERT_EQ(sinks_[0]->doorbells.size(), 1u);
  EXPECT_LE(sinks_[0]->Sent().size(), 16u);
  uint64_t pages = 0;
  for (const vtd::Descriptor& d : sinks_[0]->Sent()) {
    const auto& iotlb = std::get<IotlbInvalidate>(d);
    EXPECT_EQ(iotlb.granularity, Granularity::kPageOrDevice);
    pages += iotlb.range().size_bytes() / kPageSize;
  }
  EXPECT_EQ(pages, 200u);  // exactly these, no neighbour
  EXPECT_EQ(machine_->stats().stale_pages, 0u);
}

// An IOVA is reusable only once the flush that covers it is done.
TEST_F(GuestMachineTest, IovaIsNotReusedBeforeItsFlush) {
  MakeAttached(Policy::kLazy);
  const Iova first = MapPages(0);
  ASSERT_TRUE(machine_->Unmap(domain_, first, kPageSize, 0).ok());
  for (uint64_t i = 1; i < 200; ++i) EXPECT_NE(MapPages(i), first);
  ASSERT_TRUE(machine_->FlushDeferred().ok());
  EXPECT_EQ(MapPages(201), first);  // the magazine is last in, first out
}

TEST_F(GuestMachineTest, ReuseOfAStalePageIsCounted) {
  MakeAttached(Policy::kLazy);
  const Iova iova = MapPages(5);
  ASSERT_TRUE(machine_->Unmap(domain_, iova, kPageSize, 0).ok());
  MapPages(5);
  EXPECT_EQ(machine_->stats().reused_while_stale_pages, 1u);
  ASSERT_TRUE(machine_->FlushDeferred().ok());
  MapPages(5);
  EXPECT_EQ(machine_->stats().reused_while_stale_pages, 1u);
}

// The hypervisor does not answer: the unmap is not complete and its IOVA stays taken until it is.
TEST_F(GuestMachineTest, UnansweredUnmapKeepsItsIova) {
  MakeAttached(Policy::kStrict);
  const Iova iova = MapPages(0);
  sinks_[0]->await_status = absl::DeadlineExceededError("no answer");
  const auto outcome = machine_->Unmap(domain_, iova, kPageSize, 0);
  EXPECT_EQ(outcome.status().code(), absl::StatusCode::kDeadlineExceeded);
  const uint64_t allocated = machine_->stats().iova_allocated_bytes;
  EXPECT_EQ(allocated, kPageSize);
  sinks_[0]->await_status = absl::OkStatus();
  const Iova other = MapPages(1);
  EXPECT_NE(other, iova);
  EXPECT_EQ(machine_->stats().iova_allocated_bytes, kPageSize);
}

// The oracle goes by what is claimed.
TEST_F(GuestMachineTest, NothingIsClaimedOfAMapThatMayBeUndoneWhileItsInvalidationIsOnItsWay) {
  GuestConfig config;
  config.ram_bytes = uint64_t{256} << 20;
  const auto ram = *SharedMemory::Create(config.ram_bytes);
  const WallClock clock;
  RecordingSink sink;
  const auto machine = *GuestMachine::Create(config, *ram, clock, {&sink});
  const uint32_t domain = *machine->CreateDomain(64);
  ASSERT_TRUE(machine->AttachDevice(domain, kNvme, 0, false).ok());
  const Segment segment{GuestPhys(300 * kPageSize), kPageSize};
  const auto iova = machine->Map(domain, {&segment, 1}, kReadWrite, 0);
  ASSERT_TRUE(iova.ok());
  EXPECT_EQ(sink.doorbells.back().claim, TableClaim::kNone);
  ASSERT_TRUE(machine->Unmap(domain, *iova, kPageSize, 0).ok());
  EXPECT_EQ(sink.doorbells.back().claim, TableClaim::kSettled);
  sink.await_status = absl::DeadlineExceededError("no answer");
  EXPECT_FALSE(machine->Map(domain, {&segment, 1}, kReadWrite, 0).ok());
  EXPECT_EQ(sink.doorbells.back().claim, TableClaim::kNone);
}

// What was not sent because an earlier invalidation is outstanding is never taken for done.
TEST_F(GuestMachineTest, NoTableIsChangedWhileAnInvalidationIsOutstanding) {
  GuestConfig config;
  config.iommu_caching_mode = {true, true};
  Make(config);
  domain_ = *machine_->CreateDomain(64);
  ASSERT_TRUE(machine_->AttachDevice(domain_, kNvme, 0, false).ok());
  ASSERT_TRUE(machine_->AttachDevice(domain_, kNic, 1, false).ok());
  const Iova first = MapPages(0);
  const Iova second = MapPages(1);
  for (size_t i : {0, 1}) sinks_[i]->Clear();
  sinks_[0]->await_status = absl::DeadlineExceededError("no answer");
  EXPECT_TRUE(absl::IsDeadlineExceeded(machine_->Unmap(domain_, first, kPageSize, 0).status()));
  EXPECT_THAT(Sent(1), IsEmpty());  // it was never this unit's turn

  for (int i = 0; i < 2; ++i) {
    const auto unmapped = machine_->Unmap(domain_, second, kPageSize, 0);
    EXPECT_THAT(std::string(unmapped.status().message()), HasSubstr("nothing was done"));
    const Segment segment{GuestPhys(300 * kPageSize), kPageSize};
    const auto mapped = machine_->Map(domain_, {&segment, 1}, kReadWrite, 0);
    EXPECT_THAT(std::string(mapped.status().message()), HasSubstr("nothing was done"));
  }
  EXPECT_TRUE(machine_->Holds(domain_, second));
  EXPECT_FALSE(machine_->Holds(domain_, first));
  EXPECT_THAT(Sent(0), ElementsAre("psi2 am0"));
  EXPECT_EQ(machine_->stats().iova_allocated_bytes, 2 * kPageSize);

  sinks_[0]->await_status = absl::OkStatus();
  EXPECT_EQ(machine_->NextTimerNs(), clock_.NowNs());
  ASSERT_TRUE(machine_->RunTimers().ok());
  EXPECT_THAT(Sent(0), ElementsAre("psi2 am0"));
  EXPECT_THAT(Sent(1), ElementsAre("psi2 am0"));
  EXPECT_EQ(machine_->NextTimerNs(), std::nullopt);
  ASSERT_TRUE(machine_->Unmap(domain_, second, kPageSize, 0).ok());
  EXPECT_EQ(machine_->stats().iova_allocated_bytes, 0u);
}

// Its buffer waits, too: a device may reach it until then.
TEST_F(GuestMachineTest, AMapThatIsAbandonedKeepsItsIovaUntilItIsInvalidated) {
  GuestConfig config;
  config.map_sync = MapSync::kMerged;
  Make(config);
  domain_ = *machine_->CreateDomain(64);
  ASSERT_TRUE(machine_->AttachDevice(domain_, kNvme, 0, false).ok());
  const GuestPhys buffer = *machine_->AllocateBuffer(kPageSize);
  const Segment segment{buffer, kPageSize};
  const Iova iova = *machine_->Map(domain_, {&segment, 1}, kReadWrite, 0);
  sinks_[0]->await_status = absl::DeadlineExceededError("no answer");
  EXPECT_FALSE(machine_->SyncMaps().ok());
  ASSERT_TRUE(machine_->Abandon(domain_, iova).ok());
  EXPECT_TRUE(absl::IsInvalidArgument(machine_->Abandon(domain_, iova)));
  machine_->FreeBuffer(buffer, kPageSize);
  EXPECT_NE(*machine_->AllocateBuffer(kPageSize), buffer);
  EXPECT_EQ(machine_->stats().iova_allocated_bytes, kPageSize);
  EXPECT_EQ(machine_->stats().maps, 0u);
  sinks_[0]->await_status = absl::OkStatus();
  sinks_[0]->Clear();
  ASSERT_TRUE(machine_->FlushDeferred().ok());
  EXPECT_THAT(Sent(), Contains(HasSubstr("psi2 am0")));
  EXPECT_EQ(machine_->stats().iova_allocated_bytes, 0u);
  EXPECT_EQ(*machine_->AllocateBuffer(kPageSize), buffer);
}

TEST_F(GuestMachineTest, MergedMapsWaitForOneSubmission) {
  GuestConfig config;
  config.map_sync = MapSync::kMerged;
  Make(config);
  domain_ = *machine_->CreateDomain(64);
  ASSERT_TRUE(machine_->AttachDevice(domain_, kNvme, 0, false).ok());
  sinks_[0]->Clear();
  for (uint64_t i = 0; i < 8; ++i) MapPages(i);
  EXPECT_TRUE(sinks_[0]->doorbells.empty());
  ASSERT_TRUE(machine_->SyncMaps().ok());
  ASSERT_EQ(sinks_[0]->doorbells.size(), 1u);
  EXPECT_THAT(Sent(), ElementsAre("psi2 am3"));
}

TEST_F(GuestMachineTest, DeviceTlbIsInvalidatedAtUnmapNotAtMap) {
  Make(GuestConfig{});
  domain_ = *machine_->CreateDomain(64);
  ASSERT_TRUE(machine_->AttachDevice(domain_, kNvme, 0, true).ok());
  Sent();
  const Iova iova = MapPages(0);
  EXPECT_THAT(Sent(), ElementsAre("psi2 am0"));
  ASSERT_TRUE(machine_->Unmap(domain_, iova, kPageSize, 0).ok());
  EXPECT_THAT(Sent(), ElementsAre("psi2 am0", "devtlb"));
}

// One queue, one lock: a second vCPU that submits at the same moment waits for the first.
TEST_F(GuestMachineTest, TheQueueLockSerialisesVcpus) {
  GuestConfig config;
  config.vcpus = 2;
  Make(config);
  domain_ = *machine_->CreateDomain(64);
  ASSERT_TRUE(machine_->AttachDevice(domain_, kNvme, 0, false).ok());
  AdvanceTo(kMs);
  machine_->ResetStats();
  const Segment a{GuestPhys(0x400000), kPageSize};
  const Segment b{GuestPhys(0x500000), kPageSize};
  ASSERT_TRUE(machine_->Map(domain_, {&a, 1}, kReadWrite, 0).ok());
  EXPECT_EQ(machine_->stats().modelled.wait_ns, 0);
  const double alone = machine_->last_op_modelled_ns();
  ASSERT_TRUE(machine_->Map(domain_, {&b, 1}, kReadWrite, 1).ok());
  const CostModel model;
  EXPECT_DOUBLE_EQ(machine_->stats().modelled.wait_ns, model.submission_ns + model.queue_build_ns);
  EXPECT_GT(machine_->last_op_modelled_ns(), alone);
}

TEST_F(GuestMachineTest, RefusesWhatADeviceMustNotReach) {
  MakeAttached(Policy::kStrict);
  const Segment tables{GuestPhys((uint64_t{256} << 20) - kPageSize), kPageSize};
  EXPECT_FALSE(machine_->Map(domain_, {&tables, 1}, kReadWrite, 0).ok());
  const Segment odd{GuestPhys(0x400001), kPageSize};
  EXPECT_FALSE(machine_->Map(domain_, {&odd, 1}, kReadWrite, 0).ok());
  EXPECT_EQ(machine_->Unmap(domain_, Iova(0x1000), kPageSize, 0).status().code(),
            absl::StatusCode::kNotFound);
  EXPECT_EQ(machine_->Unmap(99, Iova(0x1000), kPageSize, 0).status().code(),
            absl::StatusCode::kNotFound);
}

TEST_F(GuestMachineTest, DevicesOfOneDomainShareOneTag) {
  MakeAttached(Policy::kStrict);
  ASSERT_TRUE(machine_->AttachDevice(domain_, kNic, 0, false).ok());
  Sent();
  MapPages(0);
  EXPECT_THAT(Sent(), ElementsAre("psi2 am0"));
}

// real/README 7: DMA-FQ written to a group's type under caching mode gives map-time PSI and lazy
// DSI, for that group alone.
TEST_F(GuestMachineTest, ADomainMadeLazyDefersThoughTheOthersStayStrict) {
  MakeAttached(Policy::kStrict);
  const uint32_t other = *machine_->CreateDomain(64);
  ASSERT_TRUE(machine_->AttachDevice(other, kNic, 0, false).ok());
  ASSERT_TRUE(machine_->MakeLazy(domain_).ok());
  Sent();
  const Iova iova = MapPages(0);
  EXPECT_TRUE(machine_->Unmap(domain_, iova, kPageSize, 0)->deferred);
  EXPECT_THAT(Sent(), ElementsAre("psi2 am0"));
  ASSERT_TRUE(machine_->FlushDeferred().ok());
  EXPECT_THAT(Sent(), ElementsAre("dsi2"));
  const Segment page{GuestPhys(0x400000), kPageSize};
  const Iova strict = *machine_->Map(other, {&page, 1}, kReadWrite, 0);
  EXPECT_FALSE(machine_->Unmap(other, strict, kPageSize, 0)->deferred);
}

TEST_F(GuestMachineTest, ResidentSetIsFlushedOnce) {
  MakeAttached(Policy::kStrict);
  ASSERT_TRUE(machine_->MapResident(domain_, Iova(uint64_t{1} << 36), 1000).ok());
  EXPECT_THAT(Sent(), ElementsAre("dsi2"));
  EXPECT_EQ(machine_->stats().maps, 0u);
}

}  // namespace
}  // namespace viommu
