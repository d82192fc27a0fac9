#include "guest_svc/dma_service.h"

#include <algorithm>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "iommu_core/base/errors.h"
#include "svc_common/conversions.h"
#include "svc_common/steady_deadline.h"

namespace viommu {
namespace {

// A device access takes microseconds; a hypervisor that is away must not hold its caller.
constexpr std::chrono::seconds kAccessTimeout{5};
// How long a fault record that the hypervisor announced may be on its way.
constexpr absl::Duration kFaultWait = absl::Milliseconds(100);
constexpr int kMaxSegments = 4096;

}  // namespace

grpc::Status DmaService::CreateDomain(grpc::ServerContext* context,
                                      const v1::CreateDomainRequest* request,
                                      v1::Domain* response) {
  const uint32_t bits = request->dma_mask_bits() == 0 ? 64 : request->dma_mask_bits();
  if (bits > 64) return ToGrpcStatus(errors::Invalid("dma_mask_bits is at most 64"));
  return ToGrpcStatus(host_.Run(SteadyDeadline(*context), [&](GuestMachine& machine) {
    const absl::StatusOr<uint32_t> domain = machine.CreateDomain(static_cast<int>(bits));
    if (domain.ok()) response->set_domain(*domain);
    return domain.status();
  }));
}

grpc::Status DmaService::DeleteDomain(grpc::ServerContext* context,
                                      const v1::DeleteDomainRequest* request,
                                      v1::DeleteDomainResponse*) {
  return ToGrpcStatus(host_.Run(SteadyDeadline(*context), [&](GuestMachine& machine) {
    const absl::Status status = machine.DeleteDomain(request->domain());
    if (!status.ok()) return status;
    absl::MutexLock lock(&mu_);
    const auto first = buffers_.lower_bound({request->domain(), 0});
    auto last = first;
    for (; last != buffers_.end() && last->first.first == request->domain(); ++last) {
      machine.FreeBuffer(last->second.first, last->second.size_bytes);
    }
    buffers_.erase(first, last);
    return absl::OkStatus();
  }));
}

grpc::Status DmaService::AttachDevice(grpc::ServerContext* context,
                                      const v1::AttachDeviceRequest* request,
                                      v1::AttachDeviceResponse* response) {
  const absl::StatusOr<SourceId> sid = SourceIdFromProto(request->source_id());
  if (!sid.ok()) return ToGrpcStatus(sid.status());
  return ToGrpcStatus(host_.Run(SteadyDeadline(*context), [&](GuestMachine& machine) {
    const absl::StatusOr<DomainId> did =
        machine.AttachDevice(request->domain(), *sid, request->iommu(), request->device_tlb());
    if (!did.ok()) return did.status();
    host_.SetPlace(*sid, request->iommu());
    response->set_domain_id(did->value());
    return absl::OkStatus();
  }));
}

grpc::Status DmaService::DetachDevice(grpc::ServerContext* context,
                                      const v1::DetachDeviceRequest* request,
                                      v1::DetachDeviceResponse*) {
  const absl::StatusOr<SourceId> sid = SourceIdFromProto(request->source_id());
  if (!sid.ok()) return ToGrpcStatus(sid.status());
  return ToGrpcStatus(host_.Run(SteadyDeadline(*context),
                                [&](GuestMachine& machine) { return machine.DetachDevice(*sid); }));
}

absl::Status DmaService::Map(GuestMachine& machine, const v1::MapRequest& request,
                             v1::MapResponse* response) {
  const absl::StatusOr<viommu::Access> access = FromProto(request.access());
  if (!access.ok()) return access.status();
  std::vector<Segment> segments;
  std::optional<Buffer> buffer;
  if (request.allocate_bytes() != 0) {
    const uint64_t size = AlignUp(request.allocate_bytes(), kPageSize);
    if (size < request.allocate_bytes()) return errors::Invalid("allocate_bytes is too large");
    const absl::StatusOr<GuestPhys> first = machine.AllocateBuffer(size);
    if (!first.ok()) return first.status();
    buffer = Buffer{*first, size};
    segments.push_back({*first, size});
  } else {
    if (request.segments_size() > kMaxSegments) {
      return errors::Invalid(absl::StrCat("at most ", kMaxSegments, " segments"));
    }
    for (const v1::Segment& segment : request.segments()) {
      segments.push_back({GuestPhys(segment.guest_pa()), segment.size_bytes()});
    }
  }
  absl::StatusOr<Iova> iova = machine.Map(request.domain(), segments, *access, request.vcpu());
  // The answer tells a device about the mapping.
  if (iova.ok()) {
    if (absl::Status synced = machine.SyncMaps(); !synced.ok()) {
      if (machine.Holds(request.domain(), *iova)) {
        if (absl::Status s = machine.Abandon(request.domain(), *iova); !s.ok()) return s;
      }
      iova = synced;
    }
  }
  if (!iova.ok()) {
    if (buffer.has_value()) machine.FreeBuffer(buffer->first, buffer->size_bytes);
    return iova.status();
  }
  uint64_t size_bytes = 0;
  for (const Segment& segment : segments) size_bytes += segment.size_bytes;
  response->set_iova(iova->value());
  response->set_size_bytes(size_bytes);
  response->set_guest_pa(segments.front().guest_pa.value());
  if (buffer.has_value()) {
    absl::MutexLock lock(&mu_);
    buffers_[{request.domain(), iova->value()}] = *buffer;
  }
  return absl::OkStatus();
}

absl::Status DmaService::DoMap(Deadline deadline, const v1::MapRequest& request,
                               v1::MapResponse* response) {
  absl::Status status;
  if (request.vcpu() >= host_.options().machine.vcpus) {
    status = errors::Invalid(absl::StrCat("there is no vcpu ", request.vcpu()));
  } else {
    status =
        host_.Run(deadline, [&](GuestMachine& machine) { return Map(machine, request, response); });
  }
  metrics_.CountOp(DmaOpKind::kMap, status.code());
  return status;
}

absl::Status DmaService::DoUnmap(Deadline deadline, const v1::UnmapRequest& request,
                                 v1::UnmapResponse* response) {
  absl::Status status;
  if (request.vcpu() >= host_.options().machine.vcpus) {
    status = errors::Invalid(absl::StrCat("there is no vcpu ", request.vcpu()));
  } else {
    status = host_.Run(deadline, [&](GuestMachine& machine) {
      const absl::StatusOr<UnmapOutcome> outcome = machine.Unmap(
          request.domain(), Iova(request.iova()), request.size_bytes(), request.vcpu());
      // As a driver does: the memory is free once its unmap returned, deferred or not. One that
      // failed half-way returns its memory with its IOVA.
      if (!outcome.ok() && machine.Holds(request.domain(), Iova(request.iova()))) {
        return outcome.status();
      }
      if (outcome.ok()) response->set_deferred(outcome->deferred);
      absl::MutexLock lock(&mu_);
      const auto buffer = buffers_.find({request.domain(), request.iova()});
      if (buffer != buffers_.end()) {
        machine.FreeBuffer(buffer->second.first, buffer->second.size_bytes);
        buffers_.erase(buffer);
      }
      return outcome.status();
    });
  }
  metrics_.CountOp(DmaOpKind::kUnmap, status.code());
  return status;
}

absl::Status DmaService::DoAccess(Deadline deadline, const v1::AccessRequest& request,
                                  v1::AccessResponse* response) {
  const auto done = [this](absl::Status status) {
    metrics_.CountOp(DmaOpKind::kAccess, status.code());
    return status;
  };
  const absl::StatusOr<SourceId> sid = SourceIdFromProto(request.source_id());
  if (!sid.ok()) return done(sid.status());
  const absl::StatusOr<std::string> session = host_.SessionOf(*sid);
  if (!session.ok()) return done(session.status());
  v1::DmaRequest dma;
  dma.set_session_id(*session);
  dma.set_source_id(request.source_id());
  dma.set_iova(request.iova());
  dma.set_write_data(request.write_data());
  dma.set_read_size_bytes(request.read_size_bytes());
  v1::DmaResponse answer;
  const uint64_t faults_before = host_.faults_taken();
  grpc::ClientContext context;
  context.set_deadline(GrpcDeadline(std::min(deadline, Deadline::clock::now() + kAccessTimeout)));
  const absl::Status status = FromGrpcStatus(hypervisor_->Dma(&context, dma, &answer));
  if (absl::IsUnavailable(status) || absl::IsNotFound(status)) {
    // NotFound: a restarted hypervisor; the session is rebuilt by the machine's thread.
    return done(absl::UnavailableError(
        absl::StrCat("the hypervisor at ", host_.options().hypervisor, " is away (",
                     status.message(), "); call again once hypervisor_svc runs")));
  }
  if (!status.ok()) return done(status);
  response->set_fault_reason(answer.fault_reason());
  response->set_read_data(std::move(*answer.mutable_read_data()));
  response->set_stale(answer.stale());
  if (answer.recorded_fault_count() != 0) {
    host_.AwaitFaults(faults_before + answer.recorded_fault_count(), kFaultWait);
  }
  return done(absl::OkStatus());
}

grpc::Status DmaService::Map(grpc::ServerContext* context, const v1::MapRequest* request,
                             v1::MapResponse* response) {
  return ToGrpcStatus(DoMap(SteadyDeadline(*context), *request, response));
}

grpc::Status DmaService::Unmap(grpc::ServerContext* context, const v1::UnmapRequest* request,
                               v1::UnmapResponse* response) {
  return ToGrpcStatus(DoUnmap(SteadyDeadline(*context), *request, response));
}

grpc::Status DmaService::Access(grpc::ServerContext* context, const v1::AccessRequest* request,
                                v1::AccessResponse* response) {
  return ToGrpcStatus(DoAccess(SteadyDeadline(*context), *request, response));
}

void DmaService::DoOp(Deadline deadline, const v1::DmaOp& op, v1::DmaOpResult* result) {
  absl::Status status;
  switch (op.op_case()) {
    case v1::DmaOp::kMap:
      status = DoMap(deadline, op.map(), result->mutable_map());
      break;
    case v1::DmaOp::kUnmap:
      status = DoUnmap(deadline, op.unmap(), result->mutable_unmap());
      break;
    case v1::DmaOp::kAccess:
      status = DoAccess(deadline, op.access(), result->mutable_access());
      break;
    default:
      status = errors::Invalid("an operation is a map, an unmap or an access");
  }
  *result->mutable_status() = ToRpcStatus(status);
  if (!status.ok()) result->clear_result();
}

grpc::Status DmaService::Batch(grpc::ServerContext* context, const v1::BatchRequest* request,
                               v1::BatchResponse* response) {
  if (request->ops_size() > kMaxBatchOps) {
    return ToGrpcStatus(
        WithReason(errors::Invalid(absl::StrCat(request->ops_size(), " operations; at most ",
                                                kMaxBatchOps, " in one batch")),
                   "BATCH_TOO_LARGE"));
  }
  for (const v1::DmaOp& op : request->ops()) {
    DoOp(SteadyDeadline(*context), op, response->add_results());
  }
  return grpc::Status::OK;
}

grpc::Status DmaService::StreamOps(grpc::ServerContext* context,
                                   grpc::ServerReaderWriter<v1::DmaOpResult, v1::DmaOp>* stream) {
  v1::DmaOp op;
  v1::DmaOpResult result;
  while (stream->Read(&op)) {
    result.Clear();
    DoOp(SteadyDeadline(*context), op, &result);
    if (!stream->Write(result)) return grpc::Status::CANCELLED;
  }
  return grpc::Status::OK;
}

void DmaService::FillPolicy(v1::PolicyState* state) {
  const PolicyDecision decision = host_.policy();
  state->set_requested_policy(std::string(PolicyName(decision.requested)));
  state->set_effective_policy(std::string(PolicyName(decision.effective)));
  state->set_reason(decision.reason);
}

grpc::Status DmaService::GetPolicy(grpc::ServerContext*, const v1::GetPolicyRequest*,
                                   v1::PolicyState* response) {
  FillPolicy(response);
  return grpc::Status::OK;
}

grpc::Status DmaService::SetPolicy(grpc::ServerContext*, const v1::SetPolicyRequest* request,
                                   v1::PolicyState* response) {
  const absl::StatusOr<Policy> policy = ParsePolicy(request->policy());
  if (!policy.ok()) return ToGrpcStatus(policy.status());
  const absl::Status status = host_.SetPolicy(*policy, request->force_lazy());
  if (!status.ok()) return ToGrpcStatus(status);
  FillPolicy(response);
  return grpc::Status::OK;
}

grpc::Status DmaService::Flush(grpc::ServerContext* context, const v1::FlushRequest*,
                               v1::FlushResponse* response) {
  return ToGrpcStatus(host_.Run(SteadyDeadline(*context), [&](GuestMachine& machine) {
    const absl::StatusOr<uint64_t> released = machine.FlushDeferred();
    if (released.ok()) response->set_entry_count(*released);
    return released.status();
  }));
}

grpc::Status DmaService::ReadFaults(grpc::ServerContext* context, const v1::ReadFaultsRequest*,
                                    v1::ReadFaultsResponse* response) {
  host_.TakeInFaults();
  return ToGrpcStatus(host_.Run(SteadyDeadline(*context), [&](GuestMachine& machine) {
    bool overflow = false;
    for (const vtd::FaultRecord& fault : machine.TakeFaults(&overflow)) {
      *response->add_faults() = ToProto(fault);
    }
    response->set_overflow(overflow);
    return absl::OkStatus();
  }));
}

grpc::Status DmaService::GetStatus(grpc::ServerContext*, const v1::GetStatusRequest*,
                                   v1::GuestStatus* response) {
  const GuestStats stats = host_.stats();
  FillPolicy(response->mutable_policy());
  response->set_domain_count(static_cast<uint32_t>(stats.domains));
  response->set_device_count(static_cast<uint32_t>(stats.devices));
  response->set_iova_allocated_bytes(stats.iova_allocated_bytes);
  response->set_flush_queue_entries(stats.flush_queue_entries);
  response->set_stale_page_count(stats.stale_pages);
  response->set_map_count(stats.maps);
  response->set_unmap_count(stats.unmaps);
  response->set_ram_bytes(host_.options().machine.ram_bytes);
  const std::vector<RemoteSink::State> sinks = host_.sinks();
  bool connected = !sinks.empty();
  for (const RemoteSink::State& sink : sinks) {
    response->add_session_ids(sink.session_id);
    connected = connected && sink.connected;
  }
  response->set_connected(connected);
  return grpc::Status::OK;
}

grpc::Status DmaService::RunWorkload(
    grpc::ServerContext* context,
    grpc::ServerReaderWriter<v1::RunWorkloadResponse, v1::RunWorkloadRequest>* stream) {
  return ToGrpcStatus(workloads_.Run(*context, *stream));
}

}  // namespace viommu
