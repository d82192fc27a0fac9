// The report of `viommu compare`: one HTML file that needs nothing else.
#ifndef VIOMMU_GUEST_SVC_CLIENT_REPORT_H_
#define VIOMMU_GUEST_SVC_CLIENT_REPORT_H_

#include <string>

#include "guest_svc/client/comparison.h"

namespace viommu::client {

std::string ToHtml(const Comparison& comparison);

}  // namespace viommu::client

#endif  // VIOMMU_GUEST_SVC_CLIENT_REPORT_H_
