// One guest vIOMMU's session: the order of its requests, its epochs, what it may still ask again,
// and the faults of its devices. The work itself is the core's HypervisorSession.
#ifndef VIOMMU_HYPERVISOR_SVC_GUEST_SESSION_H_
#define VIOMMU_HYPERVISOR_SVC_GUEST_SESSION_H_

#include <atomic>
#include <chrono>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "hypervisor_svc/guest_pages.h"
#include "hypervisor_svc/hypervisor_counters.h"
#include "hypervisor_svc/stream_threads.h"
#include "iommu_core/mem/physical_memory.h"
#include "iommu_core/shadow/hypervisor_session.h"
#include "viommu/v1/hypervisor_service.pb.h"

namespace viommu {

// The clock of times to live: it does not jump.
using SteadyTime = std::chrono::steady_clock::time_point;

// Never changes after the session was opened.
struct SessionInfo {
  std::string id;
  std::string guest_instance_id;
  std::string peer_identity;  // of the certificate; empty in the clear
  Strategy strategy = Strategy::kWalk;
  uint64_t guest_ram_bytes = 0;
  v1::GuestMemoryKind memory_kind = v1::GUEST_MEMORY_KIND_SHARED;
  uint32_t max_outstanding_batches = 0;
  uint32_t max_batch_descriptors = 0;
  uint64_t max_faults_retained = 0;
};

class GuestSession {
 public:
  // `core` works on `memory`, of a remote guest on remote->memory (else null); `counters` outlive
  // the session.
  GuestSession(SessionInfo info, std::shared_ptr<PhysicalMemory> memory,
               std::shared_ptr<RemoteGuest> remote, std::unique_ptr<HypervisorSession> core,
               HypervisorCounters& counters);

  // A stream takes the session: an older stream ends with ABORTED. Fills `out` with what the new
  // stream must hear first: completions that the guest may have missed, or a reset
  // (`replaces_unknown`: the guest asked for a session that is not known here). ABORTED: a stream
  // with this or a higher epoch was here. NotFound: the session ended meanwhile.
  absl::Status Attach(const v1::OpenSession& open, std::shared_ptr<StreamHandle> stream,
                      bool replaces_unknown, std::vector<v1::InvalidateResponse>& out)
      ABSL_LOCKS_EXCLUDED(mu_);
  // The stream of `epoch` is gone. True: it was the current one.
  bool Detach(uint64_t epoch) ABSL_LOCKS_EXCLUDED(mu_);

  // Carries out one message of the stream with `epoch` and adds the answers to `out`. Not OK: the
  // stream must end with that status; nothing of the message was applied, or (a remote guest's
  // memory could not be read) what was is void and the next stream begins with a reset.
  absl::Status Handle(uint64_t epoch, const v1::InvalidateRequest& request,
                      std::vector<v1::InvalidateResponse>& out) ABSL_LOCKS_EXCLUDED(mu_);

  // Blocks every device, then releases tables, pins and memory. Later calls see NotFound.
  SessionStats End() ABSL_LOCKS_EXCLUDED(mu_);

  // Device accesses; NotFound once the session ended, Unavailable with reason REMOTE_MEMORY if a
  // remote guest's memory cannot be reached, with reason REBUILDING from a reset until the guest's
  // replay is done: what is blocked meanwhile is no fault of the guest's. `recorded` counts the
  // fault records made.
  absl::StatusOr<DmaResult> Dma(SourceId sid, Iova iova, bool write, std::span<std::byte> data,
                                uint32_t* recorded) ABSL_LOCKS_EXCLUDED(mu_);
  absl::StatusOr<DeviceTranslation> Translate(SourceId sid, Iova iova, Access access)
      ABSL_LOCKS_EXCLUDED(mu_);
  absl::StatusOr<std::vector<LeafMapping>> Mappings(SourceId sid) ABSL_LOCKS_EXCLUDED(mu_);
  std::vector<SourceId> devices() ABSL_LOCKS_EXCLUDED(mu_);

  // Faults from `*next` on, at most `limit`; moves `*next` past them and returns how many were lost
  // before them.
  uint64_t ReadFaults(uint64_t* next, size_t limit, std::vector<vtd::FaultRecord>* out)
      ABSL_LOCKS_EXCLUDED(fault_mu_);

