#include "guest_svc/client/calibration.h"

#include <unistd.h>

#include <cstdio>
#include <fstream>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "guest_svc/client/workload_client.h"

namespace viommu::client {
namespace {

using testing::HasSubstr;

std::string Write(const std::string& name, const std::string& text) {
  const std::string path = testing::TempDir() + "viommu_calibration_" + name;
  std::ofstream(path) << text;
  return path;
}

// As the kernel's tool prints it.
std::string Benchmark(const char* map, const char* unmap, int threads = 1, int granule = 1) {
  return "dma mapping benchmark: threads:" + std::to_string(threads) +
         " seconds:20 node:-1 dir:BIDIRECTIONAL granule: " + std::to_string(granule) +
         "\naverage map latency(us):" + map + " standard deviation:0.3\n" +
         "average unmap latency(us):" + unmap + " standard deviation:1.5\n";
}

double Value(const v1::CostPreset& preset, const std::string& name) {
  for (const v1::CostConstant& c : preset.constants()) {
    if (c.name() == name) return c.value_ns();
  }
  ADD_FAILURE() << "no " << name;
  return -1;
}

v1::CostPreset Base(const std::string& name) { return *FindCostPreset(name); }

TEST(ReadBenchmark, SeveralRunsOfOneThread) {
  const auto result = ReadBenchmark(Write(
      "runs.txt", Benchmark("0.1", "1.3") + Benchmark("0.3", "1.1") + Benchmark("0.2", "1.2")));
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->map_ns.size(), 3u);
  EXPECT_DOUBLE_EQ(result->map_ns.Percentile(0.5), 200);
  EXPECT_DOUBLE_EQ(result->unmap_ns.Percentile(0.5), 1200);
  EXPECT_DOUBLE_EQ(result->unmap_ns.Percentile(1), 1300);
}

// The form of Linux since the -m option, and of the series that proposed it.
TEST(ReadBenchmark, NewerForms) {
  for (
      const char* head :
      {"dma mapping benchmark(SINGLE_MODE): threads:1 seconds:30 node:-1 dir:TO_DEVICE granule:1\n",
       "dma mapping mode: DMA_MAP_SINGLE_MODE\ndma mapping benchmark: threads:1 seconds:30 node:-1 "
       "dir:FROM_DEVICE granule/sg_nents: 1\n"}) {
    const auto result = ReadBenchmark(Write(
        "new.txt", std::string(head) + "average map latency(us):1.0 standard deviation:0.3\n"
                                       "average unmap latency(us):1.3 standard deviation:0.5\n"));
    ASSERT_TRUE(result.ok()) << result.status();
    EXPECT_DOUBLE_EQ(result->unmap_ns.Percentile(0.5), 1300);
  }
}

TEST(ReadBenchmark, RefusesWhatIsNoConstant) {
  const auto threads = ReadBenchmark(Write("threads.txt", Benchmark("1.0", "7.0", 10)));
  EXPECT_THAT(std::string(threads.status().message()), HasSubstr("10 threads"));
  EXPECT_THAT(std::string(threads.status().message()), HasSubstr("-t 1 -g 1"));
  EXPECT_FALSE(ReadBenchmark(Write("granule.txt", Benchmark("1.0", "7.0", 1, 8))).ok());
  const auto nothing = ReadBenchmark(Write("nothing.txt", "iperf\n"));
  EXPECT_EQ(nothing.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_FALSE(ReadBenchmark(Write("half.txt", "average map latency(us):1.0\n")).ok());
  EXPECT_EQ(ReadBenchmark("/nonexistent").status().code(), absl::StatusCode::kNotFound);
}

// A QEMU 7.2 that kept a VFIO shadow of a Linux guest (tests/data/qemu/README.md).
TEST(ReadQemuLog, RecordedShadow) {
  const auto log = ReadQemuLog(std::string(VIOMMU_TEST_DATA) + "/qemu/vfio-shadow.log.gz", 0);
  ASSERT_TRUE(log.ok()) << log.status();
  EXPECT_GT(log->map_ns.size(), 100u);
  EXPECT_GT(log->unmap_ns.size(), 100u);
  EXPECT_TRUE(log->flush_page_ns.empty());  // its domain flushes came before the first map
  EXPECT_GT(log->map_ns.Percentile(0.5), 10e3);
  EXPECT_LT(log->map_ns.Percentile(0.5), 500e3);
}

constexpr char kFlush[] =
    "7@100.000000:vtd_inv_desc_iotlb_domain iotlb invalidate whole domain 0x3\n"
    "7@100.000100:vfio_iommu_map_notify iommu MAP @ 0x1000 - 0x1fff\n"
    "8@100.000101:vtd_inv_qi_head read head 1\n"  // another thread
    "7@100.000150:vtd_inv_qi_head read head 2\n";

TEST(ReadQemuLog, AFlushLessItsCallsByPage) {
  const auto log = ReadQemuLog(Write("flush.log", kFlush), 1000);
  ASSERT_TRUE(log.ok()) << log.status();
  EXPECT_EQ(log->map_ns.size(), 1u);
  EXPECT_DOUBLE_EQ(log->map_ns.Percentile(0.5), 50e3);
  ASSERT_EQ(log->flush_page_ns.size(), 1u);
  EXPECT_DOUBLE_EQ(log->flush_page_ns.Percentile(0.5), 100);
  EXPECT_FALSE(log->pages_traced);
}

TEST(ReadQemuLog, PagesCountedWhereTheyAreTraced) {
  const auto log = ReadQemuLog(
      Write("pages.log",
            "7@1.000000:vtd_inv_desc_iotlb_domain iotlb invalidate whole domain 0x3\n"
            "7@1.000010:vtd_page_walk_level walk (base=0x1, level=1) iova range 0x0 - 0x4000\n"
            "7@1.000020:vtd_page_walk_one_skip_map iova 0x0 mask 0xfff translated 0x1 \n"
            "7@1.000030:vtd_page_walk_one_skip_map iova 0x0 mask 0xfff translated 0x2\n"
            "7@1.000035:vtd_page_walk_one_skip_unmap iova 0x0 mask 0xfff\n"
            "7@1.000040:vtd_inv_qi_head read head 2\n"),
      1000);
  ASSERT_TRUE(log.ok()) << log.status();
  EXPECT_TRUE(log->pages_traced);
  EXPECT_DOUBLE_EQ(log->flush_page_ns.Percentile(0.5), 20e3);
}

TEST(ReadQemuLog, SaysWhatIsMissing) {
  const auto untimed = ReadQemuLog(Write("untimed.log", "vtd_inv_qi_fetch \n"), 0);
  EXPECT_THAT(std::string(untimed.status().message()), HasSubstr("-msg timestamp=on"));
  // A flush, but nobody says over how many pages.
  const auto unknown =
      ReadQemuLog(Write("unknown.log",
                        "7@1.000000:vtd_inv_desc_iotlb_domain x\n7@1.000040:vtd_inv_qi_head y\n"),
                  0);
  EXPECT_THAT(std::string(unknown.status().message()), HasSubstr("--live_pages"));
  EXPECT_FALSE(
      ReadQemuLog(Write("odd.log", "@:\n7@:x\n@1.2:\n7@99999999999999999999.1:x y\n"), 5).ok());
}

TEST(Calibrate, BareMetal) {
  Measurements measured;
  measured.strict = *ReadBenchmark(Write("s.txt", Benchmark("0.1", "1.3")));
  measured.lazy = *ReadBenchmark(Write("l.txt", Benchmark("0.1", "0.4")));
  const auto done = Calibrate(Base("bare-metal"), "d06", measured);
  ASSERT_TRUE(done.ok()) << done.status();
  EXPECT_EQ(done->preset.name(), "d06");
  EXPECT_DOUBLE_EQ(Value(done->preset, "map_update_ns"), 100);
  EXPECT_DOUBLE_EQ(Value(done->preset, "unmap_update_ns"), 400);
  // 1.3 us less 0.4 us less the preset's 120 ns of hardware.
  EXPECT_DOUBLE_EQ(Value(done->preset, "queue_build_ns"), 780);
  EXPECT_DOUBLE_EQ(Value(done->preset, "submission_ns"), 0);
  EXPECT_EQ(done->preset.constants_size(), Base("bare-metal").constants_size());
}

TEST(Calibrate, TrappedGuest) {
  Measurements measured;
  measured.strict = *ReadBenchmark(Write("s.txt", Benchmark("16.0", "12.0")));
  const auto done = Calibrate(Base("qemu-trap"), "lab", measured);
  ASSERT_TRUE(done.ok()) << done.status();
  // 12 us = 900 table + 930 queue + submission + 820 container + 700 hardware.
  EXPECT_DOUBLE_EQ(Value(done->preset, "submission_ns"), 12'000 - 900 - 930 - 820 - 700);
  // 16 us = 900 + 930 + the submission just found + 100 leaf + 940 pin + container.
  EXPECT_DOUBLE_EQ(Value(done->preset, "dma_map_ns"), 16'000 - 900 - 930 - 8650 - 100 - 940);
  for (const v1::CostConstant& c : done->preset.constants()) {
    EXPECT_LE(c.low_ns(), c.value_ns()) << c.name();
    EXPECT_GE(c.high_ns(), c.value_ns()) << c.name();
    if (c.name() == "submission_ns") {
      EXPECT_EQ(c.certainty(), "derived");
      EXPECT_THAT(c.source(), HasSubstr("less unmap_update_ns 900"));
    }
  }
}

TEST(Calibrate, TheLogsMapCallsPin) {
  Measurements measured;
  measured.qemu_log = *ReadQemuLog(Write("flush.log", kFlush), 1000);
  const auto done = Calibrate(Base("qemu-trap"), "lab", measured);
  ASSERT_TRUE(done.ok()) << done.status();
  EXPECT_DOUBLE_EQ(Value(done->preset, "dma_map_ns"), 50e3);
  EXPECT_DOUBLE_EQ(Value(done->preset, "leaf_visit_ns"), 100);
  EXPECT_DOUBLE_EQ(Value(done->preset, "pin_page_ns"), 0);
  EXPECT_THAT(done->changed,
              testing::UnorderedElementsAre("dma_map_ns", "leaf_visit_ns", "pin_page_ns"));
}

TEST(Calibrate, ASumSmallerThanItsPartsIsAnError) {
  Measurements measured;
  measured.strict = *ReadBenchmark(Write("s.txt", Benchmark("0.1", "1.3")));
  const auto wrong = Calibrate(Base("qemu-trap"), "x", measured);
  EXPECT_EQ(wrong.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(wrong.status().message()), HasSubstr("--base_preset"));
  EXPECT_FALSE(Calibrate(Base("qemu-trap"), "x", {}).ok());
}

}  // namespace
}  // namespace viommu::client
