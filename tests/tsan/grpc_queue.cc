// Tells ThreadSanitizer about gRPC's completion queues. Debian's gRPC is not instrumented: that
// what a thread wrote into an operation before it handed it over is seen by the thread that takes
// the operation's tag from the queue is ordered inside the library. These definitions take the
// place of the library's (by the dynamic linker's order), call it, and name that order.
#include <grpc/grpc.h>
#include <sanitizer/tsan_interface.h>

#include "tests/tsan/next_definition.h"

namespace {

grpc_event Taken(grpc_event event) {
  if (event.type == GRPC_OP_COMPLETE) __tsan_acquire(event.tag);
  return event;
}

}  // namespace

#define VIOMMU_REAL(name) static auto* const real = viommu::NextDefinition<decltype(name)>(#name)

extern "C" {

grpc_call_error grpc_call_start_batch(grpc_call* call, const grpc_op* ops, size_t count, void* tag,
                                      void* reserved) {
  VIOMMU_REAL(grpc_call_start_batch);
  __tsan_release(tag);
  return real(call, ops, count, tag, reserved);
}

grpc_call_error grpc_server_request_registered_call(grpc_server* server, void* method,
                                                    grpc_call** call, gpr_timespec* deadline,
                                                    grpc_metadata_array* metadata,
                                                    grpc_byte_buffer** payload,
                                                    grpc_completion_queue* bound,
                                                    grpc_completion_queue* notified, void* tag) {
  VIOMMU_REAL(grpc_server_request_registered_call);
  __tsan_release(tag);
  return real(server, method, call, deadline, metadata, payload, bound, notified, tag);
}

grpc_event grpc_completion_queue_next(grpc_completion_queue* queue, gpr_timespec deadline,
                                      void* reserved) {
  VIOMMU_REAL(grpc_completion_queue_next);
  return Taken(real(queue, deadline, reserved));
}

grpc_event grpc_completion_queue_pluck(grpc_completion_queue* queue, void* tag,
                                       gpr_timespec deadline, void* reserved) {
  VIOMMU_REAL(grpc_completion_queue_pluck);
  return Taken(real(queue, tag, deadline, reserved));
}

}  // extern "C"
