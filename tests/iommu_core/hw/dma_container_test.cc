// VFIO type1 v2 rules (Linux drivers/vfio/vfio_iommu_type1.c: vfio_dma_do_map, vfio_dma_do_unmap).
#include "iommu_core/hw/dma_container.h"

#include <gtest/gtest.h>

#include "absl/status/status.h"

namespace viommu {
namespace {

constexpr uint64_t k2M = uint64_t{2} << 20;
constexpr uint64_t kNoLimit = ~uint64_t{0};

IovaRange Pages(uint64_t first, uint64_t count = 1) {
  return MakeRange(Iova(first * kPageSize), count * kPageSize);
}

TEST(DmaContainer, MapsAndUnmapsAreCountedWithTheirPins) {
  PinBudget pins(kNoLimit);
  DmaContainer container(65535, pins);
  ASSERT_TRUE(container.Map(Pages(1), GuestPhys(0x5000), kReadOnly).ok());
  ASSERT_TRUE(container.Map(MakeRange(Iova(k2M), k2M), GuestPhys(k2M), kReadWrite).ok());
  EXPECT_EQ(container.account().entries(), 2u);
  EXPECT_EQ(container.account().pinned_pages(), 513u);
  EXPECT_EQ(pins.pages(), 513u);

  const auto unmapped = container.Unmap({Iova(0), Iova(2 * k2M)});
  ASSERT_TRUE(unmapped.ok());
  EXPECT_EQ(unmapped->entries, 2u);
  EXPECT_EQ(unmapped->page_count, 513u);
  EXPECT_EQ(pins.pages(), 0u);
  EXPECT_EQ(pins.pages_max(), 513u);
  EXPECT_EQ(container.account().map_calls(), 2u);
  EXPECT_EQ(container.account().unmap_calls(), 1u);
}

TEST(DmaContainer, BadArgumentsAreEinval) {
  PinBudget pins(kNoLimit);
  DmaContainer container(65535, pins);
  EXPECT_EQ(container.Map({Iova(0), Iova(0)}, GuestPhys(0), kReadWrite).code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(container.Map({Iova(0x800), Iova(0x1800)}, GuestPhys(0), kReadWrite).code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(container.Map(Pages(1), GuestPhys(0x10), kReadWrite).code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(container.Map(Pages(1), GuestPhys(0), Access{}).code(),
            absl::StatusCode::kInvalidArgument);
  // [2^64 - 4096, 4096): the end wrapped.
  EXPECT_EQ(
      container.Map(MakeRange(Iova(~kPageMask), 2 * kPageSize), GuestPhys(0), kReadWrite).code(),
      absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(container.account().entries(), 0u);
  EXPECT_EQ(pins.pages(), 0u);
}

TEST(DmaContainer, AnyOverlapIsEexist) {
  PinBudget pins(kNoLimit);
  DmaContainer container(65535, pins);
  ASSERT_TRUE(container.Map(Pages(10, 4), GuestPhys(0), kReadWrite).ok());
  for (const IovaRange range : {Pages(10, 4), Pages(9, 2), Pages(13, 2), Pages(11), Pages(8, 16)}) {
    EXPECT_EQ(container.Map(range, GuestPhys(0), kReadWrite).code(),
              absl::StatusCode::kAlreadyExists)
        << range.first.value();
  }
  EXPECT_TRUE(container.Map(Pages(9), GuestPhys(0), kReadWrite).ok());
  EXPECT_TRUE(container.Map(Pages(14), GuestPhys(0), kReadWrite).ok());
  EXPECT_EQ(pins.pages(), 6u);
}

TEST(DmaContainer, AnUnmapMustNotCutAMappingAtEitherEnd) {
  PinBudget pins(kNoLimit);
  DmaContainer container(65535, pins);
  ASSERT_TRUE(container.Map(Pages(10, 4), GuestPhys(0), kReadWrite).ok());
  ASSERT_TRUE(container.Map(Pages(20, 4), GuestPhys(0), kReadWrite).ok());
  for (const IovaRange range : {Pages(10), Pages(13), Pages(11, 2), Pages(10, 12), Pages(12, 12)}) {
    EXPECT_EQ(container.Unmap(range).status().code(), absl::StatusCode::kInvalidArgument)
        << range.first.value();
  }
  EXPECT_EQ(container.account().entries(), 2u) << "nothing was removed";
  EXPECT_EQ(container.Unmap(Pages(10, 14))->entries, 2u);
}

TEST(DmaContainer, UnmappingNothingSucceeds) {
  PinBudget pins(kNoLimit);
  DmaContainer container(65535, pins);
  const auto unmapped = container.Unmap(Pages(1, 100));
  ASSERT_TRUE(unmapped.ok());
  EXPECT_EQ(unmapped->entries, 0u);
  EXPECT_EQ(unmapped->page_count, 0u);
}

TEST(DmaContainer, EntryLimitIsVisibleAndLiftsWithAnUnmap) {
  PinBudget pins(kNoLimit);
  DmaContainer container(2, pins);
  ASSERT_TRUE(container.Map(Pages(1), GuestPhys(0), kReadWrite).ok());
  ASSERT_TRUE(container.Map(Pages(2), GuestPhys(0), kReadWrite).ok());
  const absl::Status refused = container.Map(Pages(3), GuestPhys(0), kReadWrite);
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_NE(refused.message().find("--dma_entry_limit"), absl::string_view::npos);
  EXPECT_EQ(container.account().failed_map_calls(), 1u);
  EXPECT_EQ(pins.pages(), 2u) << "a refused map pins nothing";
  ASSERT_TRUE(container.Unmap(Pages(1)).ok());
  EXPECT_TRUE(container.Map(Pages(3), GuestPhys(0), kReadWrite).ok());
}

TEST(DmaContainer, PinLimitIsSharedByTheContainersOfASession) {
  PinBudget pins(4 * kPageSize + 100);  // RLIMIT_MEMLOCK counts whole pages
  DmaContainer a(65535, pins);
  DmaContainer b(65535, pins);
  ASSERT_TRUE(a.Map(Pages(0, 3), GuestPhys(0), kReadWrite).ok());
  const absl::Status refused = b.Map(Pages(0, 2), GuestPhys(0), kReadWrite);
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_NE(refused.message().find("--pin_limit_bytes"), absl::string_view::npos);
  EXPECT_EQ(b.account().entries(), 0u);
  // The same guest page pinned twice counts twice (vfio_lock_acct per mapping).
  EXPECT_TRUE(b.Map(Pages(0), GuestPhys(0), kReadWrite).ok());
  EXPECT_EQ(pins.pages(), 4u);
}

TEST(DmaContainer, PinsEndWithTheContainer) {
  PinBudget pins(kNoLimit);
  {
    DmaContainer container(65535, pins);
    ASSERT_TRUE(container.Map(Pages(0, 8), GuestPhys(0), kReadWrite).ok());
    EXPECT_EQ(pins.pages(), 8u);
  }
  EXPECT_EQ(pins.pages(), 0u);
  EXPECT_EQ(pins.pages_max(), 8u);
}

TEST(DmaContainer, WriteOnlyIsKeptAsItIs) {
  PinBudget pins(kNoLimit);
  DmaContainer container(65535, pins);
  ASSERT_TRUE(container.Map(Pages(7), GuestPhys(0x7000), kWriteOnly).ok());
  const auto found = container.FirstOverlap(Pages(0, 100));
  ASSERT_NE(found, container.mappings().end());
  EXPECT_EQ(found->first, Iova(0x7000));
  EXPECT_EQ(found->second, (DmaContainer::Mapping{kPageSize, GuestPhys(0x7000), kWriteOnly}));
  EXPECT_EQ(container.FirstOverlap(Pages(8)), container.mappings().end());
}

}  // namespace
}  // namespace viommu
