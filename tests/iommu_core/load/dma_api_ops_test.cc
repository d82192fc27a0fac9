#include "iommu_core/load/dma_api_ops.h"

#include <gtest/gtest.h>

namespace viommu {
namespace {

LoadOp Map(uint64_t page, uint64_t pages, bool continues = false, uint16_t cpu = 0) {
  LoadOp op;
  op.kind = LoadOp::Kind::kMap;
  op.cpu = cpu;
  op.iova = Iova(page * kPageSize);
  op.guest_pa = GuestPhys((page + 7777) * kPageSize);
  op.size_bytes = pages * kPageSize;
  op.list_continues = continues;
  return op;
}
LoadOp Unmap(uint64_t page, uint64_t pages, uint16_t cpu = 0) {
  LoadOp op = Map(page, pages, false, cpu);
  op.kind = LoadOp::Kind::kUnmap;
  return op;
}

TEST(DmaApiOpsTest, PairsMapAndUnmapByTag) {
  const DmaApiOps out = ToDmaApiOps(
      {Map(100, 1), Map(200, 1), Unmap(100, 1), Map(100, 1), Unmap(200, 1), Unmap(100, 1)});
  EXPECT_EQ(out.recorded_domains, 0u);
  for (const LoadOp& op : out.ops) EXPECT_TRUE(op.choose_iova);
  EXPECT_EQ(out.ops[0].tag, out.ops[2].tag);
  EXPECT_EQ(out.ops[1].tag, out.ops[4].tag);
  EXPECT_EQ(out.ops[3].tag, out.ops[5].tag);
  EXPECT_NE(out.ops[0].tag, out.ops[3].tag);
}

TEST(DmaApiOpsTest, AListIsOneMapping) {
  const DmaApiOps out =
      ToDmaApiOps({Map(100, 1, true), Map(50, 1, false, 1), Map(101, 2), Unmap(100, 3)});
  EXPECT_EQ(out.ops[0].tag, out.ops[2].tag);
  EXPECT_EQ(out.ops[3].tag, out.ops[0].tag);
  EXPECT_NE(out.ops[1].tag, out.ops[0].tag);
}

TEST(DmaApiOpsTest, AnUnmapOfTwoJoinsThem) {
  const DmaApiOps out = ToDmaApiOps({Map(100, 1), Map(101, 1), Unmap(100, 2)});
  EXPECT_EQ(out.recorded_domains, 0u);
  EXPECT_TRUE(out.ops[0].list_continues);
  EXPECT_EQ(out.ops[0].tag, out.ops[1].tag);
  EXPECT_EQ(out.ops[0].tag, out.ops[2].tag);
}

TEST(DmaApiOpsTest, AnUnmapOfHalfSplitsThem) {
  const DmaApiOps out = ToDmaApiOps({Map(100, 1, true), Map(101, 1), Unmap(100, 1), Unmap(101, 1)});
  EXPECT_EQ(out.recorded_domains, 0u);
  EXPECT_FALSE(out.ops[0].list_continues);
  EXPECT_EQ(out.ops[0].tag, out.ops[2].tag);
  EXPECT_EQ(out.ops[1].tag, out.ops[3].tag);
  EXPECT_NE(out.ops[0].tag, out.ops[1].tag);
}

TEST(DmaApiOpsTest, APartialUnmapKeepsTheDomainAsRecorded) {
  const DmaApiOps out = ToDmaApiOps({Map(100, 4), Unmap(101, 1), Unmap(100, 1)});
  EXPECT_EQ(out.recorded_domains, 1u);
  for (const LoadOp& op : out.ops) EXPECT_FALSE(op.choose_iova);
}

TEST(DmaApiOpsTest, IdentityMapsKeepTheDomainAsRecorded) {
  LoadOp identity = Map(100, 1);
  identity.guest_pa = GuestPhys(identity.iova.value());
  LoadOp other = Map(100, 1);
  other.domain = 1;
  const DmaApiOps out = ToDmaApiOps({identity, other});
  EXPECT_FALSE(out.ops[0].choose_iova);
  EXPECT_TRUE(out.ops[1].choose_iova);
}

}  // namespace
}  // namespace viommu
