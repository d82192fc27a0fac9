// Scores the shadow cases: QEMU's calls against a model of its rules, our hypervisor session
// against the flattening of the guest's tables.
#ifndef VIOMMU_GUEST_SVC_CLIENT_CONFORMANCE_SHADOW_H_
#define VIOMMU_GUEST_SVC_CLIENT_CONFORMANCE_SHADOW_H_

#include <optional>
#include <set>
#include <string>

#include "guest_svc/client/conformance.h"
#include "guest_svc/client/conformance_case.h"

namespace viommu::conformance {

// Whether the case is about what a hypervisor keeps mapped.
bool IsShadowCase(const Case& recorded);

// The first difference between the recorded calls and what QEMU's rules give.
std::optional<std::string> QemuShadowDifference(const Case& recorded);

// The first step after which what our session lets a device reach is not what the guest's tables
// say: where everything that changed was invalidated, exactly that; elsewhere, page by page, that
// or what stood before. Write-only leaves may have become read-write.
std::optional<std::string> SessionDifference(const Case& recorded);

// Steps after which QEMU's recorded shadow is not what the tables say although everything that
// changed was invalidated.
struct ShadowDepartures {
  std::set<Departure> departures;
  std::string first;    // the first such step
  std::string unnamed;  // not empty: a step whose recording names no known departure
};
ShadowDepartures RecordedShadowDepartures(const Case& recorded);

}  // namespace viommu::conformance

#endif  // VIOMMU_GUEST_SVC_CLIENT_CONFORMANCE_SHADOW_H_
