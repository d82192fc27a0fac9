// One vIOMMU's invalidations over the gRPC stream: one session, one stream at a time. Everything
// not acknowledged is kept and sent again on the next stream; what the hypervisor no longer knows
// is rebuilt from the vIOMMU's own state and a global invalidation.
#ifndef VIOMMU_GUEST_SVC_REMOTE_SINK_H_
#define VIOMMU_GUEST_SVC_REMOTE_SINK_H_

#include <grpcpp/channel.h>

#include <chrono>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/synchronization/mutex.h"
#include "guest_svc/guest_memory.h"
#include "guest_svc/guest_metrics.h"
#include "guest_svc/sink_stream.h"
#include "iommu_core/iq/invalidation_sink.h"
#include "iommu_core/vtd/capability.h"
#include "svc_common/steady_wait.h"
#include "viommu/v1/hypervisor_service.grpc.pb.h"

namespace viommu {

struct RemoteSinkOptions {
  std::string hypervisor;  // for messages to people
  vtd::Capabilities caps;
  int haw_bits = 39;
  uint64_t dirty_log_base = 0;  // guest-physical, 0: no log of table writes
  std::string strategy;         // empty: the hypervisor's
  std::string verify;           // empty: the hypervisor's
  // False: a broken stream ends the session (a run on the virtual clock cannot go on after it).
  bool recover = true;
  absl::Duration call_timeout = absl::Seconds(5);  // of opening, and of register and device updates
  // How long a doorbell's completion is polled for before its thread sleeps; 0: it sleeps at once.
  std::chrono::microseconds wait_spin = kDefaultWaitSpin;
};

class RemoteSink final : public InvalidationSink {
 public:
  // `memory` and `metrics` outlive the sink.
  RemoteSink(std::shared_ptr<grpc::Channel> channel, GuestMemory& memory, GuestMetrics& metrics,
             RemoteSinkOptions options);
  ~RemoteSink() override;

  // Opens the session. Unavailable: nobody serves there; other codes as the hypervisor refused.
  absl::Status Open() ABSL_LOCKS_EXCLUDED(mu_);
  // Ends the session; the hypervisor releases everything. Waits at most call_timeout.
  absl::Status Close() ABSL_LOCKS_EXCLUDED(mu_);

  absl::StatusOr<uint64_t> Post(std::span<const vtd::RawDescriptor> descriptors,
                                std::span<const DeviceTouch> touches, TableClaim claim) override;
  absl::StatusOr<SinkCompletion> Await(uint64_t ticket, absl::Duration timeout) override;
  absl::Status UpdateRegisters(const UnitRegisters& registers) override;
  absl::Status UpdateDevice(SourceId sid, bool present, bool has_device_tlb) override;

  // Takes in what has arrived, reconnects if it is time to, and returns faults that came outside a
  // completion that somebody awaited. `wait`: for one message, if none is there.
  std::vector<vtd::FaultRecord> Poll(absl::Duration wait) ABSL_LOCKS_EXCLUDED(mu_);

  // As of now, without waiting for a call under way.
  struct State {
    bool connected = false;
    std::string session_id;
    std::string strategy;
  };
  State state() const ABSL_LOCKS_EXCLUDED(state_mu_);

 private:
  using Time = std::chrono::steady_clock::time_point;

  // Holds mu_. Whoever waits on the stream for the hypervisor's questions lets go of it first.
  class ABSL_SCOPED_LOCKABLE Turn {
   public:
    explicit Turn(RemoteSink& sink) ABSL_EXCLUSIVE_LOCK_FUNCTION(sink.mu_);
    ~Turn() ABSL_UNLOCK_FUNCTION();
    Turn(const Turn&) = delete;
    Turn& operator=(const Turn&) = delete;

   private:
    RemoteSink& sink_;
  };

  // A request that is not acknowledged. `tickets` are done when it is.
  struct Pending {
    uint64_t sequence = 0;
    v1::InvalidateRequest request;
    Time posted;
    std::vector<std::pair<uint64_t, uint32_t>> tickets;  // ticket, descriptors
    bool rebuild = false;  // the tickets' own requests are covered by this one
  };
  struct Done {
    SinkCompletion completion;
    absl::Status status;
  };

