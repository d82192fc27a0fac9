// RunWorkload: one load on the virtual clock, in a machine of its own with memory and a session of
// its own, so that runs neither see the real-time guest nor each other.
#ifndef VIOMMU_GUEST_SVC_WORKLOAD_SERVICE_H_
#define VIOMMU_GUEST_SVC_WORKLOAD_SERVICE_H_

#include <grpcpp/channel.h>
#include <grpcpp/server_context.h>
#include <grpcpp/support/sync_stream.h>

#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "guest_svc/guest_metrics.h"
#include "guest_svc/options.h"
#include "iommu_core/load/runner.h"
#include "viommu/v1/guest_service.pb.h"

namespace viommu {

// Appends a chunk's operations. InvalidArgument: columns of different lengths, a value out of
// range. ResourceExhausted: more than `max_ops` in all.
absl::Status AppendTrace(const v1::TraceChunk& chunk, uint64_t max_ops, std::vector<LoadOp>* ops);

// What a run's machine is made of. InvalidArgument names what is wrong with the spec.
absl::StatusOr<GuestConfig> RunConfig(const v1::WorkloadSpec& spec, const GuestConfig& server,
                                      const LoadSource& source);

class WorkloadService {
 public:
  using Stream = grpc::ServerReaderWriter<v1::RunWorkloadResponse, v1::RunWorkloadRequest>;

  // All outlive the service; `channel` goes to the hypervisor.
  WorkloadService(const GuestOptions& options, std::string memory_socket,
                  std::shared_ptr<grpc::Channel> channel, GuestMetrics& metrics)
      : options_(options),
        memory_socket_(std::move(memory_socket)),
        channel_(std::move(channel)),
        metrics_(metrics) {}

  absl::Status Run(grpc::ServerContext& context, Stream& stream);
  // Runs under way end with Cancelled.
  void Drain() { draining_.store(true); }

 private:
  absl::Status RunSpec(grpc::ServerContext& context, Stream& stream, const v1::WorkloadSpec& spec,
                       LoadSource& source);

  const GuestOptions& options_;
  const std::string memory_socket_;
  const std::shared_ptr<grpc::Channel> channel_;
  GuestMetrics& metrics_;
  std::atomic<uint32_t> runs_{0};
  std::atomic<bool> draining_{false};
};

}  // namespace viommu

#endif  // VIOMMU_GUEST_SVC_WORKLOAD_SERVICE_H_
