// gRPC's deadlines by the steady clock. One that is given as wall time is turned into gRPC's own
// clock when gRPC gets it; where the wall clock is set in between, it is an hour early or late.
#ifndef VIOMMU_SVC_COMMON_STEADY_DEADLINE_H_
#define VIOMMU_SVC_COMMON_STEADY_DEADLINE_H_

#include <grpc/support/time.h>
#include <grpcpp/server_context.h>

#include <chrono>
#include <cstdint>

namespace viommu {

// For set_deadline, AsyncNext and alarms.
inline gpr_timespec GrpcDeadline(std::chrono::steady_clock::time_point at) {
  if (at == std::chrono::steady_clock::time_point::max()) {
    return gpr_inf_future(GPR_CLOCK_MONOTONIC);
  }
  const std::chrono::nanoseconds left = at - std::chrono::steady_clock::now();
  return gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC),
                      gpr_time_from_nanos(left.count(), GPR_TIMESPAN));
}

// Until when the caller waits; max(): for ever, or for more than a day.
inline std::chrono::steady_clock::time_point SteadyDeadline(
    const grpc::ServerContextBase& context) {
  const gpr_timespec left =
      gpr_time_sub(gpr_convert_clock_type(context.raw_deadline(), GPR_CLOCK_MONOTONIC),
                   gpr_now(GPR_CLOCK_MONOTONIC));
  if (gpr_time_cmp(left, gpr_time_from_hours(24, GPR_TIMESPAN)) > 0) {
    return std::chrono::steady_clock::time_point::max();
  }
  return std::chrono::steady_clock::now() + std::chrono::seconds(left.tv_sec) +
         std::chrono::nanoseconds(left.tv_nsec);
}

}  // namespace viommu

#endif  // VIOMMU_SVC_COMMON_STEADY_DEADLINE_H_
