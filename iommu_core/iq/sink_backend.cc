#include "iommu_core/iq/sink_backend.h"

#include <algorithm>
#include <utility>

namespace viommu {

void SinkBackend::SetNext(std::vector<DeviceTouch> touches, TableClaim claim) {
  touches_ = std::move(touches);
  claim_ = claim;
}

std::optional<SinkCompletion> SinkBackend::TakeCompletion() {
  return std::exchange(completion_, std::nullopt);
}

absl::Duration SinkBackend::WaitTime() const {
  constexpr auto kNoDeadline = std::chrono::steady_clock::time_point::max();
  if (deadline_ == kNoDeadline) return timeout_;
  const absl::Duration left = absl::FromChrono(deadline_ - std::chrono::steady_clock::now());
  return std::clamp(left, absl::ZeroDuration(), timeout_);
}

absl::StatusOr<UnitBackend::Outcome> SinkBackend::Execute(
    std::span<const vtd::RawDescriptor> raw, std::span<const vtd::Descriptor> decoded) {
  (void)decoded;  // the hypervisor decodes again: it trusts nothing of ours
  if (!outstanding_) {
    auto ticket = sink_.Post(raw, touches_, claim_);
    if (!ticket.ok()) return ticket.status();
    touches_.clear();
    claim_ = TableClaim::kNone;
    outstanding_ = *ticket;
  }
  auto done = sink_.Await(*outstanding_, WaitTime());
  if (!done.ok()) {
    // After any other error the sink no longer knows the ticket; to send it anew is safe.
    if (!absl::IsDeadlineExceeded(done.status())) outstanding_.reset();
    return done.status();
  }
  outstanding_.reset();
  const Outcome outcome{done->consumed, done->error};
  completion_ = *std::move(done);
  return outcome;
}

}  // namespace viommu
