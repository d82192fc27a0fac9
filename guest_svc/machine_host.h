// The real-time guest: its memory, its sessions, its machine on the wall clock and the thread that
// runs its timers. Comes up as soon as the hypervisor does, and outlives the hypervisor's restarts.
#ifndef VIOMMU_GUEST_SVC_MACHINE_HOST_H_
#define VIOMMU_GUEST_SVC_MACHINE_HOST_H_

#include <grpcpp/channel.h>

#include <chrono>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "guest_svc/guest_memory.h"
#include "guest_svc/guest_metrics.h"
#include "guest_svc/options.h"
#include "guest_svc/remote_sink.h"
#include "iommu_core/base/clock.h"
#include "iommu_core/dma/guest_machine.h"
#include "svc_common/steady_wait.h"

namespace viommu {

class MachineHost {
 public:
  // All outlive the host.
  MachineHost(const GuestOptions& options, std::string memory_socket,
              std::shared_ptr<grpc::Channel> channel, GuestMetrics& metrics);
  ~MachineHost();

  // Makes one attempt to bring the machine up, then goes on in a thread of its own.
  void Start();
  // Ends the sessions in an orderly way.
  void Stop();

  // Runs `work` with the machine to itself, once every stream is up. Unavailable: the hypervisor
  // has not been there yet; DeadlineExceeded: it is away, or others had the machine, until
  // `deadline`. In both cases `work` was not started.
  absl::Status Run(std::chrono::steady_clock::time_point deadline,
                   absl::FunctionRef<absl::Status(GuestMachine&)> work) ABSL_LOCKS_EXCLUDED(mu_);

  // The policy decision needs neither a device nor a hypervisor.
  PolicyDecision policy() ABSL_LOCKS_EXCLUDED(mu_);
  absl::Status SetPolicy(Policy policy, bool force_lazy) ABSL_LOCKS_EXCLUDED(mu_);

  // Which unit a device is behind, for device accesses; a detached device keeps its place.
  void SetPlace(SourceId sid, uint32_t iommu) ABSL_LOCKS_EXCLUDED(place_mu_);
  // The session that serves the device. NotFound: never attached. Unavailable: no session yet.
  absl::StatusOr<std::string> SessionOf(SourceId sid) ABSL_LOCKS_EXCLUDED(place_mu_);
  // Takes in the fault records that are here.
  void TakeInFaults() ABSL_LOCKS_EXCLUDED(mu_);
  // How many were taken in so far, whoever did it.
  uint64_t faults_taken() ABSL_LOCKS_EXCLUDED(mu_);
  // Until faults_taken() is `count`, at most `wait`. Operations go on meanwhile.
  void AwaitFaults(uint64_t count, absl::Duration wait) ABSL_LOCKS_EXCLUDED(mu_);

  std::vector<RemoteSink::State> sinks() ABSL_LOCKS_EXCLUDED(mu_);
  // The last known totals if the machine is busy.
  GuestStats stats() ABSL_LOCKS_EXCLUDED(mu_);
  const GuestOptions& options() const { return options_; }

 private:
  using Time = std::chrono::steady_clock::time_point;

  // Whoever has the turn has the machine, the sinks and the memory. False: not before `deadline`.
  bool TakeTurn(Time deadline) ABSL_LOCKS_EXCLUDED(mu_);
  void EndTurn() ABSL_LOCKS_EXCLUDED(mu_);
  // These need the turn.
  absl::Status BringUp();
  bool AllConnected() const;
  absl::Status Away() const;
  void PollSinks(absl::Duration wait);
  void Tick();
  void RunUntilStopped() ABSL_LOCKS_EXCLUDED(mu_);

  const GuestOptions& options_;
  const std::string memory_socket_;
  const std::shared_ptr<grpc::Channel> channel_;
  GuestMetrics& metrics_;
  const WallClock clock_;

  SteadyMutex mu_;
  bool busy_ ABSL_GUARDED_BY(mu_) = false;
  bool up_ ABSL_GUARDED_BY(mu_) = false;
  absl::Status last_error_ ABSL_GUARDED_BY(mu_);
  GuestStats last_stats_ ABSL_GUARDED_BY(mu_);
  uint64_t faults_taken_ ABSL_GUARDED_BY(mu_) = 0;
  Policy policy_ ABSL_GUARDED_BY(mu_);
  bool force_lazy_ ABSL_GUARDED_BY(mu_);

  // Written by the holder of the turn before up_ turns true, and not replaced after.
  std::unique_ptr<GuestMemory> memory_;
  std::vector<std::unique_ptr<RemoteSink>> sinks_;
  std::unique_ptr<GuestMachine> machine_;

  absl::Mutex place_mu_;
  std::map<uint16_t, uint32_t> place_ ABSL_GUARDED_BY(place_mu_);  // source id -> vIOMMU

  StopSignal stop_;
  std::thread thread_;
};

}  // namespace viommu

#endif  // VIOMMU_GUEST_SVC_MACHINE_HOST_H_
