// The client's end of one Invalidate call, driven by the thread that uses it: it polls its own
// completion queue, so a round trip crosses no other thread, and every wait has a deadline.
#ifndef VIOMMU_GUEST_SVC_SINK_STREAM_H_
#define VIOMMU_GUEST_SVC_SINK_STREAM_H_

#include <grpcpp/alarm.h>
#include <grpcpp/client_context.h>
#include <grpcpp/completion_queue.h>
#include <grpcpp/support/async_stream.h>

#include <chrono>
#include <deque>
#include <memory>
#include <optional>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "guest_svc/spin_wait.h"
#include "viommu/v1/hypervisor_service.grpc.pb.h"

namespace viommu {

// Not thread-safe, but for Interrupt.
class SinkStream {
 public:
  using Time = std::chrono::steady_clock::time_point;

  explicit SinkStream(v1::HypervisorService::Stub& stub);
  // Cancels the call if it still goes on.
  ~SinkStream();

  // Writes one message, after earlier ones are written.
  void Send(const v1::InvalidateRequest& request);
  // Says that nothing more will be sent.
  void SendDone();
  // The next message; nullopt: none before `deadline`, or the stream is over.
  // `spin`: it may be polled for first; null: not.
  std::optional<v1::InvalidateResponse> Receive(Time deadline, SpinWait* spin = nullptr);
  // The same; Interrupt ends the wait, too.
  std::optional<v1::InvalidateResponse> ReceiveUnlessInterrupted(Time deadline);
  // Any thread: a ReceiveUnlessInterrupted under way, or else the next one, returns early.
  void Interrupt() ABSL_LOCKS_EXCLUDED(interrupt_mu_);
  // Set once the stream is over: how it ended.
  const std::optional<absl::Status>& ended() const { return ended_; }

 private:
  // Waits for one event of the queue. False: none before `deadline`.
  bool Pump(gpr_timespec deadline);
  void TakeEvent(void* tag, bool ok);
  bool CanWrite() const;
  void WriteNext();
  // A read is begun behind a write or before a wait: by itself it sends the hypervisor a window
  // update in a packet of its own.
  void ReadNext();

  grpc::ClientContext context_;
  grpc::CompletionQueue queue_;
  std::unique_ptr<grpc::ClientAsyncReaderWriter<v1::InvalidateRequest, v1::InvalidateResponse>>
      call_;
  std::deque<v1::InvalidateRequest> to_write_;  // behind the one being written
  v1::InvalidateResponse incoming_;
  std::deque<v1::InvalidateResponse> received_;
  grpc::Status finish_status_;
  bool started_ = false;
  bool writing_ = false;
  bool reading_ = false;
  bool done_asked_ = false;
  bool done_sent_ = false;
  bool finish_asked_ = false;
  std::optional<absl::Status> ended_;

  bool interrupted_ = false;
  absl::Mutex interrupt_mu_;
  bool interrupt_on_its_way_ ABSL_GUARDED_BY(interrupt_mu_) = false;
  grpc::Alarm interrupt_ ABSL_GUARDED_BY(interrupt_mu_);
};

}  // namespace viommu

#endif  // VIOMMU_GUEST_SVC_SINK_STREAM_H_
