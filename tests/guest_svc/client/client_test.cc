#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <chrono>
#include <cmath>
#include <fstream>
#include <set>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "guest_svc/client/command.h"
#include "guest_svc/client/embedded_presets.h"
#include "guest_svc/client/latency_histogram.h"
#include "guest_svc/client/load_input.h"
#include "guest_svc/client/output.h"
#include "guest_svc/client/workload_client.h"
#include "iommu_core/dma/guest_config.h"
#include "svc_common/conversions.h"
#include "tests/fakes/temp_folder.h"

namespace viommu::client {
namespace {

using testing::HasSubstr;

TEST(Output, Numbers) {
  EXPECT_EQ(Grouped(0), "0");
  EXPECT_EQ(Grouped(999), "999");
  EXPECT_EQ(Grouped(1000), "1,000");
  EXPECT_EQ(Grouped(1234567), "1,234,567");
  EXPECT_EQ(Short(1.234), "1.23");
  EXPECT_EQ(Short(12.34), "12.3");
  EXPECT_EQ(Short(123.4), "123");
  EXPECT_EQ(Short(12345.6), "12,346");
  EXPECT_EQ(Duration(6700), "6.70 us");
  EXPECT_EQ(Duration(12e6), "12.00 ms");
}

TEST(Output, WhatIsLeft) {
  EXPECT_EQ(LongDuration(12.4), "12 s");
  EXPECT_EQ(LongDuration(200), "3 min 20 s");
  EXPECT_EQ(LongDuration(7500), "2 h 5 min");
  EXPECT_EQ(Remaining(0.25, 10), ", about 30 s left");
  EXPECT_EQ(Remaining(1, 10), ", about 0 s left");
  EXPECT_EQ(Remaining(0.5, 0.5), "");  // too early
  EXPECT_EQ(Remaining(0.001, 60), "");
}

TEST(Output, TableAligns) {
  TextTable table({"name", "count"});
  table.Add({"a", "1"});
  table.Add({"long", "1,000"});
  EXPECT_EQ(table.ToString(), "name  count\na         1\nlong  1,000\n");
}

TEST(Output, FileAppearsWholeOrNotAtAll) {
  const std::string path = testing::TempDir() + "viommu_output_test.json";
  ASSERT_TRUE(WriteJson(path, Json{{"a", 1}}).ok());
  EXPECT_EQ(Json::parse(std::ifstream(path))["a"], 1);
  std::remove(path.c_str());
  const absl::Status bad = WriteFile("/nonexistent/folder/x", "y");
  EXPECT_THAT(std::string(bad.message()), HasSubstr("cannot write /nonexistent/folder/x"));
}

TEST(Command, Lists) {
  EXPECT_EQ(*SplitList("a,b"), (std::vector<std::string>{"a", "b"}));
  EXPECT_FALSE(SplitList("a,,b").ok());
  EXPECT_FALSE(SplitList("").ok());
  EXPECT_EQ(*SplitNumbers("1024,16k"), (std::vector<uint64_t>{1024, 16384}));
  EXPECT_FALSE(SplitNumbers("1,x").ok());
}

TEST(Command, QuotedSoThatAShellReadsItBack) {
  EXPECT_EQ(QuoteCommand("viommu x", {"--a=1", "b c", "it's", ""}),
            "viommu x --a=1 'b c' 'it'\\''s' ''");
}

// An eighth of a power of two: no bound is more than 12.5 % above its sample.
TEST(LatencyHistogram, BoundsHold) {
  for (uint64_t ns :
       {0ull, 1ull, 7ull, 8ull, 9ull, 1000ull, 12'345ull, 999'999'999ull, 1ull << 62}) {
    const uint64_t bound = LatencyHistogram::UpperBound(LatencyHistogram::Bucket(ns));
    EXPECT_GE(bound, ns);
    EXPECT_LE(static_cast<double>(bound), 1.125 * static_cast<double>(ns) + 1);
  }
  for (size_t b = 1; b < 400; ++b) {
    EXPECT_EQ(LatencyHistogram::Bucket(LatencyHistogram::UpperBound(b)), b);
    EXPECT_EQ(LatencyHistogram::Bucket(LatencyHistogram::UpperBound(b - 1) + 1), b);
  }
}

TEST(LatencyHistogram, Percentiles) {
  LatencyHistogram histogram;
  const auto empty = histogram.Snapshot();
  EXPECT_EQ(LatencyHistogram::Percentile(empty, 0.5), 0u);
  for (uint64_t i = 1; i <= 1000; ++i) histogram.Record(i * 1000);
  const auto counts = histogram.Snapshot();
  EXPECT_EQ(LatencyHistogram::Total(counts), 1000u);
  EXPECT_NEAR(static_cast<double>(LatencyHistogram::Percentile(counts, 0.5)), 500e3, 0.13 * 500e3);
  EXPECT_NEAR(static_cast<double>(LatencyHistogram::Percentile(counts, 0.99)), 990e3, 0.13 * 990e3);
  EXPECT_EQ(LatencyHistogram::Total(LatencyHistogram::Difference(counts, empty)), 1000u);
}

TEST(LoadInput, OneOfTwo) {
  EXPECT_FALSE(ReadInput("", "", TraceUse::kDriverCalls, false).ok());
  EXPECT_FALSE(ReadInput("a", "rr", TraceUse::kDriverCalls, false).ok());
  EXPECT_TRUE(ReadInput("", "rr", TraceUse::kDriverCalls, false).ok());
  EXPECT_FALSE(ReadInput("", "no-such", TraceUse::kDriverCalls, false).ok());
  const std::string path =
      std::string(VIOMMU_TEST_DATA) + "/linux/6.1_cmon_strict0_huge/trace.txt.gz";
  const auto recorded = ReadInput(path, "", TraceUse::kRecordedIovas, false);
  const auto calls = ReadInput(path, "", TraceUse::kDriverCalls, false);
  ASSERT_TRUE(recorded.ok() && calls.ok());
  EXPECT_EQ(recorded->trace.ops.size(), calls->trace.ops.size());
  const auto choose = [](const LoadInput& input) {
    uint64_t n = 0;
    for (const LoadOp& op : input.trace.ops) n += op.choose_iova;
    return n;
  };
  EXPECT_EQ(choose(*recorded), 0u);
  EXPECT_GT(choose(*calls), 1700u);
}

TEST(TraceChunk, ColumnsOfEqualLength) {
  LoadOp op;
  op.kind = LoadOp::Kind::kAttach;
  op.access = kWriteOnly;
  op.list_continues = true;
  op.choose_iova = true;
  op.device_tlb = true;
  op.tag = 9;
  op.time_ns = 7;
  v1::TraceChunk chunk;
  FillChunk(std::vector<LoadOp>{op, LoadOp()}, &chunk);
  for (int size : {chunk.kind_size(), chunk.time_ns_size(), chunk.cpu_size(), chunk.domain_size(),
                   chunk.iova_size(), chunk.guest_pa_size(), chunk.size_bytes_size(),
                   chunk.flags_size(), chunk.source_id_size(), chunk.tag_size()}) {
    EXPECT_EQ(size, 2);
  }
  EXPECT_EQ(chunk.flags(0), 2u | 4u | 8u | 16u);
  EXPECT_EQ(chunk.flags(1), 3u);
  EXPECT_EQ(chunk.tag(0), 9u);
}

// Every constant of every preset is known to the core, inside its own range, and has a source.
TEST(CostPresets, EveryConstantHasASource) {
  for (const EmbeddedPreset& embedded : kEmbeddedPresets) {
    const auto preset = FindCostPreset(embedded.name);
    ASSERT_TRUE(preset.ok()) << preset.status();
    EXPECT_EQ(preset->name(), embedded.name);
    EXPECT_FALSE(preset->description().empty());
    EXPECT_EQ(preset->constants_size(), 14) << embedded.name;
    const auto model = FromProto(*preset);
    EXPECT_TRUE(model.ok()) << model.status();
    std::set<std::string> names;
    for (const v1::CostConstant& c : preset->constants()) {
      EXPECT_TRUE(names.insert(c.name()).second) << c.name() << " twice";
      EXPECT_FALSE(c.source().empty()) << c.name();
      EXPECT_THAT(c.certainty(), testing::AnyOf("measured", "derived", "assumed"));
      EXPECT_LE(c.low_ns(), c.value_ns()) << c.name();
      EXPECT_GE(c.high_ns(), c.value_ns()) << c.name();
    }
  }
}

// The file is what people read, the struct what runs without a file: they must be one.
TEST(CostPresets, QemuTrapIsTheDefaultModel) {
  const auto preset = FindCostPreset("qemu-trap");
  ASSERT_TRUE(preset.ok());
  const v1::CostPreset defaults = ToProto(CostModel());
  for (const v1::CostConstant& want : defaults.constants()) {
    bool found = false;
    for (const v1::CostConstant& c : preset->constants()) {
      if (c.name() != want.name()) continue;
      found = true;
      EXPECT_EQ(c.value_ns(), want.value_ns()) << c.name();
    }
    EXPECT_TRUE(found) << want.name();
  }
}

TEST(CostPresets, UnknownListsTheNames) {
  const auto preset = FindCostPreset("fast");
  EXPECT_EQ(preset.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(preset.status().message()), HasSubstr("qemu-trap"));
  EXPECT_FALSE(FindCostPreset("/nonexistent/x.textproto").ok());
}

TEST(Connect, SaysThatNobodyListens) {
  const auto channel = Connect("unix:/tmp/viommu-nobody-listens-here.sock", {});
  EXPECT_EQ(channel.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(channel.status().message()), HasSubstr("nobody listens on"));
  EXPECT_EQ(Connect("nonsense", {}).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(Connect, TellsSilenceFromARefusal) {
  const TempFolder folder;
  const std::string path = folder.File("silent.sock");
  const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_un sun{};
  sun.sun_family = AF_UNIX;
  path.copy(sun.sun_path, sizeof(sun.sun_path) - 1);
  ASSERT_EQ(bind(fd, reinterpret_cast<sockaddr*>(&sun), sizeof(sun)), 0);
  ASSERT_EQ(listen(fd, 8), 0);
  const auto channel = Connect("unix:" + path, {}, std::chrono::milliseconds(300));
  EXPECT_EQ(channel.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(channel.status().message()), HasSubstr("no connection within 300ms"));
  close(fd);
}

}  // namespace
}  // namespace viommu::client
