#include "iommu_core/load/trace_parser.h"

#include <algorithm>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "iommu_core/load/line_reader.h"
#include "iommu_core/load/trace_line.h"
#include "tests/iommu_core/load/temp_file.h"

namespace viommu {
namespace {

using testing::HasSubstr;
using Kind = LoadOp::Kind;

std::string Line(const std::string& task, int cpu, int us, const std::string& event) {
  char time[32];
  snprintf(time, sizeof(time), "%d.%06d", 1 + us / 1000000, us % 1000000);
  return absl::StrCat("   ", task, "  [00", cpu, "] .....  ", time, ": ", event, "\n");
}
std::string MapText(uint64_t iova, uint64_t pages) {
  char text[200];
  snprintf(text, sizeof(text), "map: IOMMU: iova=0x%016lx - 0x%016lx paddr=0x%016lx size=%lu", iova,
           iova + pages * 4096, iova + 0x10000000, pages * 4096);
  return text;
}
std::string UnmapText(uint64_t iova, uint64_t pages) {
  char text[200];
  snprintf(text, sizeof(text), "unmap: IOMMU: iova=0x%016lx - 0x%016lx size=%lu unmapped_size=%lu",
           iova, iova + pages * 4096, pages * 4096, pages * 4096);
  return text;
}
std::string KmapText(const char* dom, uint64_t iova, uint64_t pages, int prot) {
  char text[200];
  snprintf(text, sizeof(text),
           "kmap: (__iommu_map+0x5/0x2a0) dom=%s iova=0x%lx paddr=0x%lx "
           "size=0x%lx prot=0x%x",
           dom, iova, iova + 0x10000000, pages * 4096, prot);
  return text;
}

absl::StatusOr<Trace> Read(const std::string& text, TraceOptions options = {}) {
  TempFile file(text);
  return ReadTrace(file.path(), options);
}

TEST(TraceParser, WithoutKprobesOneDomainOneDevice) {
  const auto trace =
      Read(Line("init-1", 0, 0, "attach_device_to_domain: IOMMU: device=0000:01:00.1") +
           Line("fio-2", 1, 100, MapText(0x1000, 1)) +
           // Before v5.17: no end.
           Line("fio-2", 1, 200, "map: IOMMU: iova=0x3000 paddr=0x9000 size=8192") +
           Line("fio-2", 0, 300, UnmapText(0x1000, 1)));
  ASSERT_TRUE(trace.ok()) << trace.status();
  ASSERT_EQ(trace->ops.size(), 4u);
  EXPECT_EQ(trace->ops[0].kind, Kind::kAttach);
  EXPECT_EQ(trace->ops[0].source_id, MakeSourceId(1, 0, 1));
  EXPECT_EQ(trace->ops[2].iova, Iova(0x3000));
  EXPECT_EQ(trace->ops[2].guest_pa, GuestPhys(0x9000));
  EXPECT_EQ(trace->ops[2].size_bytes, 8192u);
  EXPECT_EQ(trace->ops[3].kind, Kind::kUnmap);
  EXPECT_EQ(trace->ops[3].time_ns, 1'000'300'000u);
  EXPECT_EQ(trace->info.cpus, 2u);
  EXPECT_EQ(trace->info.domains, 1u);
  EXPECT_EQ(trace->info.guest_pa_end, 0x10002000u);
  EXPECT_FALSE(trace->info.names_domains);
  EXPECT_FALSE(trace->info.caching_mode.has_value());
}

TEST(TraceParser, KprobesNameDomainsAndAccess) {
  const auto trace =
      Read(Line("init-1", 0, 0,
                "kattach: (intel_iommu_attach_device+0x0/0x8c0) dom=0xffaa "
                "dev=\"0000:00:03.0\"") +
           Line("a-2", 0, 100, KmapText("0xffaa", 0x1000, 1, 5)) +
           Line("b-3", 1, 101, KmapText("0xffbb", 0x1000, 1, 6)) +
           // An interrupt maps in the middle of a task's map.
           Line("b-3", 1, 102, KmapText("0xffcc", 0x7000, 1, 7)) +
           Line("b-3", 1, 103, MapText(0x7000, 1)) + Line("b-3", 1, 104, MapText(0x1000, 1)) +
           Line("a-2", 0, 105, MapText(0x1000, 1)) +
           // Freed and handed out again: another domain.
           Line("init-1", 0, 200, "kdomfree: (intel_iommu_domain_free+0x0/0x30) dom=0xffaa") +
           Line("a-2", 0, 300, KmapText("0xffaa", 0x2000, 1, 7)) +
           Line("a-2", 0, 301, MapText(0x2000, 1)));
  ASSERT_TRUE(trace.ok()) << trace.status();
  std::vector<std::pair<Kind, uint32_t>> got;
  for (const LoadOp& op : trace->ops) got.emplace_back(op.kind, op.domain);
  const std::vector<std::pair<Kind, uint32_t>> want = {{Kind::kAttach, 0},     {Kind::kMap, 1},
                                                       {Kind::kMap, 2},        {Kind::kMap, 0},
                                                       {Kind::kDomainFree, 0}, {Kind::kMap, 3}};
  EXPECT_EQ(got, want);
  EXPECT_EQ(trace->ops[1].access, kReadWrite);
  EXPECT_EQ(trace->ops[2].access, kWriteOnly);
  EXPECT_EQ(trace->ops[3].access, kReadOnly);
  EXPECT_EQ(trace->info.domains, 4u);
}

TEST(TraceParser, ListsByTime) {
  std::string text;
  // CPU 0: three pieces; CPU 1 maps between them, adjoining by chance.
  text += Line("a-1", 0, 0, MapText(0x1000, 1));
  text += Line("b-2", 1, 3, MapText(0x2000, 1));
  text += Line("a-1", 0, 5, MapText(0x2000, 2));
  text += Line("a-1", 0, 10, MapText(0x4000, 1));
  // 12 us later: another list. Then a gap in addresses: another list.
  text += Line("a-1", 0, 22, MapText(0x5000, 1));
  text += Line("a-1", 0, 24, MapText(0x9000, 1));
  const auto trace = Read(text);
  ASSERT_TRUE(trace.ok()) << trace.status();
  std::vector<bool> continues;
  for (const LoadOp& op : trace->ops) {
    if (op.kind == Kind::kMap) continues.push_back(op.list_continues);
  }
  EXPECT_EQ(continues, (std::vector<bool>{true, false, true, false, false, false}));
  EXPECT_EQ(trace->info.lists, 4u);
}

TEST(TraceParser, ListGapIsMeasuredFromTheCall) {
  // The second map takes 30 us but starts 2 us after the first.
  const auto trace = Read(
      Line("a-1", 0, 0, KmapText("0x1", 0x1000, 1, 7)) + Line("a-1", 0, 1, MapText(0x1000, 1)) +
      Line("a-1", 0, 3, KmapText("0x1", 0x2000, 1, 7)) + Line("a-1", 0, 33, MapText(0x2000, 1)) +
      // Same time, adjoining, but another domain.
      Line("a-1", 0, 34, KmapText("0x2", 0x3000, 1, 7)) + Line("a-1", 0, 35, MapText(0x3000, 1)));
  ASSERT_TRUE(trace.ok()) << trace.status();
  EXPECT_TRUE(trace->ops[0].list_continues);
  EXPECT_FALSE(trace->ops[1].list_continues);
}

TEST(TraceParser, UnmapTakesWhatTheDriverDid) {
  const auto trace = Read(Line("a-1", 0, 0, MapText(0x200000, 512)) +
                          Line("a-1", 0, 50,
                               "unmap: IOMMU: iova=0x0000000000200000 - "
                               "0x0000000000201000 size=4096 "
                               "unmapped_size=2097152") +
                          Line("a-1", 0, 60,
                               "unmap: IOMMU: iova=0x0000000000200000 - "
                               "0x0000000000201000 size=4096 "
                               "unmapped_size=0"));
  ASSERT_TRUE(trace.ok()) << trace.status();
  EXPECT_EQ(trace->ops.back().size_bytes, 2097152u);
  EXPECT_EQ(trace->info.unmaps, 1u);  // nothing was there the second time
}

TEST(TraceParser, DetachComesFromTheRemoval) {
  const auto trace = Read(
      Line("i-1", 0, 0, "kattach: (f+0x0/0x1) dom=0x1 dev=\"0000:00:03.0\"") +
      Line("i-1", 0, 1, KmapText("0x1", 0x1000, 1, 7)) + Line("i-1", 0, 2, MapText(0x1000, 1)) +
      Line("i-1", 0, 9, "remove_device_from_group: IOMMU: groupID=1 device=0000:00:03.0"));
  ASSERT_TRUE(trace.ok()) << trace.status();
  EXPECT_EQ(trace->ops.back().kind, Kind::kDetach);
  EXPECT_EQ(trace->ops.back().source_id, MakeSourceId(0, 3, 0));
}

TEST(TraceParser, FactsFromSubmissions) {
  const std::string map = Line("a-1", 0, 0, MapText(0xfff67000, 1));
  const std::string unmap = Line("a-1", 0, 50, UnmapText(0xfff67000, 1));
  // VT-d 6.5.2.3: granularity 3 in bits 5:4, AM and IH in the high word.
  const std::string psi =
      Line("a-1", 0, 60, "qi_submit: iotlb_inv dmar0: 0x300f2 0xfff67000 0x0 0x0");
  const std::string hinted =
      Line("a-1", 0, 60, "qi_submit: iotlb_inv dmar0: 0x300f2 0xfff67040 0x0 0x0");
  const std::string dsi = Line("a-1", 0, 60, "qi_submit: iotlb_inv dmar0: 0x300e2 0x0 0x0 0x0");
  auto trace = Read(map + psi + unmap + psi);
  ASSERT_TRUE(trace.ok()) << trace.status();
  EXPECT_EQ(trace->info.caching_mode, true);
  EXPECT_EQ(trace->info.hint, false);
  trace = Read(map + unmap + hinted);
  EXPECT_EQ(trace->info.caching_mode, false);
  EXPECT_EQ(trace->info.hint, true);
  trace = Read(map + unmap + dsi);
  EXPECT_EQ(trace->info.caching_mode, false);
  EXPECT_EQ(trace->info.hint, std::nullopt);
  // Device-selective context invalidation with domain id 0 at attach.
  trace =
      Read(Line("a-1", 0, 0, "qi_submit: cc_inv dmar0: 0x1800000031 0x0 0x0 0x0") + map + unmap);
  EXPECT_EQ(trace->info.caching_mode, true);
}

TEST(TraceParser, PerfCallChainsAndOtherEventsAreSkipped) {
  const auto trace = Read(Line("a-1", 0, 0, "iommu:" + MapText(0x1000, 1)) +
                          "\tffffffff8a0b1c2d __iommu_map+0x5 ([kernel.kallsyms])\n\n" +
                          Line("a-1", 0, 1, "sched:sched_switch: prev_comm=a ==> next_comm=b"));
  ASSERT_TRUE(trace.ok()) << trace.status();
  EXPECT_EQ(trace->info.maps, 1u);
  EXPECT_EQ(trace->info.skipped, 2u);
}

TEST(TraceParser, TraceCmdPreambleOnlyBeforeTheFirstEvent) {
  const std::string map = Line("fio-2", 1, 100, MapText(0x1000, 1));
  const std::string preamble = "version = 6\nCPU 0 is empty\ncpus=2\n";
  const auto trace = Read(preamble + map);
  ASSERT_TRUE(trace.ok()) << trace.status();
  EXPECT_EQ(trace->info.maps, 1u);
  EXPECT_FALSE(Read("cpus=two\n" + map).ok());
  EXPECT_FALSE(Read("CPU 0 is full\n" + map).ok());
  EXPECT_FALSE(Read(map + "cpus=2\n" + map).ok());
}

TEST(TraceParser, RefusesWithLineNumber) {
  const std::string good = Line("a-1", 0, 0, MapText(0x1000, 1));
  struct Case {
    std::string text;
    const char* want;
  };
  const std::vector<Case> cases = {
      {good + "garbage\n", ":2: damaged line"},
      {good + Line("a-1", 0, 1, "map: IOMMU: iova=0x1000 - 0x3000 paddr=0x0 size=4096"),
       ":2: damaged map or unmap line"},
      {good + Line("a-1", 0, 1, "map: IOMMU: iova=0x1000 paddr=0x0 size=40"), ":2: damaged"},
      {good + Line("a-1", 0, 1, "map: IOMMU: iova=0xfffffffffffff000 paddr=0x0 size=8192"),
       ":2: damaged"},
      {good + Line("a-1", 0, 1, "kmap: (x) dom=0x1 size=0x1000"), ":2: damaged kprobe line"},
      {good + good.substr(0, good.size() - 30), ":2: the last line is cut short"},
      {good + good.substr(0, 12), ":2: the last line is cut short"},
      {"GIF89a\n", ":1: this is no ftrace or perf text"},
      {"# tracer: nop\n#\n", "no iommu:map or iommu:unmap event"},
      {Line("a-1", 0, 0, "sched_switch: x"), "no iommu:map or iommu:unmap event"},
      {good + "CPU:1 [LOST 12 EVENTS]\n" + good, ":2: the kernel lost 12 events"},
      {"# entries-in-buffer/entries-written: 1/51   #P:2\n" + good,
       ":1: the kernel lost 50 events"},
      {"# entries-in-buffer/entries-written: 3/3   #P:2\n" + good,
       "truncated after line 2: the kernel wrote 3 entries, 1 are here"},
      {std::string(20000, 'x') + "\n", "a line of more than 16384 bytes"},
  };
  for (const Case& c : cases) {
    const auto trace = Read(c.text);
    ASSERT_FALSE(trace.ok()) << c.want;
    EXPECT_EQ(trace.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(trace.status().message()), HasSubstr(c.want));
  }
  EXPECT_EQ(ReadTrace("/nonexistent/trace").status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(ReadTrace("/").status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(TraceParser, LostEventsOnRequest) {
  const auto trace = Read(
      "# entries-in-buffer/entries-written: 1/51   #P:2\n" + Line("a-1", 0, 0, MapText(0x1000, 1)),
      {.allow_lost_events = true});
  ASSERT_TRUE(trace.ok()) << trace.status();
  EXPECT_EQ(trace->info.lost_events, 50u);
}

class RecordedTraceTest : public testing::TestWithParam<const char*> {
 protected:
  std::string path() const {
    return absl::StrCat(VIOMMU_TEST_DATA, "/linux/", GetParam(), "/trace.txt.gz");
  }
};

// The kernel says itself which map-time invalidations it made: a page-selective descriptor of the
// task that just mapped (intel_iommu_iotlb_sync_map). Lists found by time must be as many.
class CachingModeTraceTest : public RecordedTraceTest {};

TEST_P(CachingModeTraceTest, ListsAreTheKernelsMapTimeInvalidations) {
  const auto trace = ReadTrace(path());
  ASSERT_TRUE(trace.ok()) << trace.status();
  if (!trace->info.caching_mode.value_or(false)) GTEST_SKIP() << "no map-time invalidations";
  uint64_t invalidations = 0;
  std::map<int64_t, bool> mapped;
  auto reader = LineReader::Open(path());
  ASSERT_TRUE(reader.ok());
  absl::string_view text;
  while ((*reader)->Next(&text)) {
    const auto line = ParseTraceLine(text);
    if (!line) continue;
    if (line->event == "map") mapped[line->pid] = true;
    if (line->event == "unmap" || line->event == "kmap") mapped[line->pid] = false;
    if (line->event == "qi_submit" && absl::StrContains(line->text, "f2 0x") && mapped[line->pid]) {
      ++invalidations;
      mapped[line->pid] = false;
    }
  }
  ASSERT_GT(invalidations, 900u);
  // One map of each run is the identity map of a domain without a device: no invalidation.
  EXPECT_NEAR(static_cast<double>(trace->info.lists), static_cast<double>(invalidations + 1),
              0.002 * static_cast<double>(invalidations));
}

// Every unmap undoes something that is mapped in its domain, and no map covers what is mapped: only
// true when each line was given to the right domain, since NVMe and NIC use the same IOVAs.
TEST_P(RecordedTraceTest, DomainsAreConsistent) {
  const auto trace = ReadTrace(path());
  ASSERT_TRUE(trace.ok()) << trace.status();
  EXPECT_EQ(trace->info.lost_events, 0u);
  EXPECT_EQ(trace->info.devices, 8u);
  std::map<uint32_t, std::set<uint64_t>> mapped;
  uint64_t overlaps = 0;
  uint64_t holes = 0;
  for (const LoadOp& op : trace->ops) {
    for (uint64_t at = 0; at < op.size_bytes; at += kPageSize) {
      const uint64_t page = op.iova.value() + at;
      if (op.kind == Kind::kMap) overlaps += !mapped[op.domain].insert(page).second;
      if (op.kind == Kind::kUnmap) holes += mapped[op.domain].erase(page) == 0;
    }
  }
  EXPECT_EQ(overlaps, 0u);
  EXPECT_EQ(holes, 0u);
}

INSTANTIATE_TEST_SUITE_P(Shipped, CachingModeTraceTest,
                         testing::Values("6.1_cmon_strict1_r4k", "6.1_cmon_strict0_w128k",
                                         "6.1_cmon_strict0_huge"));
INSTANTIATE_TEST_SUITE_P(Shipped, RecordedTraceTest,
                         testing::Values("6.1_cmon_strict1_r4k", "6.1_cmon_strict0_w128k",
                                         "6.1_cmon_strict0_huge", "6.1_cmoff_strict0_w128k"));

TEST(TraceParser, TruncatedGzip) {
  const std::string whole =
      ReadAll(absl::StrCat(VIOMMU_TEST_DATA, "/linux/6.1_cmon_strict0_huge/trace.txt.gz"));
  ASSERT_GT(whole.size(), 10000u);
  TempFile cut(whole.substr(0, whole.size() / 2));
  const auto trace = ReadTrace(cut.path());
  ASSERT_FALSE(trace.ok());
  EXPECT_EQ(trace.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(trace.status().message()), HasSubstr("truncated gzip after line "));
  std::string broken = whole;
  broken[broken.size() / 2] = static_cast<char>(broken[broken.size() / 2] ^ 0x55);
  TempFile damaged(broken);
  EXPECT_FALSE(ReadTrace(damaged.path()).ok());
}

}  // namespace
}  // namespace viommu
