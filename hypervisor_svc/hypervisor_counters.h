// Totals of the whole process that no single session keeps.
#ifndef VIOMMU_HYPERVISOR_SVC_HYPERVISOR_COUNTERS_H_
#define VIOMMU_HYPERVISOR_SVC_HYPERVISOR_COUNTERS_H_

#include <array>
#include <atomic>
#include <cstdint>

#include "absl/status/status.h"
#include "svc_common/metrics.h"

namespace viommu {

enum class SyncTrigger { kBatch, kRegisters, kDevice };
inline constexpr std::array<const char*, 3> kSyncTriggerNames = {"batch", "registers", "device"};
inline constexpr int kStrategies = 5;
// By v1::ResetRequired::Reason.
inline constexpr std::array<const char*, 4> kResyncNames = {"unspecified", "unknown_session",
                                                            "sequence_gap", "shadow_mismatch"};

// Why a remote guest's memory could not be used, beside a broken stream.
enum class RemoteFailure { kTimeout, kWrongAnswer, kLimit };
inline constexpr std::array<const char*, 3> kRemoteFailureNames = {"timeout", "wrong_answer",
                                                                   "limit"};

struct HypervisorCounters {
  // Wall time of one synchronisation: [trigger][strategy].
  WallHistogram sync_wall[kSyncTriggerNames.size()][kStrategies];
  std::array<std::atomic<uint64_t>, kResyncNames.size()> resyncs{};
  WallHistogram remote_wait_wall;  // for one answer about a remote guest's memory
  std::array<std::atomic<uint64_t>, kRemoteFailureNames.size()> remote_failures{};
  // Messages of guests' streams that were refused, by absl::StatusCode.
  std::array<std::atomic<uint64_t>, 17> refusals{};

  void CountRefusal(absl::StatusCode code) {
    const auto index = static_cast<size_t>(code);
    if (index < refusals.size()) refusals[index].fetch_add(1, std::memory_order_relaxed);
  }
};

}  // namespace viommu

#endif  // VIOMMU_HYPERVISOR_SVC_HYPERVISOR_COUNTERS_H_
