// Runs one load through GuestService.RunWorkload.
#ifndef VIOMMU_GUEST_SVC_CLIENT_WORKLOAD_CLIENT_H_
#define VIOMMU_GUEST_SVC_CLIENT_WORKLOAD_CLIENT_H_

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>

#include "absl/status/statusor.h"
#include "guest_svc/client/load_input.h"
#include "svc_common/credentials.h"
#include "viommu/v1/guest_service.grpc.pb.h"

namespace viommu::client {

inline constexpr std::chrono::milliseconds kConnectTimeout{10'000};

// InvalidArgument: no address, or certificates that cannot be used. Unavailable: nobody listens
// there, or whoever does took no connection within `timeout`.
absl::StatusOr<std::shared_ptr<grpc::Channel>> Connect(
    const std::string& address, const TlsFlags& tls,
    std::chrono::milliseconds timeout = kConnectTimeout);

struct WorkloadCallbacks {
  std::function<void(uint64_t done, uint64_t total)> progress;       // may be empty
  std::function<void(std::span<const uint64_t> words)> descriptors;  // qw0, qw1 pairs; may be empty
};

// Sends the spec (its `workload` is set here) and the trace, waits for the result. Errors are the
// service's, with "nobody listens" and "went away" said as such.
absl::StatusOr<v1::WorkloadResult> RunWorkload(v1::GuestService::StubInterface& guest,
                                               v1::WorkloadSpec spec, const LoadInput& input,
                                               const WorkloadCallbacks& callbacks);

// Operations [first, first + count) as the columns of one message (at most 4096).
void FillChunk(std::span<const LoadOp> ops, v1::TraceChunk* chunk);

// A preset by name or path; the four presets of deploy/presets are also part of this program.
absl::StatusOr<v1::CostPreset> FindCostPreset(const std::string& name);

}  // namespace viommu::client

#endif  // VIOMMU_GUEST_SVC_CLIENT_WORKLOAD_CLIENT_H_
