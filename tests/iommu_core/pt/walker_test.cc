// The reference walk, fault reason by fault reason (VT-d 7.1.3), over entries typed in by hand.
#include "iommu_core/pt/walker.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "iommu_core/mem/sparse_memory.h"

namespace viommu {
namespace {

using vtd::FaultReason;

constexpr PhysAddr kRoot(0x1000);
constexpr PhysAddr kContext(0x2000);
constexpr PhysAddr kL4(0x3000);
constexpr PhysAddr kL3(0x4000);
constexpr PhysAddr kL2(0x5000);
constexpr PhysAddr kL1(0x6000);
constexpr uint64_t kNotRam = 0x90000000;  // between the two pieces of RAM
constexpr SourceId kSid = MakeSourceId(0x42, 3, 1);
constexpr Iova kIova((uint64_t{1} << 39) | (uint64_t{2} << 30) | (uint64_t{3} << 21) | (4 << 12) |
                     0x123);

// A 4-level table with one 4K page, R and W at every level, domain 7.
class WalkerTest : public testing::Test {
 protected:
  WalkerTest()
      : memory_(
            {{PhysAddr(0), PhysAddr(0x80000000)}, {PhysAddr(0x100000000), PhysAddr(0x200000000)}}) {
    SetRoot(kContext.value() | 1);
    SetContext(kL4.value() | 1, 2 | 7 << 8);
    Set(kL4, 1, kL3.value() | 3);
    Set(kL3, 2, kL2.value() | 3);
    Set(kL2, 3, kL1.value() | 3);
    Set(kL1, 4, 0x100007000 | 3);
  }

  void SetRoot(uint64_t lo, uint64_t hi = 0) {
    Store(kRoot + 16 * 0x42, lo);
    Store(kRoot + 16 * 0x42 + 8, hi);
  }
  void SetContext(uint64_t lo, uint64_t hi) {
    Store(kContext + 16 * 0x19, lo);
    Store(kContext + 16 * 0x19 + 8, hi);
  }
  void Set(PhysAddr table, uint64_t index, uint64_t raw) { Store(table + 8 * index, raw); }
  void Store(PhysAddr at, uint64_t raw) { ASSERT_TRUE(memory_.Write64(at, raw)); }

  Translation Walk(Access access = kReadOnly, Iova iova = kIova) {
    return Walker(memory_, rules_).Translate(root_, kSid, iova, access);
  }
  FaultReason Reason(Access access = kReadOnly, Iova iova = kIova) {
    return Walk(access, iova).reason;
  }

