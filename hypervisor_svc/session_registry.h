// All sessions of this process: who may open and see them, how many there may be, and when one
// whose guest does not come back is released.
#ifndef VIOMMU_HYPERVISOR_SVC_SESSION_REGISTRY_H_
#define VIOMMU_HYPERVISOR_SVC_SESSION_REGISTRY_H_

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "hypervisor_svc/guest_session.h"
#include "hypervisor_svc/memory_broker.h"
#include "hypervisor_svc/options.h"
#include "svc_common/steady_wait.h"

namespace viommu {

class SessionRegistry {
 public:
  // Makes the core of a session; tests put fakes in its place.
  using CoreFactory = std::function<absl::StatusOr<std::unique_ptr<HypervisorSession>>(
      SessionConfig, PhysicalMemory&)>;

  // `options` outlive the registry.
  explicit SessionRegistry(const HypervisorOptions& options,
                           CoreFactory factory = &HypervisorSession::Create);
  ~SessionRegistry();

  // Where the regions of memory tokens are; until then no session can be made.
  void set_memory(MemoryBroker* memory) { memory_.store(memory); }

  // Opens, or resumes, or makes a new session in place of one that is not known here. `out` gets
  // SessionOpened and what else the stream must hear first. Errors end the stream:
  // InvalidArgument, PermissionDenied (another guest's session), ResourceExhausted (a limit),
  // Aborted (an old epoch), FailedPrecondition with reason UNKNOWN_MEMORY (a token of no region).
  absl::StatusOr<std::shared_ptr<GuestSession>> Open(const v1::OpenSession& open,
                                                     const std::string& identity,
                                                     std::shared_ptr<StreamHandle> stream,
                                                     std::vector<v1::InvalidateResponse>& out)
      ABSL_LOCKS_EXCLUDED(mu_);
  // On purpose, or because the time to live is over.
  void Close(const std::shared_ptr<GuestSession>& session) ABSL_LOCKS_EXCLUDED(mu_);

  // NotFound also for a session of another identity: its existence is nobody else's business.
  absl::StatusOr<std::shared_ptr<GuestSession>> Find(const std::string& id,
                                                     const std::string& identity)
      ABSL_LOCKS_EXCLUDED(mu_);
  // In order of creation.
  std::vector<std::shared_ptr<GuestSession>> List(const std::string& identity)
      ABSL_LOCKS_EXCLUDED(mu_);
  std::vector<std::shared_ptr<GuestSession>> ListAll() ABSL_LOCKS_EXCLUDED(mu_);

  // Totals of sessions that ended.
  struct Retired {
    SessionStats stats;  // gauges are 0
    uint64_t batches = 0;
    uint64_t slices = 0;
    uint64_t turns_waited = 0;
  };
  Retired retired() ABSL_LOCKS_EXCLUDED(mu_);
  HypervisorCounters& counters() { return counters_; }
  uint64_t memory_requests_refused() const;
  const HypervisorOptions& options() const { return options_; }

 private:
  absl::StatusOr<std::shared_ptr<GuestSession>> Make(const v1::OpenSession& open,
                                                     const std::string& identity)
      ABSL_LOCKS_EXCLUDED(mu_);
  // The region that the token names.
  absl::StatusOr<std::shared_ptr<PhysicalMemory>> Shared(const v1::OpenSession& open);
  // Memory pulled over the session's stream; keeps `remote` alive. FailedPrecondition with reason
  // DIRTY_LOG_NOT_SHARED: a strategy that cannot go without shared memory.
  absl::StatusOr<std::shared_ptr<PhysicalMemory>> Remote(const v1::OpenSession& open,
                                                         const SessionConfig& config,
                                                         std::shared_ptr<RemoteGuest>& remote);
  void ReapUntilStopped();

  const HypervisorOptions& options_;
  std::atomic<MemoryBroker*> memory_{nullptr};
  const CoreFactory factory_;
  const std::string instance_id_;
  HypervisorCounters counters_;

  absl::Mutex mu_;
  std::vector<std::shared_ptr<GuestSession>> sessions_ ABSL_GUARDED_BY(mu_);
  uint32_t being_made_ ABSL_GUARDED_BY(mu_) = 0;
  Retired retired_ ABSL_GUARDED_BY(mu_);
  StopSignal reaper_stop_;
  std::thread reaper_;
};

// Adds counters and gauges alike.
void AddStats(const SessionStats& from, SessionStats& to);

}  // namespace viommu

#endif  // VIOMMU_HYPERVISOR_SVC_SESSION_REGISTRY_H_
