#include "iommu_core/base/types.h"

#include <gtest/gtest.h>

#include <type_traits>
#include <unordered_set>

#include "absl/container/flat_hash_set.h"
#include "iommu_core/base/bits.h"
#include "iommu_core/base/clock.h"
#include "iommu_core/base/errors.h"

namespace viommu {
namespace {

// Kinds of address never mix by accident.
static_assert(!std::is_convertible_v<uint64_t, Iova>);
static_assert(!std::is_convertible_v<Iova, uint64_t>);
static_assert(!std::is_convertible_v<Iova, GuestPhys>);
static_assert(!std::is_constructible_v<HostPhys, GuestPhys>);
static_assert(!std::is_assignable_v<PhysAddr&, Iova>);
static_assert(sizeof(Iova) == 8 && sizeof(SourceId) == 2);

TEST(StrongIntTest, Arithmetic) {
  constexpr Iova a(0x1000);
  EXPECT_EQ((a + 0x234).value(), 0x1234u);
  EXPECT_EQ((a - 0x1000).value(), 0u);
  EXPECT_EQ(Iova(0x3000) - a, 0x2000u);
  EXPECT_LT(a, Iova(0x1001));
  Iova b = a;
  b += 8;
  EXPECT_EQ(b, Iova(0x1008));
  // Narrow ids wrap in their own width.
  EXPECT_EQ((SourceId(0xffff) + 1).value(), 0u);
}

TEST(StrongIntTest, Hashes) {
  const std::unordered_set<Iova> standard{Iova(1), Iova(1), Iova(2)};
  EXPECT_EQ(standard.size(), 2u);
  const absl::flat_hash_set<SourceId> abseil{SourceId(1), SourceId(1), SourceId(2)};
  EXPECT_EQ(abseil.size(), 2u);
}

TEST(TypesTest, SourceId) {  // VT-d 3.4.1: bus 15:8, device 7:3, function 2:0
  EXPECT_EQ(MakeSourceId(0, 3, 0), SourceId(0x18));
  EXPECT_EQ(MakeSourceId(0x42, 0, 0), SourceId(0x4200));
  EXPECT_EQ(MakeSourceId(0xff, 31, 7), SourceId(0xffff));
}

TEST(TypesTest, RangesAreHalfOpen) {
  const IovaRange r = MakeRange(Iova(0x1000), 0x2000);
  EXPECT_EQ(r.size_bytes(), 0x2000u);
  EXPECT_TRUE(r.Contains(Iova(0x2fff)));
  EXPECT_FALSE(r.Contains(Iova(0x3000)));
  EXPECT_FALSE(r.Contains(Iova(0xfff)));
  EXPECT_TRUE(r.Overlaps(MakeRange(Iova(0x2fff), 1)));
  EXPECT_FALSE(r.Overlaps(MakeRange(Iova(0x3000), 0x1000)));
  EXPECT_FALSE(r.Overlaps(MakeRange(Iova(0), 0x1000)));
  EXPECT_TRUE(MakeRange(Iova(0x1000), 0).empty());
}

TEST(TypesTest, AlignAndOrder) {
  EXPECT_EQ(AlignDown(0x1fff, 0x1000), 0x1000u);
  EXPECT_EQ(AlignUp(0x1001, 0x1000), 0x2000u);
  EXPECT_EQ(AlignUp(0x1000, 0x1000), 0x1000u);
  EXPECT_TRUE(IsAligned(0, 0x1000));
  EXPECT_FALSE(IsAligned(0x800, 0x1000));
  EXPECT_EQ(OrderOf(1), 0);
  EXPECT_EQ(OrderOf(2), 1);
  EXPECT_EQ(OrderOf(3), 2);
  EXPECT_EQ(OrderOf(32), 5);
  EXPECT_EQ(OrderOf(33), 6);
}

TEST(BitsTest, Fields) {
  using Field = Bits<23, 8>;
  EXPECT_EQ(Field::kMask, 0xffff00u);
  EXPECT_EQ(Field::Get(0x12345678), 0x3456u);
  EXPECT_EQ(Field::Make(0x1234), 0x123400u);
  EXPECT_EQ(Field::Set(0xffffffff, 0), 0xff0000ffu);
  EXPECT_EQ((Bits<63, 0>::kMask), ~uint64_t{0});
  EXPECT_EQ(Bit<63>::Make(1), uint64_t{1} << 63);
}

TEST(BitsTest, RunTimeMask) {
  EXPECT_EQ(BitMask(63, 0), ~uint64_t{0});
  EXPECT_EQ(BitMask(51, 48), 0x000f'0000'0000'0000u);
  EXPECT_EQ(BitMask(11, 12), 0u);  // a host address width of 12 leaves no field
  EXPECT_EQ(BitMask(0, 0), 1u);
}

TEST(ClockTest, VirtualClockNeverGoesBack) {
  VirtualClock clock;
  EXPECT_EQ(clock.NowNs(), 0u);
  clock.AdvanceTo(100);
  clock.AdvanceTo(50);
  EXPECT_EQ(clock.NowNs(), 100u);
  EXPECT_TRUE(clock.modelled());
  EXPECT_FALSE(WallClock().modelled());
}

// What a message says is what its reader acts on: address, limit and the flag that moves it.
TEST(ErrorsTest, NameWhatWasWrong) {
  EXPECT_EQ(errors::NotRam(PhysAddr(0xabc000)).message(), "0xabc000 is not memory");
  EXPECT_EQ(errors::UnknownDevice(MakeSourceId(0x42, 3, 1)).message(), "no device 42:03.1");
  EXPECT_EQ(errors::AlreadyMapped(MakeRange(Iova(0x1000), 0x1000)).message(),
            "iova [0x1000, 0x2000) overlaps a mapping");
  const absl::Status limit = errors::EntryLimit(65535);
  EXPECT_EQ(limit.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_NE(limit.message().find("65535"), absl::string_view::npos);
  EXPECT_NE(limit.message().find("--dma_entry_limit"), absl::string_view::npos);
  EXPECT_EQ(errors::QueueError(4).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(errors::InvalidationTimeout().code(), absl::StatusCode::kDeadlineExceeded);
}

}  // namespace
}  // namespace viommu