  SparseMemory memory_;
  WalkRules rules_{vtd::QemuCapabilities(48, true), 48};
  PhysAddr root_ = kRoot;
};

TEST_F(WalkerTest, FourLevels) {
  const Translation t = Walk(kReadWrite);
  EXPECT_EQ(t.reason, FaultReason::kNone);
  EXPECT_EQ(t.address, PhysAddr(0x100007123));
  EXPECT_EQ(t.page_size, kPageSize);
  EXPECT_EQ(t.access, kReadWrite);
  EXPECT_EQ(t.domain_id, DomainId(7));
  EXPECT_FALSE(t.pass_through);
}

TEST_F(WalkerTest, ThreeLevels) {
  SetContext(kL3.value() | 1, 1 | 7 << 8);
  EXPECT_EQ(Walk(kReadOnly, Iova(kIova.value() & ((uint64_t{1} << 39) - 1))).address,
            PhysAddr(0x100007123));
}

TEST_F(WalkerTest, ReadsAsManyEntriesAsTheTablesHave) {
  const Walker walker(memory_, rules_);
  EXPECT_EQ(walker.LookupContext(kRoot, kSid).entries_read, 4);
  EXPECT_EQ(walker.WalkTable(kL4, 4, kIova, kReadOnly).entries_read, 4);
  EXPECT_EQ(walker.WalkTable(kL3, 3, Iova(0x80604000), kReadOnly).entries_read, 3);
}

TEST_F(WalkerTest, LargeLeaves) {
  Set(kL2, 3, 0x40000000 | 0x83);
  Translation t = Walk();
  EXPECT_EQ(t.page_size, uint64_t{1} << 21);
  EXPECT_EQ(t.address, PhysAddr(0x40004123));
  Set(kL3, 2, 0x140000000 | 0x83);
  t = Walk();
  EXPECT_EQ(t.page_size, uint64_t{1} << 30);
  EXPECT_EQ(t.address, PhysAddr(0x140604123));
}

TEST_F(WalkerTest, Reason1RootNotPresent) {
  SetRoot(0);
  EXPECT_EQ(Reason(), FaultReason::kRootNotPresent);
  // Nothing else in an absent entry is looked at.
  SetRoot(~uint64_t{1}, ~uint64_t{0});
  EXPECT_EQ(Reason(), FaultReason::kRootNotPresent);
}

TEST_F(WalkerTest, Reason2ContextNotPresent) {
  SetContext(0, 0);
  EXPECT_EQ(Reason(), FaultReason::kContextNotPresent);
  EXPECT_FALSE(Walk().fault_processing_disabled);
  // FPD counts in an absent entry too (9.3).
  SetContext(2, 0);
  EXPECT_EQ(Reason(), FaultReason::kContextNotPresent);
  EXPECT_TRUE(Walk().fault_processing_disabled);
}

TEST_F(WalkerTest, Reason3ContextInvalid) {
  // AW: 0 and 3..7 are not in SAGAW.
  for (const uint64_t aw : {0, 3, 4, 5, 6, 7}) {
    SetContext(kL4.value() | 1, aw | 7 << 8);
    EXPECT_EQ(Reason(), FaultReason::kContextInvalid) << "AW " << aw;
  }
  // TT: 1 needs ECAP.DT, 3 is reserved.
  SetContext(kL4.value() | 1 | 1 << 2, 2 | 7 << 8);
  EXPECT_EQ(Reason(), FaultReason::kContextInvalid);
  rules_.caps.ecap |= vtd::ecap::Dt::kMask;
  EXPECT_EQ(Reason(), FaultReason::kNone);
  SetContext(kL4.value() | 1 | 3 << 2, 2 | 7 << 8);
  EXPECT_EQ(Reason(), FaultReason::kContextInvalid);
  // Pass-through needs ECAP.PT.
  SetContext(kL4.value() | 1 | 2 << 2, 2 | 7 << 8);
  EXPECT_EQ(Reason(), FaultReason::kNone);
  rules_.caps.ecap &= ~vtd::ecap::Pt::kMask;
  EXPECT_EQ(Reason(), FaultReason::kContextInvalid);
}

TEST_F(WalkerTest, Reason3TableOfTheContextEntryNotReadable) {
  SetContext(kNotRam | 1, 2 | 7 << 8);
  EXPECT_EQ(Reason(), FaultReason::kContextInvalid);
}

// 3.6: bounded by the smaller of MGAW and the width of the context entry.
TEST_F(WalkerTest, Reason4AddressBeyondWidth) {
  EXPECT_EQ(Reason(kReadOnly, Iova(uint64_t{1} << 48)), FaultReason::kAddressBeyondWidth);
  EXPECT_EQ(Reason(kReadOnly, Iova(~uint64_t{0})), FaultReason::kAddressBeyondWidth);
  SetContext(kL3.value() | 1, 1 | 7 << 8);
  EXPECT_EQ(Reason(kReadOnly, Iova(uint64_t{1} << 39)), FaultReason::kAddressBeyondWidth);
  EXPECT_NE(Reason(kReadOnly, Iova((uint64_t{1} << 39) - 1)), FaultReason::kAddressBeyondWidth);
}

// 3.6.1: an access needs its permission at every level.
TEST_F(WalkerTest, Reasons5And6Permissions) {
  const struct {
    PhysAddr table;
    uint64_t index;
    uint64_t entry;
  } levels[] = {
      {kL4, 1, kL3.value()}, {kL3, 2, kL2.value()}, {kL2, 3, kL1.value()}, {kL1, 4, 0x100007000}};
  for (const auto& level : levels) {
    Set(level.table, level.index, level.entry | 1);
    EXPECT_EQ(Reason(kReadOnly), FaultReason::kNone);
    EXPECT_EQ(Reason(kWriteOnly), FaultReason::kWriteDenied);
    EXPECT_EQ(Walk(kReadOnly).access, kReadOnly);
    Set(level.table, level.index, level.entry | 2);
    EXPECT_EQ(Reason(kReadOnly), FaultReason::kReadDenied);
    EXPECT_EQ(Reason(kWriteOnly), FaultReason::kNone);
    Set(level.table, level.index, level.entry);
    EXPECT_EQ(Reason(kReadOnly), FaultReason::kReadDenied);
    EXPECT_EQ(Reason(kWriteOnly), FaultReason::kWriteDenied);
    Set(level.table, level.index, level.entry | 3);
  }
  // R above, W below: neither access passes.
  Set(kL3, 2, kL2.value() | 1);
  Set(kL1, 4, 0x100007000 | 2);
  EXPECT_EQ(Reason(kReadOnly), FaultReason::kReadDenied);
  EXPECT_EQ(Reason(kWriteOnly), FaultReason::kWriteDenied);
}

TEST_F(WalkerTest, Reason7TableBelowNotReadable) {
  Set(kL4, 1, kNotRam | 3);
  EXPECT_EQ(Reason(), FaultReason::kTableAccess);
  Set(kL4, 1, kL3.value() | 3);
  Set(kL2, 3, kNotRam | 3);
  EXPECT_EQ(Reason(), FaultReason::kTableAccess);
}

TEST_F(WalkerTest, Reason8RootTableNotReadable) {
  root_ = PhysAddr(kNotRam);
  EXPECT_EQ(Reason(), FaultReason::kRootTableAccess);
}

TEST_F(WalkerTest, Reason9ContextTableNotReadable) {
  SetRoot(kNotRam | 1);
  EXPECT_EQ(Reason(), FaultReason::kContextTableAccess);
}

TEST_F(WalkerTest, ReasonARootReserved) {
  for (int bit = 1; bit < 64; ++bit) {
    if (bit >= 12 && bit < 48) continue;
    SetRoot(kContext.value() | 1 | uint64_t{1} << bit);
    EXPECT_EQ(Reason(), FaultReason::kRootReserved) << "bit " << bit;
  }
  for (int bit = 0; bit < 64; ++bit) {
    SetRoot(kContext.value() | 1, uint64_t{1} << bit);
    EXPECT_EQ(Reason(), FaultReason::kRootReserved) << "bit " << 64 + bit;
  }
}

TEST_F(WalkerTest, ReasonBContextReserved) {
  for (int bit = 4; bit < 64; ++bit) {
    if (bit >= 12 && bit < 48) continue;
    SetContext(kL4.value() | 1 | uint64_t{1} << bit, 2 | 7 << 8);
    EXPECT_EQ(Reason(), FaultReason::kContextReserved) << "bit " << bit;
  }
  for (int bit = 3; bit < 64; ++bit) {
    SetContext(kL4.value() | 1, 2 | uint64_t{1} << bit);
    // 6:3 are ignored, 23:8 are the domain id.
    const bool free = (bit >= 3 && bit <= 6) || (bit >= 8 && bit <= 23);
    EXPECT_EQ(Reason(), free ? FaultReason::kNone : FaultReason::kContextReserved)
        << "bit " << 64 + bit;
  }
}

// 9.9, level by level: bits that may be set in a present entry without changing the outcome.
TEST_F(WalkerTest, ReasonCPteReserved) {
  // A, D and software bits 10, 61:52, 63; R, W and the address are not tried.
  const auto ignored = [](int bit) {
    return (bit >= 2 && bit <= 6) || (bit >= 8 && bit <= 10) || (bit >= 52 && bit <= 61) ||
           bit == 63;
  };
  struct Case {
    const char* name;
    PhysAddr table;
    uint64_t index;
    uint64_t entry;
    int address_low;
  };
  const std::vector<Case> cases = {{"level 4", kL4, 1, kL3.value() | 3, 12},
                                   {"level 3 table", kL3, 2, kL2.value() | 3, 12},
                                   {"level 2 table", kL2, 3, kL1.value() | 3, 12},
                                   {"level 1", kL1, 4, 0x100007003, 12},
                                   {"level 2 leaf", kL2, 3, 0x40000083, 21}};
  for (const Case& c : cases) {
    for (int bit = 2; bit < 64; ++bit) {
      if (bit >= c.address_low && bit < 48) continue;
      if (bit == 7 && (c.table == kL3 || c.table == kL2)) continue;  // PS
      Set(c.table, c.index, c.entry | uint64_t{1} << bit);
      // Level 1 has no PS: bit 7 is ignored there.
      const bool ok = ignored(bit) || (bit == 7 && c.table == kL1);
      EXPECT_EQ(Reason(), ok ? FaultReason::kNone : FaultReason::kPteReserved)
          << c.name << ", bit " << bit;
    }
    Set(c.table, c.index, c.entry);
  }
}

TEST_F(WalkerTest, LeavesThatTheUnitDoesNotSupport) {
  Set(kL3, 2, 0x140000000 | 0x83);
  EXPECT_EQ(Reason(), FaultReason::kNone);
  rules_.caps.cap &= ~vtd::cap::Sslps::Make(2);
  EXPECT_EQ(Reason(), FaultReason::kPteReserved);
  Set(kL3, 2, kL2.value() | 3);
  Set(kL2, 3, 0x40000000 | 0x83);
  EXPECT_EQ(Reason(), FaultReason::kNone);
  rules_.caps.cap &= ~vtd::cap::Sslps::kMask;
  EXPECT_EQ(Reason(), FaultReason::kPteReserved);
}

// SNP needs ECAP.SC; TM needs ECAP.DT.
TEST_F(WalkerTest, BitsThatCapabilitiesDefine) {
  Set(kL1, 4, 0x100007003 | 1 << 11);
  EXPECT_EQ(Reason(), FaultReason::kPteReserved);
  rules_.caps.ecap |= vtd::ecap::Sc::kMask;
  EXPECT_EQ(Reason(), FaultReason::kNone);
  Set(kL1, 4, 0x100007003 | uint64_t{1} << 62);
  EXPECT_EQ(Reason(), FaultReason::kPteReserved);
  rules_.caps.ecap |= vtd::ecap::Dt::kMask;
  EXPECT_EQ(Reason(), FaultReason::kNone);
}

// An entry that is not present has no reserved bits; one that is reports them before permissions.
TEST_F(WalkerTest, ReservedBitsOnlyWherePresent) {
  Set(kL1, 4, uint64_t{1} << 62);
  EXPECT_EQ(Reason(kReadOnly), FaultReason::kReadDenied);
  Set(kL1, 4, uint64_t{1} << 62 | 1);
  EXPECT_EQ(Reason(kWriteOnly), FaultReason::kPteReserved);
}

TEST_F(WalkerTest, ReasonEResultInTheInterruptRange) {
  Set(kL1, 4, 0xfee00000 | 3);
  EXPECT_EQ(Reason(), FaultReason::kInterruptRangeOutput);
  // A large page that only touches the window is blocked where the result lies in it (3.14).
  Set(kL2, 3, 0xfee00000 | 0x83);
  EXPECT_EQ(Reason(), FaultReason::kInterruptRangeOutput);
  EXPECT_EQ(Reason(kReadOnly, Iova(kIova.value() + 0x100000)), FaultReason::kNone);
}

TEST_F(WalkerTest, PassThrough) {
  SetContext(1 | 2 << 2, 2 | 7 << 8);
  const Translation t = Walk(kReadWrite, Iova(0x12345678));
  EXPECT_EQ(t.reason, FaultReason::kNone);
  EXPECT_TRUE(t.pass_through);
  EXPECT_EQ(t.address, PhysAddr(0x12345678));
  EXPECT_EQ(t.domain_id, DomainId(7));
  EXPECT_EQ(Reason(kReadOnly, Iova(uint64_t{1} << 48)), FaultReason::kAddressBeyondWidth);
}

// 7.1.3: which reasons FPD keeps from being recorded.
TEST(FaultReasonTest, QualifiedByFpd) {
  for (int r = 1; r <= 0xe; ++r) {
    const bool qualified = r != 1 && r != 8 && r != 9 && r != 0xa;
    EXPECT_EQ(vtd::QualifiedByFpd(static_cast<FaultReason>(r)), qualified) << r;
  }
}

class ForEachLeafTest : public WalkerTest {
 protected:
  std::vector<LeafMapping> Leaves(IovaRange range, uint64_t max_entries = 100000) {
    std::vector<LeafMapping> out;
    status_ =
        Walker(memory_, rules_).ForEachLeaf(kL4, 4, range, max_entries, [&](const LeafMapping& m) {
          out.push_back(m);
        });
    return out;
  }
  static constexpr IovaRange kAll{Iova(0), Iova(uint64_t{1} << 48)};
  absl::Status status_;
};

TEST_F(ForEachLeafTest, AscendingWithEffectiveAccess) {
  Set(kL1, 5, 0x8000 | 1);
  Set(kL2, 1, 0x40000000 | 0x83);
  Set(kL3, 9, 0x140000000 | 0x83);
  Set(kL4, 1, kL3.value() | 1);  // read-only from the top
  const auto leaves = Leaves(kAll);
  ASSERT_TRUE(status_.ok());
  ASSERT_EQ(leaves.size(), 4u);
  EXPECT_EQ(leaves[0].iova, Iova((uint64_t{1} << 39) | (uint64_t{2} << 30) | (1 << 21)));
  EXPECT_EQ(leaves[0].size_bytes, uint64_t{1} << 21);
  EXPECT_EQ(leaves[1].iova, Iova(AlignDown(kIova.value(), kPageSize)));
  EXPECT_EQ(leaves[2].address, PhysAddr(0x8000));
  EXPECT_EQ(leaves[3].size_bytes, uint64_t{1} << 30);
  for (const LeafMapping& m : leaves) EXPECT_EQ(m.access, kReadOnly);
}

TEST_F(ForEachLeafTest, LeavesThatOverlapTheRangeAreGivenWhole) {
  Set(kL2, 3, 0x40000000 | 0x83);
  const auto leaves = Leaves(MakeRange(Iova(kIova.value()), 1));
  ASSERT_EQ(leaves.size(), 1u);
  EXPECT_EQ(leaves[0].iova.value(), AlignDown(kIova.value(), uint64_t{1} << 21));
  EXPECT_TRUE(Leaves(MakeRange(Iova(0), 0x1000)).empty());
}

TEST_F(ForEachLeafTest, WhatWouldFaultGivesNoLeaf) {
  Set(kL1, 5, 0x8003 | uint64_t{1} << 62);  // reserved bit
  Set(kL2, 4, kNotRam | 3);                 // unreadable table
  EXPECT_EQ(Leaves(kAll).size(), 1u);
}

// Tables that point to themselves describe 2^36 leaves with one page: the walk ends at its bound.
TEST_F(ForEachLeafTest, ATableOfItselfEndsInBoundedWork) {
  for (uint64_t i = 0; i < 512; ++i) Set(kL4, i, kL4.value() | 3);
  const auto leaves = Leaves(kAll, 10000);
  EXPECT_EQ(status_.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_LT(leaves.size(), 10000u);
  // One page of it is one walk.
  EXPECT_EQ(Leaves(MakeRange(Iova(0), kPageSize), 4).size(), 1u);
  EXPECT_TRUE(status_.ok());
}

// The walk of every page gives what the flattening gives: two ways through the same entries.
TEST_F(ForEachLeafTest, AgreesWithSingleWalks) {
  for (uint64_t i = 0; i < 512; ++i) {
    Set(kL1, i, i % 5 == 0 ? 0 : (i << 12 | i % 4 | (i % 7 == 0 ? uint64_t{1} << 62 : 0)));
  }
  const uint64_t first = AlignDown(kIova.value(), uint64_t{1} << 21);
  const auto leaves = Leaves(MakeRange(Iova(first), uint64_t{1} << 21));
  size_t at = 0;
  for (uint64_t i = 0; i < 512; ++i) {
    const TableWalk walk =
        Walker(memory_, rules_).WalkTable(kL4, 4, Iova(first + i * kPageSize), {});
    if (walk.reason != FaultReason::kNone) continue;
    ASSERT_LT(at, leaves.size());
    EXPECT_EQ(leaves[at].iova.value(), first + i * kPageSize);
    EXPECT_EQ(leaves[at].address, walk.page);
    EXPECT_EQ(leaves[at].access, walk.access);
    ++at;
  }
  EXPECT_EQ(at, leaves.size());
}

}  // namespace
}  // namespace viommu
