// The checker must be able to fail: for each rule a record that breaks it and one that just does
// not.
#include "tests/integration/history.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace viommu {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr uint64_t kIova = 0xfffff000;
constexpr uint64_t kPage = 4096;

Op Make(Op::Kind kind, uint64_t mapping, int64_t start, int64_t end) {
  Op op;
  op.kind = kind;
  op.mapping = mapping;
  op.iova = kIova;
  op.size_bytes = kPage;
  op.start_ns = start;
  op.end_ns = end;
  return op;
}
Op Map(uint64_t mapping, int64_t start, int64_t end) {
  return Make(Op::Kind::kMap, mapping, start, end);
}
Op Unmap(uint64_t mapping, int64_t start, int64_t end) {
  return Make(Op::Kind::kUnmap, mapping, start, end);
}
Op Read(uint64_t mapping, int64_t start, int64_t end, uint64_t data) {
  Op op = Make(Op::Kind::kRead, mapping, start, end);
  op.data = data;
  return op;
}
Op Write(uint64_t mapping, int64_t start, int64_t end, uint64_t data) {
  Op op = Make(Op::Kind::kWrite, mapping, start, end);
  op.data = data;
  return op;
}
Op Blocked(Op op) {
  op.fault_reason = 6;
  op.data = 0;
  return op;
}
Op Failed(Op op, bool nothing_done = false,
          absl::StatusCode code = absl::StatusCode::kDeadlineExceeded) {
  op.code = code;
  op.nothing_done = nothing_done;
  return op;
}
Op Elsewhere(Op op) {
  op.iova = 0x1000;
  return op;
}
std::vector<std::string> Check(std::vector<Op> ops, std::vector<Outage> outages = {}) {
  return CheckHistory({std::move(ops), std::move(outages)});
}

TEST(HistoryTest, AGoodLifeIsAccepted) {
  EXPECT_THAT(Check({Map(1, 0, 10), Write(1, 11, 12, 7), Read(1, 13, 14, 7), Unmap(1, 20, 30),
                     Blocked(Read(1, 31, 32, 0)), Map(2, 33, 40), Read(2, 41, 42, 0)}),
              IsEmpty());
}

TEST(HistoryTest, AnAccessAfterTheUnmapMustBeBlocked) {
  EXPECT_THAT(Check({Map(1, 0, 10), Unmap(1, 20, 30), Read(1, 31, 32, 0)}),
              ElementsAre(HasSubstr("reached memory after its unmap was reported complete")));
  // Begun before the unmap's answer: either is right.
  EXPECT_THAT(Check({Map(1, 0, 10), Unmap(1, 20, 30), Read(1, 29, 32, 0)}), IsEmpty());
  // Somebody else may have the IOVA by now.
  EXPECT_THAT(Check({Map(1, 0, 10), Unmap(1, 20, 30), Map(2, 30, 40), Read(1, 35, 36, 0)}),
              IsEmpty());
  EXPECT_THAT(
      Check({Map(1, 0, 10), Unmap(1, 20, 30), Elsewhere(Map(2, 30, 40)), Read(1, 35, 36, 0)}),
      ElementsAre(HasSubstr("reached memory")));
}

TEST(HistoryTest, ACompleteMappingMustWork) {
  EXPECT_THAT(Check({Map(1, 0, 10), Blocked(Read(1, 11, 12, 0))}),
              ElementsAre(HasSubstr("though the mapping was complete")));
  EXPECT_THAT(Check({Map(1, 0, 10), Blocked(Read(1, 11, 22, 0)), Unmap(1, 20, 30)}), IsEmpty());
}

TEST(HistoryTest, MemoryKeepsWhatWasWritten) {
  EXPECT_THAT(Check({Map(1, 0, 10), Write(1, 11, 12, 7), Read(1, 13, 14, 8)}),
              ElementsAre(HasSubstr("not the 0x7 last written")));
  EXPECT_THAT(Check({Map(1, 0, 10), Read(1, 13, 14, 8)}), IsEmpty());
  const Op no_answer = Failed(Write(1, 13, 14, 8), false, absl::StatusCode::kUnavailable);
  for (const uint64_t data : {7, 8}) {
    EXPECT_THAT(Check({Map(1, 0, 10), Write(1, 11, 12, 7), no_answer, Read(1, 15, 16, data)}),
                IsEmpty());
  }
  EXPECT_THAT(Check({Map(1, 0, 10), Write(1, 11, 12, 7), no_answer, Read(1, 15, 16, 9)}),
              ElementsAre(HasSubstr("not the 0x7 last written")));
}

