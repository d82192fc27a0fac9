#include "iommu_core/load/runner.h"

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "iommu_core/load/trace_source.h"
#include "iommu_core/load/workloads.h"

namespace viommu {
namespace {

using testing::ElementsAre;
using Kind = LoadOp::Kind;

// Writes down what it is told, with the time of the clock; one timer, re-armed by each Unmap.
class FakeMachine final : public GuestMachine {
 public:
  explicit FakeMachine(const Clock& clock) : clock_(clock) {}

  absl::StatusOr<uint32_t> CreateDomain(int) override { return next_domain_++; }
  absl::Status DeleteDomain(uint32_t domain) override {
    Log("delete ", domain);
    return absl::OkStatus();
  }
  absl::StatusOr<DomainId> AttachDevice(uint32_t domain, SourceId sid, uint32_t,
                                        bool device_tlb) override {
    Log("attach ", domain, " ", sid.value(), device_tlb ? " ats" : "");
    ++stats_.submissions;
    return DomainId(2);
  }
  absl::Status DetachDevice(SourceId sid) override {
    Log("detach ", sid.value());
    return absl::OkStatus();
  }
  absl::StatusOr<Iova> Map(uint32_t domain, std::span<const Segment> segments, Access,
                           uint32_t vcpu) override {
    Log("map ", domain, " n", segments.size(), " cpu", vcpu);
    if (!next_status.ok()) return Take();
    ++stats_.maps;
    next_iova_ += kPageSize;
    return Iova(next_iova_);
  }
  absl::Status MapAt(uint32_t domain, Iova iova, std::span<const Segment> segments, Access,
                     uint32_t) override {
    Log("mapat ", domain, " ", iova.value() >> 12, " n", segments.size());
    ++stats_.maps;
    return Take();
  }
  absl::StatusOr<UnmapOutcome> Unmap(uint32_t domain, Iova iova, uint64_t size_bytes,
                                     uint32_t) override {
    Log("unmap ", domain, " ", iova.value() >> 12, " n", size_bytes >> 12);
    if (!next_status.ok()) return Take();
    ++stats_.unmaps;
    if (!timer_ns_) timer_ns_ = clock_.NowNs() + 10'000;
    return UnmapOutcome{.deferred = true};
  }
  absl::Status MapResident(uint32_t domain, Iova first, uint64_t pages) override {
    Log("resident ", domain, " ", first.value() >> 12, " n", pages);
    stats_.submissions += 100;
    return resident_status;
  }
  absl::Status SyncMaps() override {
    ++map_syncs;
    return absl::OkStatus();
  }
  absl::Status Abandon(uint32_t, Iova) override { return absl::OkStatus(); }
  bool Holds(uint32_t, Iova) const override { return false; }
  void set_deadline(std::chrono::steady_clock::time_point) override {}
  absl::StatusOr<GuestPhys> AllocateBuffer(uint64_t) override { return GuestPhys(0); }
  void FreeBuffer(GuestPhys, uint64_t) override {}
  absl::StatusOr<uint64_t> FlushDeferred() override {
    Log("flush");
    ++stats_.submissions;
    stats_.stale_page_seconds += 0.5;
    stats_.stale_dma_hits += 3;
    return 0;
  }
  absl::Status MakeLazy(uint32_t domain) override {
    made_lazy.push_back(domain);
    return absl::OkStatus();
  }
  std::vector<uint32_t> made_lazy;
  absl::Status RunTimers() override {
    Log("timer");
    timer_ns_.reset();
    return absl::OkStatus();
  }
  std::optional<uint64_t> NextTimerNs() const override { return timer_ns_; }
  PolicyDecision policy() const override { return {}; }
  absl::Status SetPolicy(Policy, bool) override { return absl::OkStatus(); }
  void QueueTouch(uint32_t domain, Iova iova, bool) override {
    touches.push_back(absl::StrCat(domain, " ", iova.value() >> 12));
  }
  std::vector<vtd::FaultRecord> TakeFaults(bool*) override { return {}; }
  void RecordFault(uint32_t, const vtd::FaultRecord&) override {}
  void set_descriptor_hook(DescriptorHook) override {}
  GuestStats stats() const override { return stats_; }
  void ResetStats() override { stats_ = GuestStats(); }
  double last_op_modelled_ns() const override { return op_ns; }

  std::vector<std::string> log;
  std::vector<std::string> touches;
  absl::Status next_status;
  absl::Status resident_status;
  double op_ns = 500;
  int map_syncs = 0;

 private:
  template <typename... Args>
  void Log(const Args&... args) {
    log.push_back(absl::StrCat("@", clock_.NowNs(), " ", args...));
  }
  absl::Status Take() { return std::exchange(next_status, absl::OkStatus()); }

