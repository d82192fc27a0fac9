// One Invalidate call: a small state machine driven by the completion queue's events. Its messages
// are carried out one after the other, each on the thread that took it from the queue; meanwhile
// the next one is read, and another thread may see that read, and ends of writes, happen. Answers
// about a remote guest's memory are passed on at once, past the requests that wait.
#ifndef VIOMMU_HYPERVISOR_SVC_INVALIDATION_STREAM_H_
#define VIOMMU_HYPERVISOR_SVC_INVALIDATION_STREAM_H_

#include <grpcpp/alarm.h>
#include <grpcpp/server_context.h>
#include <grpcpp/support/async_stream.h>

#include <chrono>
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
  enum class Op { kAccept, kRead, kWrite, kFinish, kLastWriteAlarm, kOpenAlarm };
  // What the completion queue hands back.
  struct Tag {
    InvalidationStream* stream;
    Op op;
  };

  explicit InvalidationStream(InvalidationService& service) : service_(service) {}

  // Asks gRPC for the next call; the stream keeps itself alive until its last tag came back.
  void RequestCall(grpc::ServerCompletionQueue* queue);
  // `op` is done.
  void OnDone(Op op, bool ok);
  // Writes what InvalidationService::Hold kept back.
  void Flush() ABSL_LOCKS_EXCLUDED(mu_);

  void Push(const v1::InvalidateResponse& response) override ABSL_LOCKS_EXCLUDED(mu_);
  void Ask(const v1::InvalidateResponse& question,
           const std::shared_ptr<GuestPages>& pages) override ABSL_LOCKS_EXCLUDED(mu_);
  void End(const absl::Status& status) override ABSL_LOCKS_EXCLUDED(mu_);

 private:
  using Responses = std::vector<v1::InvalidateResponse>;
  // One message to send, and how many requests it answers.
  struct Outgoing {
    v1::InvalidateResponse response;
    uint32_t answers = 1;
  };

  void OnAccepted() ABSL_LOCKS_EXCLUDED(mu_);
  void OnRead(bool ok) ABSL_LOCKS_EXCLUDED(mu_);
  void OnWritten(bool ok) ABSL_LOCKS_EXCLUDED(mu_);
  // The answers to request_, or why the stream ends.
  absl::Status Handle(Responses& out) ABSL_LOCKS_EXCLUDED(mu_);
  absl::Status Open(Responses& out) ABSL_LOCKS_EXCLUDED(mu_);
  bool HasRoomLocked() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void QueueLocked(Responses responses) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void EndLocked(const absl::Status& status) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void WriteNextLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void ReadNextLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Reads on while answers are awaited, though a request is carried out and others wait.
  void ReadForAnswersLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  InvalidationService& service_;
  grpc::ServerContext context_;
  grpc::ServerAsyncReaderWriter<v1::InvalidateResponse, v1::InvalidateRequest> call_{&context_};
  Tag accept_tag_{this, Op::kAccept};
  Tag read_tag_{this, Op::kRead};
  Tag write_tag_{this, Op::kWrite};
  Tag finish_tag_{this, Op::kFinish};
  Tag last_write_alarm_tag_{this, Op::kLastWriteAlarm};
  Tag open_alarm_tag_{this, Op::kOpenAlarm};
  grpc::ServerCompletionQueue* queue_ = nullptr;

  // Of whoever set handling_.
  v1::InvalidateRequest request_;
  std::string identity_;
  std::shared_ptr<GuestSession> session_;
  uint64_t epoch_ = 0;

  absl::Mutex mu_;
  std::shared_ptr<InvalidationStream> self_ ABSL_GUARDED_BY(mu_);
  v1::InvalidateRequest incoming_ ABSL_GUARDED_BY(mu_);             // gRPC's while reading_
  std::deque<Outgoing> to_write_ ABSL_GUARDED_BY(mu_);              // beside the one being written
  uint32_t answers_to_write_ ABSL_GUARDED_BY(mu_) = 0;              // in to_write_
  bool handling_ ABSL_GUARDED_BY(mu_) = false;                      // request_ is carried out
  std::deque<v1::InvalidateRequest> waiting_ ABSL_GUARDED_BY(mu_);  // to be carried out next
  std::shared_ptr<GuestPages> pages_ ABSL_GUARDED_BY(mu_);          // who asked about guest memory
  size_t answers_awaited_ ABSL_GUARDED_BY(mu_) = 0;                 // of the guest
  bool opened_ ABSL_GUARDED_BY(mu_) = false;  // SessionOpened is written or queued
  // The guest sends on without waiting: its next request is read while one is carried out, and
  // answers go out together.
  bool pipelined_ ABSL_GUARDED_BY(mu_) = false;
  bool held_ ABSL_GUARDED_BY(mu_) = false;  // Flush will come
  std::chrono::steady_clock::time_point last_write_ ABSL_GUARDED_BY(mu_);
  bool writing_ ABSL_GUARDED_BY(mu_) = false;
  bool reading_ ABSL_GUARDED_BY(mu_) = false;
  bool finishing_ ABSL_GUARDED_BY(mu_) = false;  // Finish was called
  bool finished_ ABSL_GUARDED_BY(mu_) = false;
  // Runs while an ending stream waits for its last write.
  grpc::Alarm last_write_alarm_ ABSL_GUARDED_BY(mu_);
  bool last_write_alarm_set_ ABSL_GUARDED_BY(mu_) = false;
  // Runs until the first message came.
  grpc::Alarm open_alarm_ ABSL_GUARDED_BY(mu_);
  bool open_alarm_set_ ABSL_GUARDED_BY(mu_) = false;
  std::optional<absl::Status> ending_ ABSL_GUARDED_BY(mu_);
};

}  // namespace viommu

#endif  // VIOMMU_HYPERVISOR_SVC_INVALIDATION_STREAM_H_
