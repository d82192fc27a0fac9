// Modelled time taken apart again: it is linear in exact counts, so the rows of a comparison can be
// priced anew without running anything.
#ifndef VIOMMU_GUEST_SVC_CLIENT_PRICING_H_
#define VIOMMU_GUEST_SVC_CLIENT_PRICING_H_

#include <string>
#include <utility>
#include <vector>

#include "viommu/v1/guest_service.pb.h"

namespace viommu::client {

// How often each constant of `preset` was paid in a run: modelled_ns_total is the sum of count
// times constant, plus modelled_wait_ns. The wait for the queue's lock comes from the order of
// things on the virtual clock; its constants have count 0 and a new price leaves it as it was.
std::vector<std::pair<std::string, double>> PricedEvents(const v1::CostPreset& preset,
                                                         const v1::WorkloadResult& result);

// modelled_ns_total under other constants, nanoseconds. Counts stay the run's: what the virtual
// clock decides (flush timers of a synthetic load, `adaptive`) is not decided again.
double Reprice(const v1::CostPreset& preset, const v1::WorkloadResult& result);

}  // namespace viommu::client

#endif  // VIOMMU_GUEST_SVC_CLIENT_PRICING_H_
