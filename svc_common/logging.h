// Logs of the services: spdlog on standard error, since standard output carries the READY line.
#ifndef VIOMMU_SVC_COMMON_LOGGING_H_
#define VIOMMU_SVC_COMMON_LOGGING_H_

#include <string>

namespace viommu {

// Call once, first thing in main. gRPC's own lines are kept at debug level: what they say is said
// again, in one line, by whoever made the call. Level from VIOMMU_LOG_LEVEL (default info).
void InitLogging(const std::string& program);

}  // namespace viommu

#endif  // VIOMMU_SVC_COMMON_LOGGING_H_
