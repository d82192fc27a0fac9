// A remote guest's memory, asked for over its session's stream. The guest is not trusted: an answer
// is checked against its question before anything of it is used, and waited for only so long.
#ifndef VIOMMU_HYPERVISOR_SVC_GUEST_PAGES_H_
#define VIOMMU_HYPERVISOR_SVC_GUEST_PAGES_H_

#include <chrono>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "hypervisor_svc/hypervisor_counters.h"
#include "iommu_core/mem/remote_memory.h"
#include "svc_common/steady_wait.h"
#include "viommu/v1/hypervisor_service.pb.h"

namespace viommu {

class GuestPages;

// How another thread reaches a session's stream.
class StreamHandle {
 public:
  virtual ~StreamHandle() = default;
  // Sends one message; nothing happens if the stream is ending.
  virtual void Push(const v1::InvalidateResponse& response) = 0;
  // Sends a question about guest memory. Its answer goes to `pages`, past the requests that the
  // stream carries out or keeps waiting. If the stream ends first, `pages` hears of that.
  virtual void Ask(const v1::InvalidateResponse& question,
                   const std::shared_ptr<GuestPages>& pages) = 0;
  // Ends the stream with `status`.
  virtual void End(const absl::Status& status) = 0;
};

// One caller at a time asks (the session's core serialises); streams answer from any thread.
class GuestPages final : public PageSource, public std::enable_shared_from_this<GuestPages> {
 public:
  // Of one question; a longer fetch is asked in several at once.
  static constexpr size_t kMaxPagesPerQuestion = 256;

  // Answers come within `timeout`. `counters` outlive this.
  GuestPages(std::chrono::milliseconds timeout, HypervisorCounters& counters)
      : timeout_(timeout), counters_(counters) {}

  // Questions go to `stream` from now on.
  void Attach(const std::shared_ptr<StreamHandle>& stream) ABSL_LOCKS_EXCLUDED(mu_);
  // `stream` is over: whoever waits for it, and whoever asks before the next Attach, gets `why`.
  // Another stream than the current one: nothing.
  void Detach(const StreamHandle* stream, const absl::Status& why) ABSL_LOCKS_EXCLUDED(mu_);
  // The same, whichever stream it is.
  void Stop(const absl::Status& why) ABSL_LOCKS_EXCLUDED(mu_);
  // A message with table_pages or memory_written came over `stream`.
  void Deliver(const StreamHandle* stream, v1::InvalidateRequest answer) ABSL_LOCKS_EXCLUDED(mu_);

  // Unavailable: no stream, or it broke. DeadlineExceeded with reason PAGES_NOT_ANSWERED,
  // InvalidArgument with reason WRONG_PAGES: the guest's fault, which ends its stream. Once one
  // failed, all do until the next Attach.
  absl::Status Fetch(std::span<const PhysAddr> pages, std::span<RemotePage* const> out) override
      ABSL_LOCKS_EXCLUDED(mu_);
  absl::Status Store(PhysAddr address, std::span<const std::byte> data) override
      ABSL_LOCKS_EXCLUDED(mu_);

 private:
  // Sends `questions` and waits for as many answers.
  absl::Status Exchange(std::span<const v1::InvalidateResponse> questions,
                        std::vector<v1::InvalidateRequest>& answers) ABSL_LOCKS_EXCLUDED(mu_);
  // The guest did what no guest does: ends its stream.
  absl::Status Fail(RemoteFailure failure, const absl::Status& status) ABSL_LOCKS_EXCLUDED(mu_);

  const std::chrono::milliseconds timeout_;
  HypervisorCounters& counters_;
  uint64_t next_id_ = 1;  // of whoever asks

  SteadyMutex mu_;
  std::weak_ptr<StreamHandle> stream_ ABSL_GUARDED_BY(mu_);
  const StreamHandle* current_ ABSL_GUARDED_BY(mu_) = nullptr;  // to compare with, never followed
  absl::Status broken_ ABSL_GUARDED_BY(mu_) = absl::UnavailableError("the guest is not connected");
  uint64_t stream_number_ ABSL_GUARDED_BY(mu_) = 0;
  size_t awaited_ ABSL_GUARDED_BY(mu_) = 0;
  std::vector<v1::InvalidateRequest> answers_ ABSL_GUARDED_BY(mu_);
};

// A remote guest's memory and where it comes from.
struct RemoteGuest {
  std::shared_ptr<GuestPages> pages;
  std::unique_ptr<RemoteMemory> memory;
};

}  // namespace viommu

#endif  // VIOMMU_HYPERVISOR_SVC_GUEST_PAGES_H_
