// The shortest wire: a virtual unit's descriptors applied to a session of the same process.
#ifndef VIOMMU_IOMMU_CORE_LOAD_IN_PROCESS_SINK_H_
#define VIOMMU_IOMMU_CORE_LOAD_IN_PROCESS_SINK_H_

#include <cstdint>
#include <deque>
#include <span>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "iommu_core/iq/invalidation_sink.h"
#include "iommu_core/shadow/hypervisor_session.h"

namespace viommu {

// For tests and benchmarks: no process boundary, so wall times say nothing about one.
class InProcessSink final : public InvalidationSink {
 public:
  // `session` outlives the sink.
  explicit InProcessSink(HypervisorSession& session) : session_(session) {}

  absl::StatusOr<uint64_t> Post(std::span<const vtd::RawDescriptor> descriptors,
                                std::span<const DeviceTouch> touches, TableClaim claim) override {
    SinkCompletion completion = session_.Apply(descriptors, touches, claim);
    absl::MutexLock lock(&mutex_);
    done_.emplace_back(++last_ticket_, std::move(completion));
    return last_ticket_;
  }

  absl::StatusOr<SinkCompletion> Await(uint64_t ticket, absl::Duration) override {
    absl::MutexLock lock(&mutex_);
    for (auto it = done_.begin(); it != done_.end(); ++it) {
      if (it->first != ticket) continue;
      SinkCompletion completion = std::move(it->second);
      done_.erase(it);
      return completion;
    }
    return absl::InvalidArgumentError("no batch has this ticket");
  }

  absl::Status UpdateRegisters(const UnitRegisters& registers) override {
    return session_.UpdateRegisters(registers);
  }

  absl::Status UpdateDevice(SourceId sid, bool present, bool has_device_tlb) override {
    return present ? session_.AddDevice(sid, has_device_tlb) : session_.RemoveDevice(sid);
  }

 private:
  HypervisorSession& session_;
  absl::Mutex mutex_;
  uint64_t last_ticket_ ABSL_GUARDED_BY(mutex_) = 0;
  std::deque<std::pair<uint64_t, SinkCompletion>> done_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace viommu

#endif  // VIOMMU_IOMMU_CORE_LOAD_IN_PROCESS_SINK_H_
