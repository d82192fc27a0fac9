// How a guest gets its memory: it asks for a size over a unix socket; the hypervisor makes a sealed
// memfd and passes it back (SCM_RIGHTS) with a token that OpenSession names. The guest never sends
// a descriptor or a path.
#ifndef VIOMMU_SVC_COMMON_MEMORY_CHANNEL_H_
#define VIOMMU_SVC_COMMON_MEMORY_CHANNEL_H_

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "iommu_core/mem/shared_memory.h"

namespace viommu {

// One packet each way on a SOCK_SEQPACKET socket; both ends are on one host, so host byte order.
struct MemoryRequest {
  static constexpr uint64_t kMagic = 0x31304d454d5049;  // "IPMEM01"
  uint64_t magic = kMagic;
  uint64_t size_bytes = 0;
};
struct MemoryReply {
  uint32_t code = 0;       // absl::StatusCode; 0 comes with a descriptor
  char token[40] = {};     // zero-terminated
  char message[212] = {};  // zero-terminated
};

// A region and the connection that keeps it alive on the hypervisor until a session uses it.
class GrantedMemory {
 public:
  // Unavailable: nobody listens on `socket_path`. Other codes as the hypervisor refused.
  static absl::StatusOr<std::unique_ptr<GrantedMemory>> Request(const std::string& socket_path,
                                                                uint64_t size_bytes);
  ~GrantedMemory();

  // This memory, at its address, becomes the region of `fresh`, which is left with the old grant.
  absl::Status Adopt(GrantedMemory& fresh);

  const std::string& token() const { return token_; }
  SharedMemory& memory() { return *memory_; }
  const SharedMemory& memory() const { return *memory_; }

 private:
  GrantedMemory(int connection, std::string token, std::unique_ptr<SharedMemory> memory)
      : connection_(connection), token_(std::move(token)), memory_(std::move(memory)) {}

  int connection_;
  std::string token_;
  const std::unique_ptr<SharedMemory> memory_;
};

}  // namespace viommu

#endif  // VIOMMU_SVC_COMMON_MEMORY_CHANNEL_H_
