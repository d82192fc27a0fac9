// Entries and fault records, bit by bit as chapters 9 and 11 print them.
#include <gtest/gtest.h>

#include "iommu_core/vtd/fault.h"
#include "iommu_core/vtd/root_context.h"
#include "iommu_core/vtd/second_stage_pte.h"

namespace viommu::vtd {
namespace {

TEST(RootEntryTest, FieldsAndReservedBits) {  // 9.1
  const RootEntry e = RootEntry::Make(PhysAddr(0x12345000));
  EXPECT_EQ(e.lo, 0x12345001u);
  EXPECT_TRUE(e.present());
  EXPECT_EQ(e.context_table(48), PhysAddr(0x12345000));
  EXPECT_EQ(e.reserved_lo(48), 0u);
  const RootEntry all{~uint64_t{0}, ~uint64_t{0}};
  EXPECT_EQ(all.reserved_lo(48), 0xffff'0000'0000'0ffeu);
  EXPECT_EQ(all.reserved_lo(39), 0xffff'ff80'0000'0ffeu);
  EXPECT_EQ(all.reserved_hi(), ~uint64_t{0});
}

TEST(ContextEntryTest, FieldsAndReservedBits) {  // 9.3
  const ContextEntry e = ContextEntry::Make(PhysAddr(0xabcde000), 4, DomainId(0x1234),
                                            TranslationType::kWithDeviceTlb);
  EXPECT_EQ(e.lo, 0xabcde005u);
  EXPECT_EQ(e.hi, 0x123402u);
  EXPECT_TRUE(e.present());
  EXPECT_EQ(e.levels(), 4);
  EXPECT_EQ(e.width_bits(), 48);
  EXPECT_EQ(e.domain_id(), DomainId(0x1234));
  EXPECT_EQ(e.translation_type(), TranslationType::kWithDeviceTlb);
  EXPECT_EQ(ContextEntry::Make(PhysAddr(0), 3, DomainId(2)).width_bits(), 39);
  const ContextEntry all{~uint64_t{0}, ~uint64_t{0}};
  EXPECT_EQ(all.reserved_lo(48), 0xffff'0000'0000'0ff0u);
  // 6:3 are ignored, 7 and 63:24 reserved.
  EXPECT_EQ(all.reserved_hi(), 0xffff'ffff'ff00'0080u);
  EXPECT_EQ(ContextEntry{2}.fault_processing_disabled(), true);
}

TEST(SecondStagePteTest, LeafAndTable) {  // 9.9
  EXPECT_EQ(SecondStagePte::Table(PhysAddr(0x5000)).raw, 0x5003u);
  EXPECT_EQ(SecondStagePte::Leaf(PhysAddr(0x5000), 1, kReadOnly).raw, 0x5001u);
  EXPECT_EQ(SecondStagePte::Leaf(PhysAddr(0x400000), 2, kWriteOnly).raw, 0x400082u);
  // Not present is R = W = 0, whatever else is set.
  EXPECT_FALSE(SecondStagePte{~uint64_t{3}}.present());
  EXPECT_TRUE(SecondStagePte{2}.present());
  // Level 1 has no PS bit: every entry is a leaf.
  EXPECT_TRUE(SecondStagePte{0x5003}.leaf(1));
  EXPECT_FALSE(SecondStagePte{0x5003}.leaf(2));
}

TEST(SecondStagePteTest, AddressKeepsItsFieldOnly) {
  const SecondStagePte all{~uint64_t{0}};
  EXPECT_EQ(all.address(48, 1), PhysAddr(0xffff'ffff'f000));
  EXPECT_EQ(all.address(39, 1), PhysAddr(0x7f'ffff'f000));
  EXPECT_EQ(all.address(48, 2), PhysAddr(0xffff'ffe0'0000));
  EXPECT_EQ(all.address(48, 3), PhysAddr(0xffff'c000'0000));
}

TEST(SecondStagePteTest, Levels) {
  EXPECT_EQ(LevelSize(1), 0x1000u);
  EXPECT_EQ(LevelSize(2), 0x200000u);
  EXPECT_EQ(LevelSize(3), 0x40000000u);
  EXPECT_EQ(WidthOfLevels(3), 39);
  EXPECT_EQ(LevelsOfWidth(48), 4);
  const Iova iova((uint64_t{5} << 39) | (uint64_t{6} << 30) | (uint64_t{7} << 21) | (8 << 12));
  EXPECT_EQ(LevelIndex(iova, 4), 5);
  EXPECT_EQ(LevelIndex(iova, 3), 6);
  EXPECT_EQ(LevelIndex(iova, 2), 7);
  EXPECT_EQ(LevelIndex(iova, 1), 8);
}

TEST(FaultRecordTest, Words) {  // 11.4.7.6
  const FaultRecord r{.source_id = MakeSourceId(0, 3, 0),
                      .page = Iova(0x1234567),
                      .reason = FaultReason::kWriteDenied,
                      .read = false};
  EXPECT_EQ(r.lo(), 0x1234000u);
  EXPECT_EQ(r.hi(), (uint64_t{1} << 63) | (uint64_t{5} << 32) | 0x18);
  FaultRecord read = r;
  read.read = true;
  EXPECT_EQ(read.hi() ^ r.hi(), uint64_t{1} << 62);
}

// 3.14
TEST(InterruptRangeTest, Ends) {
  EXPECT_FALSE(InInterruptRange(0xfedfffff));
  EXPECT_TRUE(InInterruptRange(0xfee00000));
  EXPECT_TRUE(InInterruptRange(0xfeefffff));
  EXPECT_FALSE(InInterruptRange(0xfef00000));
  EXPECT_FALSE(InInterruptRange(0x1fee00000));
}

}  // namespace
}  // namespace viommu::vtd
