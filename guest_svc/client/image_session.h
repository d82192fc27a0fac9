// Puts a saved guest in front of a real hypervisor: its memory, its registers, its devices.
#ifndef VIOMMU_GUEST_SVC_CLIENT_IMAGE_SESSION_H_
#define VIOMMU_GUEST_SVC_CLIENT_IMAGE_SESSION_H_

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "iommu_core/load/memory_image.h"
#include "iommu_core/load/table_listing.h"
#include "svc_common/credentials.h"

namespace viommu::client {

struct ImageSession {
  std::string hypervisor;  // address
  std::string memory_socket;
  uint64_t guest_ram_bytes = 0;
  PhysAddr root_table;
  bool translation_enabled = true;
};

// Copies the image into memory of the hypervisor's, opens a session with the unit of `rules`,
// registers `devices`, turns translation on, invalidates globally and lists what the shadow then
// holds. The session is closed before it returns.
absl::StatusOr<std::vector<ListedMapping>> ListThroughHypervisor(
    const ImageSession& session, const MemoryImage& image, const WalkRules& rules,
    const std::vector<ListedDevice>& devices, const TlsFlags& tls);

}  // namespace viommu::client

#endif  // VIOMMU_GUEST_SVC_CLIENT_IMAGE_SESSION_H_
