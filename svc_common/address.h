// Addresses as flags and READY lines name them: `unix:PATH` or `HOST:PORT`.
#ifndef VIOMMU_SVC_COMMON_ADDRESS_H_
#define VIOMMU_SVC_COMMON_ADDRESS_H_

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace viommu {

struct Address {
  std::string unix_path;  // not empty: a unix socket
  std::string host;       // without brackets
  uint16_t port = 0;      // 0: pick one

  bool is_unix() const { return !unix_path.empty(); }
  // Only this machine can reach it: a unix socket, 127.0.0.0/8, ::1 or "localhost".
  bool is_local() const;
  // As gRPC and people read it.
  std::string ToString() const;
};

// InvalidArgument: neither form, a port above 65535, a path too long for a socket.
absl::StatusOr<Address> ParseAddress(const std::string& text);

// Makes `path` free for a listener: removes a socket file that a crash left behind.
// AlreadyExists: somebody listens there, or it is no socket. NotFound: no such folder.
absl::Status ClearStaleSocket(const std::string& path);

// Where the memory socket of a hypervisor at `grpc` is unless a flag says otherwise: PATH.mem, or
// mem-PORT.sock in the user's runtime folder ($XDG_RUNTIME_DIR/viommu, else /tmp/viommu-UID).
std::string DefaultMemorySocket(const Address& grpc);

// Makes the folder of a default memory socket with owner-only permissions. PermissionDenied: it
// exists but belongs to somebody else or others may enter it.
absl::Status PrepareRuntimeFolder();

}  // namespace viommu

#endif  // VIOMMU_SVC_COMMON_ADDRESS_H_
