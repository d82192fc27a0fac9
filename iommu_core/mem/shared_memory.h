// Guest memory that both services map: one sealed memfd, guest-physical [0, size).
#ifndef VIOMMU_IOMMU_CORE_MEM_SHARED_MEMORY_H_
#define VIOMMU_IOMMU_CORE_MEM_SHARED_MEMORY_H_

#include <cstdint>
#include <memory>

#include "iommu_core/mem/physical_memory.h"

namespace viommu {

// Thread-safe for disjoint or atomic access, as real memory is. 8- and 4-byte accesses are single
// atomic loads and stores; ReadBytes/WriteBytes are not atomic.
class SharedMemory final : public PhysicalMemory {
 public:
  // Makes a memfd of `size_bytes` (page multiple), sealed against shrinking, growing and further
  // seals, so that a peer can neither truncate it under a mapping nor unseal it.
  static absl::StatusOr<std::unique_ptr<SharedMemory>> Create(uint64_t size_bytes);
  // Maps a region received from its creator. Checks the seals and the size before mapping.
  static absl::StatusOr<std::unique_ptr<SharedMemory>> FromFd(int fd, uint64_t size_bytes);
  ~SharedMemory() override;

  // Takes over the region of `fresh`, of the same size, at this object's own address: pointers into
  // the memory stay good. The caller has copied the content and lets nobody write meanwhile.
  absl::Status Adopt(const SharedMemory& fresh);

  int fd() const { return fd_; }
  uint64_t size_bytes() const { return size_bytes_; }

  std::optional<uint64_t> Read64(PhysAddr address) const override;
  bool Write64(PhysAddr address, uint64_t value) override;
  bool Write32(PhysAddr address, uint32_t value) override;
  std::optional<uint32_t> Read32(PhysAddr address) const override;
  bool ReadBytes(PhysAddr address, std::span<std::byte> out) const override;
  bool WriteBytes(PhysAddr address, std::span<const std::byte> in) override;
  const uint64_t* PageInPlace(PhysAddr page) const override;

 private:
  SharedMemory(int fd, std::byte* base, uint64_t size_bytes)
      : fd_(fd), base_(base), size_bytes_(size_bytes) {}
  bool Inside(PhysAddr address, uint64_t size_bytes) const {
    return address.value() < size_bytes_ && size_bytes <= size_bytes_ - address.value();
  }

  int fd_;
  std::byte* const base_;
  const uint64_t size_bytes_;
};

}  // namespace viommu

#endif  // VIOMMU_IOMMU_CORE_MEM_SHARED_MEMORY_H_
