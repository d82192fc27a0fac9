// This guest's memory: a region that the hypervisor made, or for a hypervisor on another host one
// of this process alone. When the hypervisor was restarted and knows the region no more, the
// content moves into a new one.
#ifndef VIOMMU_GUEST_SVC_GUEST_MEMORY_H_
#define VIOMMU_GUEST_SVC_GUEST_MEMORY_H_

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "iommu_core/mem/physical_memory.h"
#include "svc_common/memory_channel.h"

namespace viommu {

// Not thread-safe against Renew: whoever renews holds the lock under which the machine works.
class GuestMemory final : public PhysicalMemory {
 public:
  static absl::StatusOr<std::unique_ptr<GuestMemory>> Create(std::string memory_socket,
                                                             uint64_t size_bytes);
  // CreateRemote if `remote`, else Create.
  static absl::StatusOr<std::unique_ptr<GuestMemory>> Create(bool remote, std::string memory_socket,
                                                             uint64_t size_bytes) {
    return remote ? CreateRemote(size_bytes) : Create(std::move(memory_socket), size_bytes);
  }
  // Nobody else maps it: the hypervisor asks for its pages over the stream.
  static absl::StatusOr<std::unique_ptr<GuestMemory>> CreateRemote(uint64_t size_bytes);

  bool remote() const { return granted_ == nullptr; }
  // Of shared memory.
  const std::string& token() const { return granted_->token(); }
  uint64_t size_bytes() const { return memory_.size_bytes(); }
  // The region of `refused_token` is not known to the hypervisor any more: asks for a new one and
  // moves everything there. OK without doing anything if that was done already. Shared memory only.
  absl::Status Renew(const std::string& refused_token);

  std::optional<uint64_t> Read64(PhysAddr address) const override {
    return memory_.Read64(address);
  }
  bool Write64(PhysAddr address, uint64_t value) override {
    return memory_.Write64(address, value);
  }
  bool Write32(PhysAddr address, uint32_t value) override {
    return memory_.Write32(address, value);
  }
  std::optional<uint32_t> Read32(PhysAddr address) const override {
    return memory_.Read32(address);
  }
  bool ReadBytes(PhysAddr address, std::span<std::byte> out) const override {
    return memory_.ReadBytes(address, out);
  }
  bool WriteBytes(PhysAddr address, std::span<const std::byte> in) override {
    return memory_.WriteBytes(address, in);
  }
  const uint64_t* PageInPlace(PhysAddr page) const override { return memory_.PageInPlace(page); }

 private:
  GuestMemory(std::string memory_socket, std::unique_ptr<GrantedMemory> granted)
      : memory_socket_(std::move(memory_socket)),
        granted_(std::move(granted)),
        memory_(granted_->memory()) {}
  explicit GuestMemory(std::unique_ptr<SharedMemory> own) : own_(std::move(own)), memory_(*own_) {}

  const std::string memory_socket_;
  const std::unique_ptr<GrantedMemory> granted_;  // null: remote
  const std::unique_ptr<SharedMemory> own_;       // null: shared
  SharedMemory& memory_;
};

}  // namespace viommu

#endif  // VIOMMU_GUEST_SVC_GUEST_MEMORY_H_
