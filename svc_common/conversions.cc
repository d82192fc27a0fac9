#include "svc_common/conversions.h"

#include <array>
#include <cmath>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/cord.h"
#include "absl/strings/str_cat.h"
#include "absl/types/optional.h"
#include "google/rpc/error_details.pb.h"

namespace viommu {
namespace {

constexpr std::array<std::pair<const char*, double CostModel::*>, 13> kConstants = {{
    {"map_update_ns", &CostModel::map_update_ns},
    {"unmap_update_ns", &CostModel::unmap_update_ns},
    {"queue_build_ns", &CostModel::queue_build_ns},
    {"submission_ns", &CostModel::submission_ns},
    {"descriptor_ns", &CostModel::descriptor_ns},
    {"leaf_visit_ns", &CostModel::leaf_visit_ns},
    {"pte_read_ns", &CostModel::pte_read_ns},
    {"bulk_read_ns_per_kib", &CostModel::bulk_read_ns_per_kib},
    {"pte_change_ns", &CostModel::pte_change_ns},
    {"dma_map_ns", &CostModel::dma_map_ns},
    {"dma_unmap_ns", &CostModel::dma_unmap_ns},
    {"pin_page_ns", &CostModel::pin_page_ns},
    {"hw_invalidation_ns", &CostModel::hw_invalidation_ns},
}};
constexpr const char* kLockSpin = "lock_spin_ns";

constexpr const char* kReasonPayload = "viommu/reason";

}  // namespace

v1::SyncCost ToProto(const SyncCost& cost) {
  v1::SyncCost out;
  out.set_descriptor_count(cost.descriptors);
  out.set_table_pages_read(cost.table_pages_read);
  out.set_ptes_read(cost.ptes_read);
  out.set_bytes_read(cost.bytes_read);
  out.set_leaves_visited(cost.leaves_visited);
  out.set_ptes_changed(cost.ptes_changed);
  out.set_dma_maps(cost.dma_maps);
  out.set_dma_unmaps(cost.dma_unmaps);
  out.set_dma_map_failures(cost.dma_map_failures);
  out.set_pages_pinned(cost.pages_pinned);
  out.set_pages_unpinned(cost.pages_unpinned);
  out.set_iotlb_invalidations(cost.iotlb_invalidations);
  out.set_shadow_mismatches(cost.shadow_mismatches);
  out.set_verified_pages(cost.verified_pages);
  out.set_remote_pages(cost.remote_pages);
  out.set_remote_bytes(cost.remote_bytes);
  out.set_remote_round_trips(cost.remote_round_trips);
  return out;
}

SyncCost FromProto(const v1::SyncCost& cost) {
  SyncCost out;
  out.descriptors = cost.descriptor_count();
  out.table_pages_read = cost.table_pages_read();
  out.ptes_read = cost.ptes_read();
  out.bytes_read = cost.bytes_read();
  out.leaves_visited = cost.leaves_visited();
  out.ptes_changed = cost.ptes_changed();
  out.dma_maps = cost.dma_maps();
  out.dma_unmaps = cost.dma_unmaps();
  out.dma_map_failures = cost.dma_map_failures();
  out.pages_pinned = cost.pages_pinned();
  out.pages_unpinned = cost.pages_unpinned();
  out.iotlb_invalidations = cost.iotlb_invalidations();
  out.shadow_mismatches = cost.shadow_mismatches();
  out.verified_pages = cost.verified_pages();
  out.remote_pages = cost.remote_pages();
  out.remote_bytes = cost.remote_bytes();
  out.remote_round_trips = cost.remote_round_trips();
  return out;
}

v1::FaultRecord ToProto(const vtd::FaultRecord& fault) {
  v1::FaultRecord out;
  out.set_source_id(fault.source_id.value());
  out.set_iova(fault.page.value());
  out.set_reason(static_cast<uint32_t>(fault.reason));
  out.set_read(fault.read);
  return out;
}

vtd::FaultRecord FromProto(const v1::FaultRecord& fault) {
  vtd::FaultRecord out;
  out.source_id = SourceId(static_cast<uint16_t>(fault.source_id()));
  out.page = Iova(AlignDown(fault.iova(), kPageSize));
  out.reason = static_cast<vtd::FaultReason>(fault.reason() & 0xff);
  out.read = fault.read();
  return out;
}

absl::StatusOr<Access> FromProto(v1::AccessKind kind) {
  switch (kind) {
    case v1::ACCESS_KIND_READ:
      return kReadOnly;
    case v1::ACCESS_KIND_WRITE:
      return kWriteOnly;
    case v1::ACCESS_KIND_READ_WRITE:
      return kReadWrite;
    default:
      return absl::InvalidArgumentError("access must be ACCESS_KIND_READ, _WRITE or _READ_WRITE");
  }
}

v1::AccessKind ToProto(Access access) {
  return static_cast<v1::AccessKind>((access.read ? 1 : 0) | (access.write ? 2 : 0));
}

absl::StatusOr<CostModel> FromProto(const v1::CostPreset& preset) {
  CostModel model;
  if (!preset.name().empty()) model.preset_name = preset.name();
  for (const v1::CostConstant& constant : preset.constants()) {
    double CostModel::*field = nullptr;
    for (const auto& [name, member] : kConstants) {
      if (constant.name() == name) field = member;
    }
    if (constant.name() == kLockSpin) field = &CostModel::lock_spin_ns;
    if (field == nullptr) {
      return absl::InvalidArgumentError(absl::StrCat(
          "cost preset '", preset.name(), "': unknown constant '", constant.name(), "'"));
    }
    if (!std::isfinite(constant.value_ns()) || constant.value_ns() < 0) {
      return absl::InvalidArgumentError(absl::StrCat("cost preset '", preset.name(), "': '",
                                                     constant.name(),
                                                     "' must be a number of nanoseconds >= 0"));
    }
    model.*field = constant.value_ns();
  }
  return model;
}

v1::CostPreset ToProto(const CostModel& model) {
  v1::CostPreset preset;
  preset.set_name(model.preset_name);
  const auto add = [&](const char* name, double value) {
    v1::CostConstant* constant = preset.add_constants();
    constant->set_name(name);
    constant->set_value_ns(value);
  };
  for (const auto& [name, member] : kConstants) add(name, model.*member);
  add(kLockSpin, model.lock_spin_ns);
  return preset;
}

absl::StatusOr<SourceId> SourceIdFromProto(uint32_t source_id) {
  if (source_id > 0xffff) {
    return absl::InvalidArgumentError(
        absl::StrCat("source id ", source_id, " does not fit 16 bits (bus, device, function)"));
  }
  return SourceId(static_cast<uint16_t>(source_id));
}

absl::Status WithReason(absl::Status status, const std::string& reason) {
  status.SetPayload(kReasonPayload, absl::Cord(reason));
  return status;
}

std::string ErrorReason(const absl::Status& status) {
  const absl::optional<absl::Cord> reason = status.GetPayload(kReasonPayload);
  return reason.has_value() ? std::string(*reason) : "";
}

google::rpc::Status ToRpcStatus(const absl::Status& status) {
  google::rpc::Status out;
  out.set_code(static_cast<int>(status.code()));
  out.set_message(std::string(status.message()));
  if (status.ok()) return out;
  google::rpc::ErrorInfo info;
  const std::string reason = ErrorReason(status);
  info.set_reason(reason.empty() ? absl::StatusCodeToString(status.code()) : reason);
  info.set_domain("viommu");
  out.add_details()->PackFrom(info);
  return out;
}

absl::Status FromRpcStatus(const google::rpc::Status& status) {
  absl::Status out(static_cast<absl::StatusCode>(status.code()), status.message());
  for (const google::protobuf::Any& any : status.details()) {
    google::rpc::ErrorInfo info;
    if (any.UnpackTo(&info)) return WithReason(std::move(out), info.reason());
  }
  return out;
}

grpc::Status ToGrpcStatus(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  return grpc::Status(static_cast<grpc::StatusCode>(status.code()), std::string(status.message()),
                      ToRpcStatus(status).SerializeAsString());
}

absl::Status FromGrpcStatus(const grpc::Status& status) {
  absl::Status out(static_cast<absl::StatusCode>(status.error_code()), status.error_message());
  google::rpc::Status details;
  if (out.ok() || status.error_details().empty() ||
      !details.ParseFromString(status.error_details())) {
    return out;
  }
  const std::string reason = ErrorReason(FromRpcStatus(details));
  return reason.empty() ? out : WithReason(std::move(out), reason);
}

std::string CodeLabel(absl::StatusCode code) {
  return absl::AsciiStrToLower(absl::StatusCodeToString(code));
}

}  // namespace viommu
