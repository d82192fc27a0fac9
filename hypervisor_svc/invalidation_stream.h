// One Invalidate call: a small state machine driven by its completion queue's thread.
#ifndef VIOMMU_HYPERVISOR_SVC_INVALIDATION_STREAM_H_
#define VIOMMU_HYPERVISOR_SVC_INVALIDATION_STREAM_H_

#include <grpcpp/alarm.h>
#include <grpcpp/server_context.h>
#include <grpcpp/support/async_stream.h>

#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "hypervisor_svc/invalidation_service.h"

namespace viommu {

class InvalidationStream final : public StreamHandle,
                                 public std::enable_shared_from_this<InvalidationStream> {
 public:
  enum class Op { kAccept, kRead, kWrite, kFinish, kAlarm };
  // What a completion queue hands back.
  struct Tag {
    InvalidationStream* stream;
    Op op;
  };

  InvalidationStream(InvalidationService& service, size_t queue_index)
      : service_(service), queue_index_(queue_index) {}

  // Asks gRPC for the next call; the stream keeps itself alive until its last tag came back.
  void RequestCall(grpc::ServerCompletionQueue* queue);
  // The queue's thread: `op` is done.
  void OnDone(Op op, bool ok);

  void Push(const v1::InvalidateResponse& response) override ABSL_LOCKS_EXCLUDED(mu_);
  void End(const absl::Status& status) override ABSL_LOCKS_EXCLUDED(mu_);

  size_t queue_index() const { return queue_index_; }

 private:
  void OnAccepted();
  void OnRead(bool ok);
  void OnWritten(bool ok);
  // The answer to one message, or why the stream ends.
  absl::Status Handle(std::vector<v1::InvalidateResponse>& out);
  void Send(std::vector<v1::InvalidateResponse> responses) ABSL_LOCKS_EXCLUDED(mu_);
  void EndLocked(const absl::Status& status) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void WriteNextLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void ReadNextLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  bool QueueFullLocked() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  InvalidationService& service_;
  const size_t queue_index_;
  grpc::ServerContext context_;
  grpc::ServerAsyncReaderWriter<v1::InvalidateResponse, v1::InvalidateRequest> call_{&context_};
  Tag accept_tag_{this, Op::kAccept};
  Tag read_tag_{this, Op::kRead};
  Tag write_tag_{this, Op::kWrite};
  Tag finish_tag_{this, Op::kFinish};
  Tag alarm_tag_{this, Op::kAlarm};
  grpc::ServerCompletionQueue* queue_ = nullptr;

  // Touched by the queue's thread only, and not while the operation that fills it is under way.
  v1::InvalidateRequest request_;
  std::string identity_;
  std::shared_ptr<GuestSession> session_;
  uint64_t epoch_ = 0;

  absl::Mutex mu_;
  std::shared_ptr<InvalidationStream> self_ ABSL_GUARDED_BY(mu_);
  std::deque<v1::InvalidateResponse> to_write_ ABSL_GUARDED_BY(mu_);  // front: being written
  bool writing_ ABSL_GUARDED_BY(mu_) = false;
  bool reading_ ABSL_GUARDED_BY(mu_) = false;
  bool read_paused_ ABSL_GUARDED_BY(mu_) = false;
  bool finishing_ ABSL_GUARDED_BY(mu_) = false;  // Finish was called
  bool finished_ ABSL_GUARDED_BY(mu_) = false;
  // Runs while an ending stream waits for its last write.
  grpc::Alarm alarm_ ABSL_GUARDED_BY(mu_);
  bool alarm_set_ ABSL_GUARDED_BY(mu_) = false;
  std::optional<absl::Status> ending_ ABSL_GUARDED_BY(mu_);
};

}  // namespace viommu

#endif  // VIOMMU_HYPERVISOR_SVC_INVALIDATION_STREAM_H_
