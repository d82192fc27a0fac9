#include "guest_svc/workload_service.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "iommu_core/load/trace_source.h"

namespace viommu {
namespace {

v1::TraceChunk Chunk(uint64_t time_ns) {
  v1::TraceChunk chunk;
  chunk.add_kind(static_cast<uint32_t>(LoadOp::Kind::kMap));
  chunk.add_time_ns(time_ns);
  chunk.add_cpu(3);
  chunk.add_domain(2);
  chunk.add_iova(0xfffff000);
  chunk.add_guest_pa(0x200000);
  chunk.add_size_bytes(4096);
  chunk.add_flags(1 | 4 | 16);
  chunk.add_source_id(0x18);
  chunk.add_tag(9);
  return chunk;
}

TEST(AppendTraceTest, EveryColumnArrives) {
  std::vector<LoadOp> ops;
  ASSERT_TRUE(AppendTrace(Chunk(5), 10, &ops).ok());
  ASSERT_EQ(ops.size(), 1u);
  EXPECT_EQ(ops[0].kind, LoadOp::Kind::kMap);
  EXPECT_EQ(ops[0].time_ns, 5u);
  EXPECT_EQ(ops[0].cpu, 3u);
  EXPECT_EQ(ops[0].domain, 2u);
  EXPECT_EQ(ops[0].iova, Iova(0xfffff000));
  EXPECT_EQ(ops[0].guest_pa, GuestPhys(0x200000));
  EXPECT_EQ(ops[0].size_bytes, 4096u);
  EXPECT_EQ(ops[0].access, kReadOnly);
  EXPECT_TRUE(ops[0].list_continues);
  EXPECT_FALSE(ops[0].choose_iova);
  EXPECT_TRUE(ops[0].device_tlb);
  EXPECT_EQ(ops[0].source_id, SourceId(0x18));
  EXPECT_EQ(ops[0].tag, 9u);
}

TEST(AppendTraceTest, DamagedChunksAreRefused) {
  std::vector<LoadOp> ops;
  v1::TraceChunk uneven = Chunk(1);
  uneven.add_cpu(0);
  EXPECT_TRUE(absl::IsInvalidArgument(AppendTrace(uneven, 10, &ops)));
  v1::TraceChunk kind = Chunk(1);
  kind.set_kind(0, 99);
  EXPECT_TRUE(absl::IsInvalidArgument(AppendTrace(kind, 10, &ops)));
  v1::TraceChunk wraps = Chunk(1);
  wraps.set_size_bytes(0, ~uint64_t{0});
  EXPECT_TRUE(absl::IsInvalidArgument(AppendTrace(wraps, 10, &ops)));
  ASSERT_TRUE(AppendTrace(Chunk(7), 10, &ops).ok());
  EXPECT_TRUE(absl::IsInvalidArgument(AppendTrace(Chunk(6), 10, &ops)));  // time goes back
  EXPECT_TRUE(absl::IsResourceExhausted(AppendTrace(Chunk(8), 1, &ops)));
}

TEST(RunConfigTest, TheSpecGoesBeforeTheServer) {
  std::vector<LoadOp> ops(1);
  ops[0].guest_pa = GuestPhys(uint64_t{1} << 30);
  ops[0].size_bytes = kPageSize;
  const TraceSource source(std::move(ops));
  GuestConfig server;
  server.policy = Policy::kLazySingle;
  server.hz = 100;
  v1::WorkloadSpec spec;
  auto config = RunConfig(spec, server, source);
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->policy, Policy::kLazySingle);
  EXPECT_EQ(config->hz, 100u);
  EXPECT_EQ(config->iommu_caching_mode, std::vector<bool>{true});
  EXPECT_GT(config->ram_bytes - config->table_region_bytes, uint64_t{1} << 30);

  spec.set_policy("strict");
  spec.set_no_caching_mode(true);
  spec.set_live_pages(uint64_t{1} << 20);
  config = RunConfig(spec, server, source);
  ASSERT_TRUE(config.ok());
  EXPECT_EQ(config->policy, Policy::kStrict);
  EXPECT_EQ(config->iommu_caching_mode, std::vector<bool>{false});
  EXPECT_GT(config->ram_bytes - config->table_region_bytes, uint64_t{4} << 30);

  spec.set_policy("relaxed");
  EXPECT_TRUE(absl::IsInvalidArgument(RunConfig(spec, server, source).status()));
  spec.set_policy("");
  spec.set_address_width(57);
  EXPECT_TRUE(absl::IsInvalidArgument(RunConfig(spec, server, source).status()));
}

}  // namespace
}  // namespace viommu