TEST(HistoryTest, AnIovaHasOneOwner) {
  EXPECT_THAT(Check({Map(1, 0, 10), Map(2, 20, 30)}), ElementsAre(HasSubstr("was still there")));
  EXPECT_THAT(Check({Map(1, 0, 10), Map(2, 20, 30), Unmap(1, 30, 40)}),
              ElementsAre(HasSubstr("was still there")));
  EXPECT_THAT(Check({Map(1, 0, 10), Map(2, 5, 30)}), ElementsAre(HasSubstr("was still there")));
  EXPECT_THAT(Check({Map(1, 0, 10), Unmap(1, 19, 40), Map(2, 20, 30)}), IsEmpty());
  Op other_domain = Map(2, 20, 30);
  other_domain.domain = 1;
  EXPECT_THAT(Check({Map(1, 0, 10), other_domain}), IsEmpty());
  Op inside = Map(2, 20, 30);
  inside.iova = kIova - kPage;
  inside.size_bytes = 2 * kPage;
  EXPECT_THAT(Check({Map(1, 0, 10), inside}), ElementsAre(HasSubstr("was still there")));
}

TEST(HistoryTest, AFailedUnmapsIovaRestsUntilSomethingIsCompleted) {
  const Op map = Map(1, 0, 10);
  const Op failed = Failed(Unmap(1, 20, 30));
  EXPECT_THAT(Check({map, failed, Map(2, 31, 40)}),
              ElementsAre(HasSubstr("nothing was completed since")));
  EXPECT_THAT(Check({map, failed, Elsewhere(Map(3, 31, 40)), Map(2, 41, 50)}), IsEmpty());
  // Completed before the failure: vouches for nothing.
  EXPECT_THAT(Check({map, Elsewhere(Map(3, 11, 12)), failed, Map(2, 31, 40)}),
              ElementsAre(HasSubstr("nothing was completed since")));
  EXPECT_THAT(Check({map, failed, Failed(Elsewhere(Map(3, 31, 35))), Map(2, 36, 40)}),
              ElementsAre(HasSubstr("nothing was completed since")));
  // A device may reach it until something later is completed, and not after.
  EXPECT_THAT(Check({map, failed, Read(1, 31, 32, 0)}), IsEmpty());
  EXPECT_THAT(Check({map, failed, Elsewhere(Map(3, 31, 40)), Read(1, 41, 42, 0)}),
              ElementsAre(HasSubstr("reached memory")));
}

TEST(HistoryTest, NothingIsLostOrRunTwice) {
  EXPECT_THAT(Check({Map(1, 0, 10), Unmap(1, 20, 30), Unmap(1, 31, 40)}),
              ElementsAre(HasSubstr("ran a second time")));
  EXPECT_THAT(Check({Map(1, 0, 10), Failed(Unmap(1, 20, 30)), Unmap(1, 31, 40)}),
              ElementsAre(HasSubstr("ran a second time")));
  EXPECT_THAT(Check({Map(1, 0, 10), Failed(Unmap(1, 20, 30), true), Unmap(1, 31, 40)}), IsEmpty());
  EXPECT_THAT(Check({Map(1, 0, 10), Failed(Unmap(1, 20, 30), false, absl::StatusCode::kNotFound)}),
              ElementsAre(HasSubstr("was lost")));
  EXPECT_THAT(Check({Unmap(9, 20, 30)}), ElementsAre(HasSubstr("never made")));
  EXPECT_THAT(Check({Map(1, 0, 10), Map(1, 20, 30)}), ElementsAre(HasSubstr("answered twice")));
  EXPECT_THAT(Check({Map(1, 0, 10), Failed(Unmap(1, 20, 30), false, absl::StatusCode::kInternal)}),
              ElementsAre(HasSubstr("INTERNAL")));
}

TEST(HistoryTest, NothingIsDoneWithoutAHypervisor) {
  EXPECT_THAT(Check({Map(1, 0, 10), Unmap(1, 110, 120)}, {{100, 200}}),
              ElementsAre(HasSubstr("while there was no hypervisor")));
  EXPECT_THAT(Check({Map(1, 0, 10), Unmap(1, 110, 210)}, {{100, 200}}), IsEmpty());
  EXPECT_THAT(Check({Map(1, 0, 10), Failed(Unmap(1, 110, 120))}, {{100, 200}}), IsEmpty());
}

TEST(HistoryTest, TotalsTellWhatTheRecordCannot) {
  const History history = {{Map(1, 0, 10), Elsewhere(Map(2, 11, 20)), Unmap(1, 21, 30)}, {}};
  EXPECT_THAT(CheckTotals(history, {2, 1, kPage}), IsEmpty());
  EXPECT_THAT(CheckTotals(history, {3, 1, kPage}), ElementsAre(HasSubstr("maps done")));
  EXPECT_THAT(CheckTotals(history, {2, 2, kPage}), ElementsAre(HasSubstr("unmaps done")));
  EXPECT_THAT(CheckTotals(history, {2, 1, 2 * kPage}), ElementsAre(HasSubstr("IOVA bytes")));
  const std::vector<LiveMapping> live = LiveMappings(history);
  ASSERT_EQ(live.size(), 1u);
  EXPECT_EQ(live[0].mapping, 2u);
  EXPECT_EQ(live[0].iova, 0x1000u);
}

}  // namespace
}  // namespace viommu
