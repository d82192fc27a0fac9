// The guest's metrics: its own few counters, and the machine's totals mirrored at each scrape.
#ifndef VIOMMU_GUEST_SVC_GUEST_METRICS_H_
#define VIOMMU_GUEST_SVC_GUEST_METRICS_H_

#include <prometheus/collectable.h>

#include <array>
#include <atomic>
#include <functional>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "iommu_core/dma/guest_machine.h"
#include "svc_common/metrics.h"

namespace viommu {

enum class DmaOpKind { kMap, kUnmap, kAccess };

class GuestMetrics final : public prometheus::Collectable {
 public:
  // One operation is over. Thread-safe, no lock.
  void CountOp(DmaOpKind op, absl::StatusCode code) {
    const auto index = static_cast<size_t>(code) < kCodes ? static_cast<size_t>(code) : 0;
    ops_[static_cast<size_t>(op)][index].fetch_add(1, std::memory_order_relaxed);
  }
  // A stream to the hypervisor broke with `code`.
  void CountReconnect(absl::StatusCode code) {
    const auto index = static_cast<size_t>(code) < kCodes ? static_cast<size_t>(code) : 0;
    reconnects_[index].fetch_add(1, std::memory_order_relaxed);
  }
  // From a doorbell's message to its completion.
  WallHistogram& ack_wall() { return ack_wall_; }

  // Where the totals of the real-time machine come from. Called at scrapes, from another thread.
  void set_machine_stats(std::function<GuestStats()> stats) ABSL_LOCKS_EXCLUDED(mu_);

  std::vector<prometheus::MetricFamily> Collect() const override ABSL_LOCKS_EXCLUDED(mu_);

 private:
  static constexpr size_t kOps = 3;
  static constexpr size_t kCodes = 17;  // google.rpc.Code

  std::array<std::array<std::atomic<uint64_t>, kCodes>, kOps> ops_{};
  std::array<std::atomic<uint64_t>, kCodes> reconnects_{};
  WallHistogram ack_wall_;
  mutable absl::Mutex mu_;
  std::function<GuestStats()> machine_stats_ ABSL_GUARDED_BY(mu_);
};

}  // namespace viommu

#endif  // VIOMMU_GUEST_SVC_GUEST_METRICS_H_
