#include "hypervisor_svc/device_service.h"

#include <map>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "iommu_core/base/errors.h"
#include "svc_common/conversions.h"
#include "svc_common/credentials.h"

namespace viommu {
namespace {

// How long a fault may wait before a watcher hears of it.
constexpr absl::Duration kWatchInterval = absl::Milliseconds(5);
constexpr size_t kFaultsPerMessage = 256;
// Mappings in one GetSession answer; 48 bytes each keep it well below kMaxMessageBytes.
constexpr int kMaxMappings = 65'536;

void FillSession(GuestSession& session, v1::Session* out) {
  const GuestSession::Progress progress = session.progress();
  const SessionStats stats = session.stats();
  out->set_session_id(session.info().id);
  out->set_guest_instance_id(session.info().guest_instance_id);
  out->set_strategy(std::string(StrategyName(session.info().strategy)));
  out->set_connected(progress.connected);
  out->set_completed_sequence(progress.completed_sequence);
  *out->mutable_cost() = ToProto(stats.cost);
  out->set_live_page_count(stats.live_pages);
  out->set_pinned_bytes(stats.pinned_pages * kPageSize);
  out->set_pinned_bytes_max(stats.pinned_pages_max * kPageSize);
  out->set_shadow_table_page_count(stats.shadow_table_pages);
  out->set_bookkeeping_bytes(stats.bookkeeping_bytes);
  out->set_refused_page_count(stats.refused_pages);
  out->set_device_count(stats.devices);
  out->set_domain_count(stats.domains);
  out->set_stale_dma_hits(stats.stale_dma_hits);
  out->set_iotlb_hits(stats.iotlb_hits);
  out->set_iotlb_misses(stats.iotlb_misses);
  out->set_guest_ram_bytes(session.info().guest_ram_bytes);
  out->set_memory_kind(session.info().memory_kind);
  out->set_remote_pages_pulled(stats.pulled.pages);
  out->set_remote_pages_verified(stats.oracle_pulled.pages);
  const WorkMeter& work = session.work();
  out->set_work_slice_count(work.slices.load(std::memory_order_relaxed));
  out->set_turn_wait_count(work.turns_waited.load(std::memory_order_relaxed));
  out->set_work_wall_ns(work.work_wall_ns.load(std::memory_order_relaxed));
  out->set_busy_wall_ns(work.BusyWallNs());
}

// Leaves that continue each other become one mapping.
absl::Status FillMappings(GuestSession& session, v1::Session* out) {
  for (const SourceId sid : session.devices()) {
    const absl::StatusOr<std::vector<LeafMapping>> leaves = session.Mappings(sid);
    if (!leaves.ok()) return leaves.status();
    v1::ShadowMapping* last = nullptr;
    for (const LeafMapping& leaf : *leaves) {
      if (last != nullptr && last->iova_end() == leaf.iova.value() &&
          last->guest_pa() + (last->iova_end() - last->iova()) == leaf.address.value() &&
          last->read() == leaf.access.read && last->write() == leaf.access.write) {
        last->set_iova_end(last->iova_end() + leaf.size_bytes);
        continue;
      }
      if (out->mappings_size() == kMaxMappings) {
        return WithReason(absl::ResourceExhaustedError(
                              absl::StrCat("more than ", kMaxMappings, " separate mappings")),
                          "TOO_MANY_MAPPINGS");
      }
      last = out->add_mappings();
      last->set_source_id(sid.value());
      last->set_iova(leaf.iova.value());
      last->set_iova_end(leaf.iova.value() + leaf.size_bytes);
      last->set_guest_pa(leaf.address.value());
      last->set_read(leaf.access.read);
      last->set_write(leaf.access.write);
    }
  }
  return absl::OkStatus();
}

}  // namespace

grpc::Status DeviceService::WatchFaults(grpc::ServerContext* context,
                                        const v1::WatchFaultsRequest* request,
                                        grpc::ServerWriter<v1::WatchFaultsResponse>* writer) {
  const std::string identity = PeerIdentity(*context);
  absl::Cleanup leave = [this] { --watchers_; };
  if (++watchers_ > registry_.options().max_fault_watchers) {
    return ToGrpcStatus(
        errors::LimitReached("--max_fault_watchers", registry_.options().max_fault_watchers));
  }
  std::map<std::string, uint64_t> next;  // by session
  while (!context->IsCancelled()) {
    if (draining_.load()) {
      return ToGrpcStatus(absl::UnavailableError("the hypervisor is shutting down"));
    }
    std::vector<std::shared_ptr<GuestSession>> sessions;
    if (request->session_id().empty()) {
      sessions = registry_.List(identity);
    } else {
      auto session = registry_.Find(request->session_id(), identity);
      if (!session.ok()) return ToGrpcStatus(session.status());
      sessions.push_back(*std::move(session));
    }
    bool idle = true;
    for (const auto& session : sessions) {
      std::vector<vtd::FaultRecord> faults;
      const uint64_t lost =
          session->ReadFaults(&next[session->info().id], kFaultsPerMessage, &faults);
      if (faults.empty() && lost == 0) continue;
      idle = false;
      v1::WatchFaultsResponse response;
      response.set_session_id(session->info().id);
      response.set_dropped_count(lost);
      for (const vtd::FaultRecord& fault : faults) *response.add_faults() = ToProto(fault);
      if (!writer->Write(response)) return grpc::Status::CANCELLED;
    }
    if (idle) absl::SleepFor(kWatchInterval);
  }
  return grpc::Status::CANCELLED;
}

grpc::Status DeviceService::Translate(grpc::ServerContext* context,
                                      const v1::TranslateRequest* request,
                                      v1::TranslateResponse* response) {
  const absl::StatusOr<SourceId> sid = SourceIdFromProto(request->source_id());
  if (!sid.ok()) return ToGrpcStatus(sid.status());
  const absl::StatusOr<Access> access = FromProto(request->access());
  if (!access.ok()) return ToGrpcStatus(access.status());
  const auto session = registry_.Find(request->session_id(), PeerIdentity(*context));
  if (!session.ok()) return ToGrpcStatus(session.status());
  const absl::StatusOr<DeviceTranslation> translation =
      (*session)->Translate(*sid, Iova(request->iova()), *access);
  if (!translation.ok()) return ToGrpcStatus(translation.status());
  response->set_fault_reason(static_cast<uint32_t>(translation->reason));
  response->set_host_pa(translation->host.value());
  response->set_guest_pa(translation->guest.value());
  return grpc::Status::OK;
}

grpc::Status DeviceService::Dma(grpc::ServerContext* context, const v1::DmaRequest* request,
                                v1::DmaResponse* response) {
  const absl::StatusOr<SourceId> sid = SourceIdFromProto(request->source_id());
  if (!sid.ok()) return ToGrpcStatus(sid.status());
  const bool write = !request->write_data().empty();
  if (write == (request->read_size_bytes() != 0)) {
    return ToGrpcStatus(absl::InvalidArgumentError(
        "a device access either writes write_data or reads read_size_bytes"));
  }
  if (request->write_data().size() > kMaxDmaBytes || request->read_size_bytes() > kMaxDmaBytes) {
    return ToGrpcStatus(absl::InvalidArgumentError(
        absl::StrCat("a device access moves at most ", kMaxDmaBytes, " bytes")));
  }
  const auto session = registry_.Find(request->session_id(), PeerIdentity(*context));
  if (!session.ok()) return ToGrpcStatus(session.status());
  std::string data = write ? request->write_data() : std::string(request->read_size_bytes(), '\0');
  uint32_t recorded = 0;
  const absl::StatusOr<DmaResult> result = (*session)->Dma(
      *sid, Iova(request->iova()), write, std::as_writable_bytes(std::span<char>(data)), &recorded);
  if (!result.ok()) return ToGrpcStatus(result.status());
  response->set_fault_reason(static_cast<uint32_t>(result->reason));
  response->set_moved_bytes(result->bytes_moved);
  response->set_stale(result->stale);
  response->set_recorded_fault_count(recorded);
  if (!write) {
    data.resize(std::min<size_t>(data.size(), result->bytes_moved));
    response->set_read_data(std::move(data));
  }
  return grpc::Status::OK;
}

grpc::Status DeviceService::GetSession(grpc::ServerContext* context,
                                       const v1::GetSessionRequest* request,
                                       v1::Session* response) {
  if (request->include_mappings() && !registry_.options().debug_calls) {
    return ToGrpcStatus(
        WithReason(absl::PermissionDeniedError(
                       "mappings are shown only by a hypervisor_svc started with --debug_calls"),
                   "DEBUG_CALLS_OFF"));
  }
  const auto session = registry_.Find(request->session_id(), PeerIdentity(*context));
  if (!session.ok()) return ToGrpcStatus(session.status());
  FillSession(**session, response);
  if (!request->include_mappings()) return grpc::Status::OK;
  return ToGrpcStatus(FillMappings(**session, response));
}

grpc::Status DeviceService::ListSessions(grpc::ServerContext* context,
                                         const v1::ListSessionsRequest*,
                                         v1::ListSessionsResponse* response) {
  for (const auto& session : registry_.List(PeerIdentity(*context))) {
    FillSession(*session, response->add_sessions());
  }
  return grpc::Status::OK;
}

}  // namespace viommu
