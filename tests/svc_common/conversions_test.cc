#include "svc_common/conversions.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "svc_common/cost_presets.h"

namespace viommu {
namespace {

using ::testing::HasSubstr;

TEST(ConversionsTest, EveryCountOfASyncCostSurvives) {
  SyncCost cost;
  uint64_t next = 1;
  for (uint64_t* field :
       {&cost.descriptors, &cost.table_pages_read, &cost.ptes_read, &cost.bytes_read,
        &cost.leaves_visited, &cost.ptes_changed, &cost.dma_maps, &cost.dma_unmaps,
        &cost.dma_map_failures, &cost.pages_pinned, &cost.pages_unpinned, &cost.iotlb_invalidations,
        &cost.shadow_mismatches, &cost.verified_pages, &cost.remote_pages, &cost.remote_bytes,
        &cost.remote_round_trips}) {
    *field = next++;
  }
  // A field added to the struct must be added to the list above, the wire and the conversions.
  ASSERT_EQ(sizeof(SyncCost), (next - 1) * sizeof(uint64_t));
  EXPECT_EQ(FromProto(ToProto(cost)), cost);
}

TEST(ConversionsTest, FaultRecordsSurvive) {
  const vtd::FaultRecord fault{MakeSourceId(1, 2, 3), Iova(0xfffff000),
                               vtd::FaultReason::kReadDenied, true};
  EXPECT_EQ(FromProto(ToProto(fault)), fault);
}

TEST(ConversionsTest, AccessAndSourceIdsAreChecked) {
  EXPECT_EQ(*FromProto(v1::ACCESS_KIND_READ_WRITE), kReadWrite);
  EXPECT_EQ(ToProto(kWriteOnly), v1::ACCESS_KIND_WRITE);
  EXPECT_FALSE(FromProto(v1::ACCESS_KIND_UNSPECIFIED).ok());
  EXPECT_FALSE(FromProto(static_cast<v1::AccessKind>(9)).ok());
  EXPECT_FALSE(SourceIdFromProto(0x10000).ok());
}

TEST(ConversionsTest, PresetsRoundTripAndUnknownConstantsAreRefused) {
  CostModel model;
  model.preset_name = "mine";
  model.leaf_visit_ns = 41.5;
  model.lock_spin_ns = 7;
  const auto back = FromProto(ToProto(model));
  ASSERT_TRUE(back.ok());
  EXPECT_EQ(back->preset_name, "mine");
  EXPECT_EQ(back->leaf_visit_ns, 41.5);
  EXPECT_EQ(back->lock_spin_ns, 7);
  v1::CostPreset wrong = ToProto(model);
  wrong.mutable_constants(0)->set_name("warp_ns");
  EXPECT_THAT(FromProto(wrong).status().message(), HasSubstr("warp_ns"));
  wrong = ToProto(model);
  wrong.mutable_constants(0)->set_value_ns(-1);
  EXPECT_FALSE(FromProto(wrong).ok());
}

TEST(ConversionsTest, TheDefaultPresetIsTheOneOnDisk) {
  const auto model = LoadCostModel("qemu-trap");
  ASSERT_TRUE(model.ok()) << model.status();
  const CostModel defaults;
  EXPECT_EQ(model->submission_ns, defaults.submission_ns);
  EXPECT_EQ(model->leaf_visit_ns, defaults.leaf_visit_ns);
  EXPECT_FALSE(LoadCostModel("no-such-preset").ok());
}

TEST(ConversionsTest, ReasonsTravelInBothKindsOfStatus) {
  const absl::Status status = WithReason(absl::AbortedError("older stream"), "FENCED");
  const absl::Status over_grpc = FromGrpcStatus(ToGrpcStatus(status));
  EXPECT_EQ(over_grpc.code(), absl::StatusCode::kAborted);
  EXPECT_EQ(over_grpc.message(), "older stream");
  EXPECT_EQ(ErrorReason(over_grpc), "FENCED");
  EXPECT_EQ(ErrorReason(FromRpcStatus(ToRpcStatus(status))), "FENCED");
  EXPECT_EQ(ErrorReason(FromGrpcStatus(ToGrpcStatus(absl::NotFoundError("x")))), "NOT_FOUND");
  EXPECT_TRUE(ToGrpcStatus(absl::OkStatus()).ok());
  EXPECT_EQ(CodeLabel(absl::StatusCode::kDeadlineExceeded), "deadline_exceeded");
}

}  // namespace
}  // namespace viommu