  uint64_t Enqueue(v1::InvalidateRequest request, uint32_t descriptors)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::StatusOr<SinkCompletion> AwaitLocked(uint64_t ticket, Time deadline)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Receives and handles one message, or reconnects. False: nothing happened before `deadline`.
  bool Step(Time deadline, SpinWait* spin = nullptr) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::Status OpenStream(Time deadline) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // The stream is of no more use: says so once, and when to try again.
  void Broken(const absl::Status& status) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Handle(const v1::InvalidateResponse& response) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Answers a question about guest memory. False: the message is none.
  bool AnswerAboutMemory(const v1::InvalidateResponse& message) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // The thread that answers such questions while nobody else waits on the stream.
  void ServeMemory() ABSL_LOCKS_EXCLUDED(mu_, serve_mu_);
  void StopServingMemory() ABSL_LOCKS_EXCLUDED(mu_, serve_mu_);
  void HandleCompletion(const v1::Completion& completion) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Replays devices and registers, then invalidates globally: every pending ticket is done with it.
  void Rebuild(uint64_t first_sequence) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Sends pending requests from `first` on.
  void SendPending(size_t first) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Unavailable: the session is over, or too much waits already.
  absl::Status CheckRoom() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::Status Unreachable() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  const std::unique_ptr<v1::HypervisorService::Stub> stub_;
  GuestMemory& memory_;
  GuestMetrics& metrics_;
  const RemoteSinkOptions options_;
  const std::string instance_id_;

  absl::Mutex mu_;
  SpinWait spin_ ABSL_GUARDED_BY(mu_);
  std::unique_ptr<SinkStream> stream_ ABSL_GUARDED_BY(mu_);
  std::string session_id_ ABSL_GUARDED_BY(mu_);
  uint64_t epoch_ ABSL_GUARDED_BY(mu_) = 0;
  // ResetRequired is on its way: what is sent before it could be taken for the replay.
  bool awaiting_reset_ ABSL_GUARDED_BY(mu_) = false;
  uint32_t window_ ABSL_GUARDED_BY(mu_) = 1;
  uint64_t next_sequence_ ABSL_GUARDED_BY(mu_) = 1;
  uint64_t next_ticket_ ABSL_GUARDED_BY(mu_) = 1;
  std::deque<Pending> pending_ ABSL_GUARDED_BY(mu_);
  absl::flat_hash_map<uint64_t, Done> done_ ABSL_GUARDED_BY(mu_);
  std::vector<vtd::FaultRecord> loose_faults_ ABSL_GUARDED_BY(mu_);

  UnitRegisters registers_ ABSL_GUARDED_BY(mu_);
  std::map<uint16_t, bool> devices_ ABSL_GUARDED_BY(mu_);  // source id -> has a device-TLB

  absl::Status last_error_ ABSL_GUARDED_BY(mu_);
  Time next_attempt_ ABSL_GUARDED_BY(mu_);
  std::chrono::milliseconds backoff_ ABSL_GUARDED_BY(mu_){0};
  bool lost_ ABSL_GUARDED_BY(mu_) = false;  // said so in the log
  bool over_ ABSL_GUARDED_BY(mu_) = false;  // closed, or broken without recovery

  uint64_t calls_ ABSL_GUARDED_BY(mu_) = 0;

  // Remote memory only.
  absl::Mutex serve_mu_ ABSL_ACQUIRED_AFTER(mu_);
  int callers_waiting_ ABSL_GUARDED_BY(serve_mu_) = 0;       // for mu_
  SinkStream* served_ ABSL_GUARDED_BY(serve_mu_) = nullptr;  // ServeMemory waits on it
  StopSignal stop_serving_;
  std::thread memory_thread_;

  mutable absl::Mutex state_mu_;
  State state_ ABSL_GUARDED_BY(state_mu_);
};

}  // namespace viommu

#endif  // VIOMMU_GUEST_SVC_REMOTE_SINK_H_