  struct Progress {
    bool connected = false;
    bool ended = false;
    uint64_t completed_sequence = 0;
    uint64_t batches = 0;
    SteadyTime disconnected_at = SteadyTime::max();  // max: a stream is attached
  };
  Progress progress() ABSL_LOCKS_EXCLUDED(state_mu_);
  // As of now; while a request is carried out, as of the last long one or the last call.
  SessionStats stats() ABSL_LOCKS_EXCLUDED(state_mu_, core_mu_);
  const WorkMeter& work() const { return work_; }
  const SessionInfo& info() const { return info_; }

 private:
  SyncCost HandleBatch(const v1::InvalidationBatch& batch, v1::Completion& completion)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Asks for a replay after the oracle found the shadow wrong, once until it was right again.
  void ResetAfterMismatch(const SyncCost& cost, std::vector<v1::InvalidateResponse>& out)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::Status CheckBatch(const v1::InvalidationBatch& batch) const;
  // The session's next request, checked already.
  absl::Status HandleInTurn(const v1::InvalidateRequest& request,
                            std::vector<v1::InvalidateResponse>& out)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void HandleDevice(const v1::DeviceUpdate& update, v1::Completion& completion)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void HandleRegisters(const v1::RegisterUpdate& update, v1::Completion& completion)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Empties the shadow and asks the guest to replay its state.
  void Reset(v1::ResetRequired::Reason reason, std::vector<v1::InvalidateResponse>& out)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Whether all that the core asked of a remote guest's memory came.
  absl::Status PullStatus() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(core_mu_);
  // Of the request that was just carried out.
  void NotePulls() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_, core_mu_);
  absl::Status AccessStatus() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(core_mu_);
  void RetainFaults(const std::vector<vtd::FaultRecord>& faults) ABSL_LOCKS_EXCLUDED(fault_mu_);
  std::shared_ptr<HypervisorSession> core() ABSL_LOCKS_EXCLUDED(state_mu_);

  const SessionInfo info_;
  const std::shared_ptr<RemoteGuest> remote_;  // null: guest memory is shared
  HypervisorCounters& counters_;

  // Held while a request is carried out, so that an older stream's last request is finished before
  // a newer stream's first.
  absl::Mutex mu_;
  uint64_t epoch_ ABSL_GUARDED_BY(mu_) = 0;
  std::atomic<uint64_t> attached_epoch_{0};  // epoch_, for those who do not hold mu_
  bool awaiting_replay_ ABSL_GUARDED_BY(mu_) = false;
  std::map<uint16_t, bool> devices_ ABSL_GUARDED_BY(mu_);  // source id -> has a device-TLB
  std::deque<v1::Completion> retained_ ABSL_GUARDED_BY(mu_);
  bool mismatch_reset_ ABSL_GUARDED_BY(mu_) = false;  // asked for; no verification was clean since
  // The last request was a long one: the next one is not begun on the thread that leads.
  bool long_work_ ABSL_GUARDED_BY(mu_) = false;
  absl::Status pull_status_ ABSL_GUARDED_BY(mu_);                     // of the request carried out
  std::vector<vtd::RawDescriptor> descriptors_ ABSL_GUARDED_BY(mu_);  // of one batch
  std::vector<DeviceTouch> touches_ ABSL_GUARDED_BY(mu_);
  WorkMeter work_;

  // Held while the core works, for a walk or for a device access.
  absl::Mutex core_mu_ ABSL_ACQUIRED_AFTER(mu_);
  // The shadow is not what the guest made it: emptied by a reset, or void. A batch ends it, since a
  // replay's only one is its last request.
  bool rebuilding_ ABSL_GUARDED_BY(core_mu_) = false;

  // Short holds only: readers (scrapes, GetSession, device accesses) never wait for a walk here.
  absl::Mutex state_mu_ ABSL_ACQUIRED_AFTER(mu_, core_mu_);
  Progress progress_ ABSL_GUARDED_BY(state_mu_);
  std::shared_ptr<StreamHandle> stream_ ABSL_GUARDED_BY(state_mu_);
  std::shared_ptr<HypervisorSession> core_ ABSL_GUARDED_BY(state_mu_);  // null: ended
  SessionStats last_stats_ ABSL_GUARDED_BY(state_mu_);

  absl::Mutex fault_mu_;
  std::deque<vtd::FaultRecord> faults_ ABSL_GUARDED_BY(fault_mu_);
  uint64_t first_fault_ ABSL_GUARDED_BY(fault_mu_) = 0;  // number of faults_.front()
};

}  // namespace viommu

#endif  // VIOMMU_HYPERVISOR_SVC_GUEST_SESSION_H_
