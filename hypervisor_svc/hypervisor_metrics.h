// The hypervisor's metrics: mirrored from the sessions' own totals at each scrape, so that no
// invalidation ever touches a metric.
#ifndef VIOMMU_HYPERVISOR_SVC_HYPERVISOR_METRICS_H_
#define VIOMMU_HYPERVISOR_SVC_HYPERVISOR_METRICS_H_

#include <prometheus/collectable.h>

#include <vector>

#include "hypervisor_svc/session_registry.h"

namespace viommu {

class HypervisorMetrics final : public prometheus::Collectable {
 public:
  // `registry` outlives it.
  explicit HypervisorMetrics(SessionRegistry& registry) : registry_(registry) {}

  std::vector<prometheus::MetricFamily> Collect() const override;

 private:
  SessionRegistry& registry_;
};

}  // namespace viommu

#endif  // VIOMMU_HYPERVISOR_SVC_HYPERVISOR_METRICS_H_
