// Between the wire's messages and the core's plain structs.
#ifndef VIOMMU_SVC_COMMON_CONVERSIONS_H_
#define VIOMMU_SVC_COMMON_CONVERSIONS_H_

#include <grpcpp/support/status.h>

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "google/rpc/status.pb.h"
#include "iommu_core/base/cost_model.h"
#include "iommu_core/base/sync_cost.h"
#include "iommu_core/base/types.h"
#include "iommu_core/vtd/fault.h"
#include "viommu/v1/types.pb.h"

namespace viommu {

v1::SyncCost ToProto(const SyncCost& cost);
SyncCost FromProto(const v1::SyncCost& cost);

v1::FaultRecord ToProto(const vtd::FaultRecord& fault);
// A reason outside 1..0xd or a source id above 16 bits is cut to what a record can hold.
vtd::FaultRecord FromProto(const v1::FaultRecord& fault);

// InvalidArgument: unspecified or unknown.
absl::StatusOr<Access> FromProto(v1::AccessKind kind);
v1::AccessKind ToProto(Access access);

// Constants that the preset does not name keep CostModel's own value. InvalidArgument: a name that
// CostModel does not know, or a negative or non-finite value.
absl::StatusOr<CostModel> FromProto(const v1::CostPreset& preset);
v1::CostPreset ToProto(const CostModel& model);

// InvalidArgument: above 16 bits.
absl::StatusOr<SourceId> SourceIdFromProto(uint32_t source_id);

// The reason travels as an ErrorInfo.
google::rpc::Status ToRpcStatus(const absl::Status& status);
absl::Status FromRpcStatus(const google::rpc::Status& status);

// Gives a status the reason that programs act on, UPPER_SNAKE_CASE.
absl::Status WithReason(absl::Status status, const std::string& reason);
// With an ErrorInfo{reason, "viommu"} in the details (AIP-193); without WithReason the code's name.
grpc::Status ToGrpcStatus(const absl::Status& status);
absl::Status FromGrpcStatus(const grpc::Status& status);
// What WithReason set, on this side or on the peer's; empty if nothing did.
std::string ErrorReason(const absl::Status& status);

// "ok", "not_found", ...: label value of metrics.
std::string CodeLabel(absl::StatusCode code);

}  // namespace viommu

#endif  // VIOMMU_SVC_COMMON_CONVERSIONS_H_
