// Compares what our unit showed with what was recorded.
#ifndef VIOMMU_GUEST_SVC_CLIENT_CONFORMANCE_SCORE_H_
#define VIOMMU_GUEST_SVC_CLIENT_CONFORMANCE_SCORE_H_

#include <optional>
#include <set>
#include <string>
#include <tuple>

#include "guest_svc/client/conformance.h"
#include "guest_svc/client/conformance_case.h"
#include "iommu_core/vtd/capability.h"

namespace viommu::conformance {

// Where pages were recorded to lead, or a walk said they do, earlier in a case.
class SeenTranslations {
 public:
  void Remember(const Step& step);
  bool Contains(SourceId sid, Iova iova, PhysAddr address) const;

 private:
  std::set<std::tuple<SourceId, uint64_t, uint64_t>> pages_;  // page numbers
};

// The first difference, or nullopt where the step may pass. Any of the recorded observations will
// do; where the specification leaves the outcome open, so will that of a plain walk and any earlier
// translation of the page, which a cache may still hold.
std::optional<std::string> Difference(const Step& step, const Observation& seen,
                                      const SeenTranslations& history);

// The departure that makes QEMU differ like this in one access of a device.
std::optional<Departure> AccessDeparture(const Step& step, const Observation& seen);

// Departures of the queue and the registers that the steps of a case run into. They change what
// happens later, so all that follows is QEMU's own history.
class QueueDepartures {
 public:
  explicit QueueDepartures(const vtd::Capabilities& caps) : caps_(caps) {}

  // Before `step`, with the status registers as our unit shows them.
  void Observe(const Step& step, uint64_t gsts, uint64_t fsts);
  const std::set<Departure>& touched() const { return touched_; }

 private:
  void ObserveWrite(const Step& step, uint64_t gsts, uint64_t fsts);

  const vtd::Capabilities caps_;
  std::set<Departure> touched_;
};

}  // namespace viommu::conformance

#endif  // VIOMMU_GUEST_SVC_CLIENT_CONFORMANCE_SCORE_H_