  const Clock& clock_;
  uint32_t next_domain_ = 100;
  uint64_t next_iova_ = 0;
  std::optional<uint64_t> timer_ns_;
  GuestStats stats_;
};

LoadOp Op(Kind kind, uint64_t time_ns, uint32_t domain, uint64_t page = 0, uint64_t pages = 0,
          uint16_t cpu = 0) {
  LoadOp op;
  op.kind = kind;
  op.time_ns = time_ns;
  op.domain = domain;
  op.iova = Iova(page << 12);
  op.size_bytes = pages << 12;
  op.cpu = cpu;
  op.source_id = SourceId(static_cast<uint16_t>(24 + domain));
  return op;
}
LoadOp Piece(LoadOp op) {
  op.list_continues = true;
  return op;
}

RunOptions ResidentOptions(uint64_t live_pages) {
  RunOptions options;
  options.live_pages = live_pages;
  return options;
}

class RunnerTest : public testing::Test {
 protected:
  absl::StatusOr<RunResult> Run(std::vector<LoadOp> ops, RunOptions options = {}) {
    TraceSource source(std::move(ops));
    return RunLoad(source, machine_, clock_, options);
  }
  VirtualClock clock_;
  FakeMachine machine_{clock_};
};

TEST_F(RunnerTest, TraceAtItsTimesListsAsOneCallTimersBetween) {
  const auto result = Run({
      Op(Kind::kAttach, 1000, 5), Piece(Op(Kind::kMap, 2000, 5, 16, 1)),
      Op(Kind::kMap, 2001, 5, 32, 1,
         1),  // another CPU in the middle of the list
      Piece(Op(Kind::kMap, 2002, 5, 17, 2)), Op(Kind::kMap, 2003, 5, 19, 1),
      Op(Kind::kUnmap, 3000, 5, 16, 4),
      Op(Kind::kMap, 20'000, 7, 1, 1),  // a domain without a device
      Op(Kind::kDetach, 21'000, 5), Op(Kind::kDomainFree, 22'000, 5),
      Op(Kind::kMap, 23'000, 5, 1, 1),  // the index again: a new domain
  });
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_THAT(machine_.log,
              ElementsAre("@1000 attach 100 29", "@2001 mapat 100 32 n1", "@2003 mapat 100 16 n3",
                          "@3000 unmap 100 16 n4", "@13000 timer", "@20000 mapat 101 1 n1",
                          "@21000 detach 29", "@22000 delete 100", "@23000 mapat 102 1 n1",
                          "@23000 flush"));
  EXPECT_THAT(machine_.touches, ElementsAre("100 16"));
  EXPECT_EQ(result->maps, 4u);
  EXPECT_EQ(result->unmaps, 1u);
  EXPECT_EQ(result->exits, 1u);  // the attach; not the closing flush
  EXPECT_DOUBLE_EQ(result->stale_page_seconds,
                   0.5);  // aged by the closing flush
  EXPECT_EQ(result->stale_dma_hits, 3u);
  EXPECT_DOUBLE_EQ(result->virtual_seconds, 22e-6);
  EXPECT_EQ(result->failed_ops, 0u);
}

TEST_F(RunnerTest, DomainFreeDetachesWhatTheTraceDidNot) {
  ASSERT_TRUE(Run({Op(Kind::kAttach, 1, 0), Op(Kind::kDomainFree, 2, 0)}).ok());
  EXPECT_THAT(machine_.log,
              ElementsAre("@1 attach 100 24", "@2 detach 24", "@2 delete 100", "@2 flush"));
}

TEST_F(RunnerTest, ResidentSetAfterTheBusiestDomainsAttachAndNotCounted) {
  // Domain 1 is busiest and touches [4 GiB, 4 GiB + 2 MiB): the set goes above.
  const uint64_t high = uint64_t{1} << 20;
  const auto result =
      Run({Op(Kind::kAttach, 1, 0), Op(Kind::kMap, 2, 0, 1, 1), Op(Kind::kAttach, 3, 1),
           Op(Kind::kMap, 4, 1, high, 1), Op(Kind::kMap, 5, 1, 2, 1)},
          ResidentOptions(700));
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(machine_.log[3], absl::StrCat("@3 resident 101 ", high + 512, " n700"));
  EXPECT_EQ(result->exits, 2u);  // two attaches
  EXPECT_EQ(result->maps, 3u);
}

TEST_F(RunnerTest, NoRunWithoutItsResidentSet) {
  machine_.resident_status = absl::ResourceExhaustedError("no frames");
  const auto result =
      Run({Op(Kind::kAttach, 1, 0), Op(Kind::kMap, 2, 0, 1, 1)}, ResidentOptions(7));
  EXPECT_EQ(result.status().code(), absl::StatusCode::kResourceExhausted);
  const auto too_large = Run({Op(Kind::kAttach, 1, 0), Op(Kind::kMap, 2, 0, 1, 1)},
                             ResidentOptions(uint64_t{1} << 27));
  EXPECT_EQ(too_large.status().code(), absl::StatusCode::kResourceExhausted);
}

TEST_F(RunnerTest, ErrorsAreCountedOrEndTheRun) {
  machine_.next_status = absl::NotFoundError("not mapped");
  auto result = Run({Op(Kind::kUnmap, 1, 0, 1, 1), Op(Kind::kUnmap, 2, 0, 2, 1)});
  ASSERT_TRUE(result.ok());
  EXPECT_EQ(result->failed_ops, 1u);
  EXPECT_THAT(machine_.touches,
              ElementsAre("100 2"));  // a failed unmap leaves nothing to touch
  for (const absl::Status& fatal :
       {absl::UnavailableError("gone"), absl::DeadlineExceededError("slow")}) {
    machine_.next_status = fatal;
    EXPECT_EQ(Run({Op(Kind::kUnmap, 3, 0, 1, 1)}).status(), fatal);
  }
}

TEST_F(RunnerTest, CancelAndProgress) {
  std::vector<LoadOp> ops(5000, Op(Kind::kMap, 1, 0, 1, 1));
  uint64_t last = 0;
  RunOptions options;
  options.progress = [&](uint64_t done, uint64_t total) {
    EXPECT_GT(done, last);
    EXPECT_EQ(total, 5000u);
    last = done;
  };
  ASSERT_TRUE(Run(ops, options).ok());
  EXPECT_EQ(last, 5000u);
  options.progress = nullptr;
  options.cancelled = [] { return true; };
  EXPECT_EQ(Run(ops, options).status().code(), absl::StatusCode::kCancelled);
}

TEST_F(RunnerTest, ClosedLoopWaitsForItsVcpu) {
  machine_.op_ns = 2000;
  auto source = MakeWorkload("nvme-4k-rr", {.ops = 50});
  ASSERT_TRUE(source.ok());
  const auto result = RunLoad(**source, machine_, clock_, {});
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->unmaps, 50u);
  EXPECT_EQ(result->failed_ops, 0u);
  // Some 50 maps and 50 unmaps of 2 us each on one vCPU, one after the other.
  EXPECT_NEAR(result->virtual_seconds, 100 * 2e-6 + 32e-6, 70e-6);
  uint64_t last = 0;
  for (const std::string& line : machine_.log) {
    if (line.find("map") == std::string::npos) continue;
    const uint64_t at = std::stoull(line.substr(1));
    if (last != 0) {
      EXPECT_GE(at, last + 2000) << line;
    }
    last = at;
  }
}

TEST_F(RunnerTest, MergedMapsEndWithTheirBurst) {
  ASSERT_TRUE(
      Run({Op(Kind::kMap, 5, 0, 1, 1), Op(Kind::kMap, 6, 0, 2, 1), Op(Kind::kUnmap, 7, 0, 1, 1),
           Op(Kind::kMap, 20'000, 0, 3, 1), Op(Kind::kMap, 20'001, 0, 4, 1)})
          .ok());
  EXPECT_EQ(machine_.map_syncs, 2);  // 12 us after the first map, and at the end
}

TEST_F(RunnerTest, FailedMapTakesItsUnmapWithIt) {
  machine_.next_status = absl::ResourceExhaustedError("full");
  auto source = MakeWorkload("rr", {.ops = 5});
  ASSERT_TRUE(source.ok());
  const auto result = RunLoad(**source, machine_, clock_, {});
  ASSERT_TRUE(result.ok());
  EXPECT_EQ(result->failed_ops, 2u);
}

TEST(TraceSource, ResidentPlaceAvoidsWhatIsTouched) {
  std::vector<LoadOp> ops;
  const uint64_t chunk = 512;  // 2 MiB in pages
  const uint64_t four_gib = uint64_t{1} << 20;
  for (uint64_t c : {0, 2, 5}) ops.push_back(Op(Kind::kMap, 1, 3, four_gib + c * chunk, 1));
  ops.push_back(Op(Kind::kMap, 1, 0, 7, 1));
  const TraceSource source(ops);
  EXPECT_EQ(source.busiest_domain(), 3u);
  const Iova end(uint64_t{1} << 39);
  const auto place = [&](uint64_t chunks) {
    return source.ResidentPlace(chunks * chunk * kPageSize, end)->value() / kPageSize / chunk -
           four_gib / chunk;
  };
  EXPECT_EQ(place(1), 1u);
  EXPECT_EQ(place(2), 3u);
  EXPECT_EQ(place(3), 6u);
  // No room above 4 GiB: below, but not at page 0.
  EXPECT_EQ(source.ResidentPlace(chunk * kPageSize, Iova((four_gib + chunk) * kPageSize)),
            Iova(chunk * kPageSize));
  EXPECT_EQ(source.ResidentPlace(uint64_t{1} << 40, end), std::nullopt);
}

}  // namespace
}  // namespace viommu
