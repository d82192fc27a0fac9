// Logs of the services: spdlog on standard error, since standard output carries the READY line.
#ifndef VIOMMU_SVC_COMMON_LOGGING_H_
#define VIOMMU_SVC_COMMON_LOGGING_H_

#include <cstdint>
#include <string>

namespace viommu {

// Call once, first thing in main. gRPC's own lines are kept at debug level: what they say is said
// again, in one line, by whoever made the call. Level from VIOMMU_LOG_LEVEL (default info).
void InitLogging(const std::string& program);

// TLS handshakes of this process that failed, as server or as client. gRPC has no call for that; it
// says so in a line of its own, which is counted (none before InitLogging). What ends without an
// alert, such as a connection that is closed, is not among them.
uint64_t TlsHandshakesFailed();

}  // namespace viommu

#endif  // VIOMMU_SVC_COMMON_LOGGING_H_
