#include "iommu_core/mem/host_memory.h"

#include <gtest/gtest.h>

#include <array>
#include <set>

#include "absl/status/status.h"

namespace viommu {
namespace {

TEST(HostMemory, HandsOutDistinctZeroedPagesUpToItsCapacity) {
  auto memory = *HostMemory::Create(3);
  std::set<PhysAddr> pages;
  for (int i = 0; i < 3; ++i) {
    const auto page = memory->Allocate();
    ASSERT_TRUE(page.ok());
    EXPECT_TRUE(IsAligned(page->value(), kPageSize));
    for (int e = 0; e < 512; ++e) ASSERT_EQ(memory->Entries(*page)[e], 0u);
    pages.insert(*page);
  }
  EXPECT_EQ(pages.size(), 3u);
  EXPECT_EQ(memory->allocated(), 3u);
  EXPECT_EQ(memory->Allocate().status().code(), absl::StatusCode::kResourceExhausted);
}

TEST(HostMemory, AFreedPageComesBackZeroed) {
  auto memory = *HostMemory::Create(1);
  const PhysAddr page = *memory->Allocate();
  ASSERT_TRUE(memory->Write64(page + 4088, 42));
  memory->Free(page);
  EXPECT_EQ(memory->allocated(), 0u);
  EXPECT_EQ(*memory->Allocate(), page);
  EXPECT_EQ(memory->Read64(page + 4088), 0u);
}

TEST(HostMemory, OnlyPagesOnceHandedOutAreMemory) {
  auto memory = *HostMemory::Create(8);
  const PhysAddr page = *memory->Allocate();
  const PhysAddr beyond = page + kPageSize;
  EXPECT_TRUE(memory->Read64(page).has_value());
  EXPECT_EQ(memory->Read64(beyond), std::nullopt);
  EXPECT_EQ(memory->Read32(beyond), std::nullopt);
  EXPECT_FALSE(memory->Write64(beyond, 1));
  EXPECT_FALSE(memory->Write32(beyond, 1));
  EXPECT_EQ(memory->PageInPlace(beyond), nullptr);
  EXPECT_EQ(memory->Read64(PhysAddr(~uint64_t{7})), std::nullopt);
  std::array<std::byte, 16> bytes{};
  EXPECT_FALSE(memory->ReadBytes(beyond - 8, bytes)) << "the second half is not memory";
  EXPECT_FALSE(memory->WriteBytes(beyond - 8, bytes));
}

TEST(HostMemory, EveryWayToAPageReachesTheSameBytes) {
  auto memory = *HostMemory::Create(2);
  const PhysAddr page = *memory->Allocate();
  ASSERT_TRUE(memory->Write64(page + 8, 0x1122334455667788));
  EXPECT_EQ(memory->Read32(page + 8), 0x55667788u);
  ASSERT_TRUE(memory->Write32(page + 12, 0xaabbccdd));
  EXPECT_EQ(memory->PageInPlace(page)[1], 0xaabbccdd55667788u);
  EXPECT_EQ(memory->Entries(page)[1], 0xaabbccdd55667788u);
}

TEST(HostMemory, CapacityIsChecked) {
  EXPECT_EQ(HostMemory::Create(0).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(HostMemory::Create((uint64_t{1} << 32) + 1).status().code(),
            absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace viommu
