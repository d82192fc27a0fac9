// Serves HypervisorService.Invalidate from one completion queue: a message is read, carried out and
// answered on the thread that took it from the queue (stream_threads.h).
#ifndef VIOMMU_HYPERVISOR_SVC_INVALIDATION_SERVICE_H_
#define VIOMMU_HYPERVISOR_SVC_INVALIDATION_SERVICE_H_

#include <grpcpp/completion_queue.h>
#include <grpcpp/server_builder.h>

#include <memory>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_set.h"
#include "absl/synchronization/mutex.h"
#include "hypervisor_svc/session_registry.h"
#include "hypervisor_svc/stream_threads.h"
#include "viommu/v1/hypervisor_service.grpc.pb.h"

namespace viommu {

class InvalidationStream;

using AsyncHypervisorService =
    v1::HypervisorService::WithAsyncMethod_Invalidate<v1::HypervisorService::Service>;

class InvalidationService {
 public:
  // Adds its queue to `builder`; all three outlive it.
  InvalidationService(SessionRegistry& registry, AsyncHypervisorService& service,
                      grpc::ServerBuilder& builder);
  ~InvalidationService();

  // After the server was built.
  void Start();
  // Ends every stream with Unavailable; new ones too. Before the server shuts down.
  void Drain() ABSL_LOCKS_EXCLUDED(mu_);
  // After the server shut down: ends the threads.
  void Stop();

  uint32_t threads() const { return threads_.threads(); }

 private:
  friend class InvalidationStream;

  // Waits for the next call.
  void Accept() ABSL_LOCKS_EXCLUDED(mu_);
  // Not OK: one stream too many, or the service is draining.
  absl::Status Admit(InvalidationStream* stream) ABSL_LOCKS_EXCLUDED(mu_);
  void Forget(InvalidationStream* stream) ABSL_LOCKS_EXCLUDED(mu_);
  // One event, on the leader's thread. False: the queue is empty and shut down.
  bool ServeOne();
  // On the leader's thread: `stream` has answers that may wait until no event is at hand.
  void Hold(std::shared_ptr<InvalidationStream> stream);
  void FlushHeld();

  SessionRegistry& registry_;
  AsyncHypervisorService& service_;
  const std::unique_ptr<grpc::ServerCompletionQueue> queue_;
  // The leader's only.
  std::vector<std::shared_ptr<InvalidationStream>> held_;
  int events_while_held_ = 0;
  StreamThreads threads_;

  absl::Mutex mu_;
  absl::flat_hash_set<InvalidationStream*> admitted_ ABSL_GUARDED_BY(mu_);
  bool draining_ ABSL_GUARDED_BY(mu_) = false;
  bool stopped_ = false;
};

}  // namespace viommu

#endif  // VIOMMU_HYPERVISOR_SVC_INVALIDATION_SERVICE_H_
