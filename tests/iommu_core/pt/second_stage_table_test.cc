#include "iommu_core/pt/second_stage_table.h"

#include <gtest/gtest.h>

#include <map>
#include <random>

#include "iommu_core/mem/sparse_memory.h"
#include "iommu_core/pt/walker.h"

namespace viommu {
namespace {

class SecondStageTableTest : public testing::TestWithParam<int> {
 protected:
  SecondStageTableTest()
      : memory_({{PhysAddr(0), PhysAddr(uint64_t{1} << 36)}}),
        frames_(memory_, PhysAddr(1 << 20), PhysAddr(uint64_t{1} << 28)),
        caps_(vtd::QemuCapabilities(48, true)),
        table_(*SecondStageTable::Create(memory_, frames_, GetParam(), caps_)) {}

  std::map<uint64_t, std::pair<uint64_t, Access>> Flatten() {
    std::map<uint64_t, std::pair<uint64_t, Access>> out;
    const Walker walker(memory_, {caps_, 48});
    const auto status = walker.ForEachLeaf(
        table_->root(), GetParam(), {Iova(0), Iova(uint64_t{1} << table_->width_bits())}, 1 << 24,
        [&](const LeafMapping& m) {
          for (uint64_t o = 0; o < m.size_bytes; o += kPageSize) {
            out[m.iova.value() + o] = {m.address.value() + o, m.access};
          }
        });
    EXPECT_TRUE(status.ok());
    return out;
  }

  SparseMemory memory_;
  SimpleFrameAllocator frames_;
  vtd::Capabilities caps_;
  std::unique_ptr<SecondStageTable> table_;
};

INSTANTIATE_TEST_SUITE_P(Levels, SecondStageTableTest, testing::Values(3, 4));

TEST_P(SecondStageTableTest, UsesTheLargestLeaf) {
  ASSERT_TRUE(table_->Map(Iova(0x40000000), PhysAddr(0x80000000), 0x40000000, kReadWrite).ok());
  EXPECT_EQ(table_->Find(Iova(0x40001000)).level, 3);
  ASSERT_TRUE(table_->Map(Iova(0x1ff000), PhysAddr(0x3ff000), 0x202000, kReadOnly).ok());
  EXPECT_EQ(table_->Find(Iova(0x1ff000)).level, 1);
  EXPECT_EQ(table_->Find(Iova(0x200000)).level, 2);
  EXPECT_EQ(table_->Find(Iova(0x400000)).level, 1);
}

TEST_P(SecondStageTableTest, MapIsAllOrNothing) {
  ASSERT_TRUE(table_->Map(Iova(0x5000), PhysAddr(0x1000), 0x1000, kReadWrite).ok());
  EXPECT_EQ(table_->Map(Iova(0x3000), PhysAddr(0x9000), 0x4000, kReadWrite).status().code(),
            absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(Flatten().size(), 1u);
}

TEST_P(SecondStageTableTest, LargeLeafReplacesEmptyTables) {
  ASSERT_TRUE(table_->Map(Iova(0x200000), PhysAddr(0x1000), 0x1000, kReadWrite).ok());
  ASSERT_TRUE(table_->Unmap(MakeRange(Iova(0x200000), 0x1000)).ok());
  auto mapped = table_->Map(Iova(0x200000), PhysAddr(0x400000), 0x200000, kReadWrite);
  ASSERT_TRUE(mapped.ok());
  EXPECT_EQ(mapped->replaced_tables.size(), 1u);
  table_->FreeTables(mapped->replaced_tables);
}

TEST_P(SecondStageTableTest, FreesOnlyTablesCoveredWhole) {
  ASSERT_TRUE(table_->Map(Iova(0x200000), PhysAddr(0x1000), 0x200000, kReadWrite).ok());
  EXPECT_TRUE(table_->Unmap(MakeRange(Iova(0x200000), 0x1ff000))->freed_tables.empty());
  ASSERT_TRUE(table_->Map(Iova(0x200000), PhysAddr(0x1000), 0x1ff000, kReadWrite).ok());
  auto all = table_->Unmap(MakeRange(Iova(0x200000), 0x200000));
  EXPECT_EQ(all->freed_tables.size(), 1u);
  EXPECT_EQ(all->unmapped_bytes, 0x200000u);
  table_->FreeTables(all->freed_tables);
}

TEST_P(SecondStageTableTest, RandomEditsMatchAPlainMap) {
  std::mt19937_64 rng(20260901);
  std::map<uint64_t, std::pair<uint64_t, Access>> model;
  for (int step = 0; step < 4000; ++step) {
    const int shift = std::array{12, 12, 12, 15, 21}[rng() % 5];
    const uint64_t span = uint64_t{1} << shift;
    const uint64_t iova = (rng() % ((uint64_t{1} << 26) / span)) * span;
    const uint64_t size = span * (1 + rng() % 3);
    if (rng() % 2 == 0) {
      const uint64_t target = (rng() % 4096) * span;
      const Access access = std::array{kReadOnly, kWriteOnly, kReadWrite}[rng() % 3];
      const auto at = model.lower_bound(iova);
      const bool overlap = at != model.end() && at->first < iova + size;
      auto mapped = table_->Map(Iova(iova), PhysAddr(target), size, access);
      ASSERT_EQ(mapped.ok(), !overlap) << mapped.status();
      if (!mapped.ok()) continue;
      table_->FreeTables(mapped->replaced_tables);
      for (uint64_t o = 0; o < size; o += kPageSize) model[iova + o] = {target + o, access};
    } else {
      auto result = table_->Unmap(MakeRange(Iova(iova), size));
      ASSERT_TRUE(result.ok()) << result.status();
      table_->FreeTables(result->freed_tables);
      uint64_t gone = 0;
      for (uint64_t o = 0; o < size; o += kPageSize) gone += model.erase(iova + o);
      ASSERT_EQ(result->unmapped_bytes, gone * kPageSize);
    }

    if (step % 200 == 0) {
      ASSERT_EQ(Flatten(), model) << "step " << step;
    }
  }
  EXPECT_EQ(Flatten(), model);
  const uint64_t root = table_->root().value();
  table_.reset();
  EXPECT_EQ(frames_.allocated(), 0u) << std::hex << root;
}

}  // namespace
}  // namespace viommu
