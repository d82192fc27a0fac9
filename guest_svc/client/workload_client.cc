#include "guest_svc/client/workload_client.h"

#include <google/protobuf/text_format.h>
#include <grpcpp/create_channel.h>

#include <algorithm>
#include <chrono>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "guest_svc/client/embedded_presets.h"
#include "svc_common/address.h"
#include "svc_common/conversions.h"
#include "svc_common/cost_presets.h"
#include "svc_common/service_host.h"

namespace viommu::client {
namespace {

constexpr size_t kChunkOps = 4096;

uint32_t Flags(const LoadOp& op) {
  return (op.access.read ? 1u : 0) | (op.access.write ? 2u : 0) | (op.list_continues ? 4u : 0) |
         (op.choose_iova ? 8u : 0) | (op.device_tlb ? 16u : 0);
}

}  // namespace

absl::StatusOr<std::shared_ptr<grpc::Channel>> Connect(const std::string& address,
                                                       const TlsFlags& tls,
                                                       std::chrono::milliseconds timeout) {
  const absl::StatusOr<Address> target = ParseAddress(address);
  if (!target.ok()) return target.status();
  const auto credentials = MakeChannelCredentials(*target, tls);
  if (!credentials.ok()) return credentials.status();
  grpc::ChannelArguments arguments = ClientChannelArguments();
  // For gRPC also the time of one attempt, the end of which would look like a refusal.
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 2 * static_cast<int>(timeout.count()));
  auto channel = grpc::CreateCustomChannel(target->ToString(), *credentials, arguments);
  const auto deadline = std::chrono::system_clock::now() + timeout;
  for (;;) {
    const grpc_connectivity_state state = channel->GetState(true);
    if (state == GRPC_CHANNEL_READY) break;
    // A refusal is an answer; only silence is waited for.
    if (state == GRPC_CHANNEL_TRANSIENT_FAILURE || state == GRPC_CHANNEL_SHUTDOWN) {
      return absl::UnavailableError(absl::StrCat(
          "nobody listens on ", target->ToString(), tls.given() ? " with TLS" : "",
          "; is the service up, and is this the address after READY grpc=?",
          tls.given() ? " Do both sides' certificates come from the same authority?" : ""));
    }
    if (!channel->WaitForStateChange(state, deadline)) {
      return absl::UnavailableError(
          absl::StrCat(target->ToString(), " took no connection within ",
                       absl::FormatDuration(absl::FromChrono(timeout)),
                       "; is the service stopped, or the machine overloaded?"));
    }
  }
  return channel;
}

void FillChunk(std::span<const LoadOp> ops, v1::TraceChunk* chunk) {
  for (const LoadOp& op : ops) {
    chunk->add_kind(static_cast<uint32_t>(op.kind));
    chunk->add_time_ns(op.time_ns);
    chunk->add_cpu(op.cpu);
    chunk->add_domain(op.domain);
    chunk->add_iova(op.iova.value());
    chunk->add_guest_pa(op.guest_pa.value());
    chunk->add_size_bytes(op.size_bytes);
    chunk->add_flags(Flags(op));
    chunk->add_source_id(op.source_id.value());
    chunk->add_tag(op.tag);
  }
}

absl::StatusOr<v1::WorkloadResult> RunWorkload(v1::GuestService::StubInterface& guest,
                                               v1::WorkloadSpec spec, const LoadInput& input,
                                               const WorkloadCallbacks& callbacks) {
  grpc::ClientContext context;
  auto stream = guest.RunWorkload(&context);
  spec.set_workload(input.workload);
  v1::RunWorkloadRequest request;
  *request.mutable_spec() = std::move(spec);
  // A false Write means that the call has ended; its status is in Finish.
  bool open = stream->Write(request);
  const std::span<const LoadOp> ops(input.trace.ops);
  for (size_t at = 0; open && at < ops.size(); at += kChunkOps) {
    v1::RunWorkloadRequest chunk;
    FillChunk(ops.subspan(at, std::min(kChunkOps, ops.size() - at)), chunk.mutable_trace());
    open = stream->Write(chunk);
  }
  stream->WritesDone();
  absl::StatusOr<v1::WorkloadResult> result = absl::InternalError("the run ended without a result");
  v1::RunWorkloadResponse response;
  while (stream->Read(&response)) {
    switch (response.response_case()) {
      case v1::RunWorkloadResponse::kProgress:
        if (callbacks.progress) {
          callbacks.progress(response.progress().done_op_count(),
                             response.progress().total_op_count());
        }
        break;
      case v1::RunWorkloadResponse::kDescriptors:
        if (callbacks.descriptors) {
          const auto& words = response.descriptors().words();
          callbacks.descriptors(std::span(words.data(), static_cast<size_t>(words.size())));
        }
        break;
      case v1::RunWorkloadResponse::kResult:
        result = response.result();
        break;
      case v1::RunWorkloadResponse::RESPONSE_NOT_SET:
        break;
    }
  }
  const absl::Status status = FromGrpcStatus(stream->Finish());
  if (!status.ok()) return status;
  return result;
}

namespace {

// A preset may leave constants out; what then holds is shown like any other.
absl::StatusOr<v1::CostPreset> WithAllConstants(v1::CostPreset preset) {
  const auto model = FromProto(preset);
  if (!model.ok()) return model.status();
  const v1::CostPreset all = ToProto(*model);
  for (const v1::CostConstant& constant : all.constants()) {
    if (std::any_of(preset.constants().begin(), preset.constants().end(),
                    [&](const v1::CostConstant& c) { return c.name() == constant.name(); })) {
      continue;
    }
    v1::CostConstant* added = preset.add_constants();
    *added = constant;
    added->set_low_ns(constant.value_ns());
    added->set_high_ns(constant.value_ns());
    added->set_source("not in this preset: the default");
    added->set_certainty("assumed");
  }
  return preset;
}

}  // namespace

absl::StatusOr<v1::CostPreset> FindCostPreset(const std::string& name) {
  absl::StatusOr<v1::CostPreset> preset = LoadCostPreset(name);
  if (preset.ok()) return WithAllConstants(*std::move(preset));
  std::string names;
  for (const EmbeddedPreset& embedded : kEmbeddedPresets) {
    if (name == embedded.name) {
      v1::CostPreset parsed;
      if (google::protobuf::TextFormat::ParseFromString(embedded.text, &parsed)) {
        return WithAllConstants(std::move(parsed));
      }
    }
    absl::StrAppend(&names, names.empty() ? "" : ", ", embedded.name);
  }
  // A path's error says which file is wrong; a name's lists the names.
  if (name.find('/') != std::string::npos || absl::EndsWith(name, ".textproto")) {
    return preset.status();
  }
  return absl::InvalidArgumentError(
      absl::StrCat("no cost preset \"", name, "\"; there are ", names, ", or a path"));
}

}  // namespace viommu::client
