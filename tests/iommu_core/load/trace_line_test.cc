#include "iommu_core/load/trace_line.h"

#include "gtest/gtest.h"

namespace viommu {
namespace {

// Linux trace_output.c, trace_print_context: "%16s-%-7d " and with record-tgid "(%7d) ", then
// "[%03d] ", flags, time.
struct LineCase {
  const char* line;
  const char* comm;
  int64_t pid;
  uint32_t cpu;
  uint64_t time_ns;
};

class TraceLineTest : public testing::TestWithParam<LineCase> {};

TEST_P(TraceLineTest, TakesApart) {
  const LineCase& c = GetParam();
  const auto line = ParseTraceLine(c.line);
  ASSERT_TRUE(line.has_value()) << c.line;
  EXPECT_EQ(line->comm, c.comm);
  EXPECT_EQ(line->pid, c.pid);
  EXPECT_EQ(line->cpu, c.cpu);
  EXPECT_EQ(line->time_ns, c.time_ns);
  EXPECT_EQ(line->event, "map");
  EXPECT_EQ(line->text, "IOMMU: iova=0x1000 paddr=0x2000 size=4096");
}

#define MAP_TEXT "map: IOMMU: iova=0x1000 paddr=0x2000 size=4096"

INSTANTIATE_TEST_SUITE_P(
    Variants, TraceLineTest,
    testing::Values(
        // Five flags (since v5.14), four before, none with irq-info off, and a lazy-preempt sixth.
        LineCase{"            init-1       [001] d..3.     1.536000: " MAP_TEXT, "init", 1, 1,
                 1'536'000'000},
        LineCase{"            init-1       [001] d..3     1.536000: " MAP_TEXT, "init", 1, 1,
                 1'536'000'000},
        LineCase{"            init-1       [001]     1.536000: " MAP_TEXT, "init", 1, 1,
                 1'536'000'000},
        LineCase{"            init-1       [001] ..Zff     1.000001: " MAP_TEXT, "init", 1, 1,
                 1'000'001'000},
        // comm with dashes, slashes, colons, parentheses, spaces, brackets, digits.
        LineCase{"    kworker/u4:2-32      [000] d..2.   107.451977: " MAP_TEXT, "kworker/u4:2", 32,
                 0, 107'451'977'000},
        LineCase{"   (udev-worker)-532     [010] .....     4.878076: " MAP_TEXT, "(udev-worker)",
                 532, 10, 4'878'076'000},
        LineCase{"  tokio runtime w-99     [002] .....     4.878076: " MAP_TEXT, "tokio runtime w",
                 99, 2, 4'878'076'000},
        LineCase{"   my [001] 2.0: x-99    [002] .....     4.878076: " MAP_TEXT, "my [001] 2.0: x",
                 99, 2, 4'878'076'000},
        LineCase{"          <idle>-0       [000] d..2.     0.012000: " MAP_TEXT, "<idle>", 0, 0,
                 12'000'000},
        LineCase{"    a-b-c (deleted)-7    [003] .....     1.000000: " MAP_TEXT, "a-b-c (deleted)",
                 7, 3, 1'000'000'000},
        // With record-tgid; unknown tgids print as dashes.
        LineCase{"             fio-231     (    230) [000] .....    "
                 "30.738045: " MAP_TEXT,
                 "fio", 231, 0, 30'738'045'000},
        LineCase{"             fio-231     (-------) [000] .....    "
                 "30.738045: " MAP_TEXT,
                 "fio", 231, 0, 30'738'045'000},
        // perf script: no dash, subsystem before the event, nine digits with --ns, pid/tid.
        LineCase{"             fio   231 [000]    30.738045:       iommu:" MAP_TEXT, "fio", 231, 0,
                 30'738'045'000},
        LineCase{"   my prog 1   230/231 [000]    30.738045123:  iommu:" MAP_TEXT, "my prog 1", 230,
                 0, 30'738'045'123},
        LineCase{"             fio-231   [000] d..1.    30.738045: iommu:" MAP_TEXT "\r", "fio",
                 231, 0, 30'738'045'000}));

TEST(TraceLine, RefusesOtherText) {
  for (const char* line :
       {"", "hello", "#  TASK-PID", "init-1 [001] 1.5", "init-1 [001] d..3. 1.5: no event here",
        "init [001] d..3. 1.5: map: x", "[001] 1.5: map: x", "init-1 [0x1] 1.5: map: x",
        "init-1 [001] d..3. 15: map: x", "init-1 [001] 99999999999999999999.5: map: x"}) {
    EXPECT_FALSE(ParseTraceLine(line).has_value()) << line;
  }
}

TEST(TraceLine, NumberField) {
  const char* unmap = "IOMMU: iova=0x10 - 0x1010 size=4096 unmapped_size=8192";
  EXPECT_EQ(NumberField(unmap, "iova="), 0x10u);
  EXPECT_EQ(NumberField(unmap, "size="), 4096u);
  EXPECT_EQ(NumberField(unmap, "unmapped_size="), 8192u);
  EXPECT_EQ(RangeEnd(unmap), 0x1010u);
  EXPECT_EQ(NumberField(unmap, "dom="), std::nullopt);
  EXPECT_EQ(NumberField("dom=0xff2390edc9cecf50 dev=\"x\"", "dom="), 0xff2390edc9cecf50u);
  EXPECT_EQ(NumberField("size=", "size="), std::nullopt);
  EXPECT_EQ(NumberField("size=4k", "size="), std::nullopt);
  EXPECT_EQ(NumberField("iova=0x1ffffffffffffffff", "iova="), std::nullopt);
  EXPECT_EQ(RangeEnd("IOMMU: iova=0x10 paddr=0x0 size=1"), std::nullopt);
}

TEST(TraceLine, Bdf) {
  EXPECT_EQ(ParseBdf("0000:00:03.0"), 0x18);
  EXPECT_EQ(ParseBdf("\"0000:ff:1f.7\""), 0xffff);
  EXPECT_EQ(ParseBdf("00:03.0"), 0x18);
  EXPECT_EQ(ParseBdf("0001:00:03.0"), std::nullopt);  // another PCI segment
  EXPECT_EQ(ParseBdf("0000:00:20.0"), std::nullopt);
  EXPECT_EQ(ParseBdf("0000:00:03.8"), std::nullopt);
  EXPECT_EQ(ParseBdf("usb1"), std::nullopt);
}

}  // namespace
}  // namespace viommu
