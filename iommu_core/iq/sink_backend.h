// The backend of a guest's virtual unit: every doorbell goes to the hypervisor as one message.
#ifndef VIOMMU_IOMMU_CORE_IQ_SINK_BACKEND_H_
#define VIOMMU_IOMMU_CORE_IQ_SINK_BACKEND_H_

#include <chrono>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "iommu_core/iq/invalidation_sink.h"
#include "iommu_core/iq/vtd_unit.h"

namespace viommu {

// Not thread-safe; driven by the holder of the queue lock.
class SinkBackend final : public UnitBackend {
 public:
  // `sink` outlives the backend.
  explicit SinkBackend(InvalidationSink& sink) : sink_(sink) {}

  // What goes with the next doorbell (InvalidationSink::Post).
  void SetNext(std::vector<DeviceTouch> touches, TableClaim claim);
  // How long a doorbell waits for its completion before it is left outstanding.
  void set_timeout(absl::Duration timeout) { timeout_ = timeout; }
  // Beside that, no wait goes on after `until`.
  void set_deadline(std::chrono::steady_clock::time_point until) { deadline_ = until; }
  // The completion of the last doorbell that completed, once.
  std::optional<SinkCompletion> TakeCompletion();

  // DeadlineExceeded: sent, and awaited again (not sent again) by the next call, which the unit
  // makes with the same descriptors. Any other error, of Post or of Await: the next call sends
  // them.
  absl::StatusOr<Outcome> Execute(std::span<const vtd::RawDescriptor> raw,
                                  std::span<const vtd::Descriptor> decoded) override;
  absl::Status RegistersChanged(const UnitRegisters& registers) override {
    return sink_.UpdateRegisters(registers);
  }

 private:
  absl::Duration WaitTime() const;

  InvalidationSink& sink_;
  absl::Duration timeout_ = absl::Seconds(10);
  std::chrono::steady_clock::time_point deadline_ = std::chrono::steady_clock::time_point::max();
  std::vector<DeviceTouch> touches_;
  TableClaim claim_ = TableClaim::kNone;
  std::optional<uint64_t> outstanding_;  // ticket of the doorbell that is being awaited
  std::optional<SinkCompletion> completion_;
};

}  // namespace viommu

#endif  // VIOMMU_IOMMU_CORE_IQ_SINK_BACKEND_H_
