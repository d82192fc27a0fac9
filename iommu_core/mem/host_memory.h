// Modelled host memory: the pages that hold the physical IOMMU's tables.
#ifndef VIOMMU_IOMMU_CORE_MEM_HOST_MEMORY_H_
#define VIOMMU_IOMMU_CORE_MEM_HOST_MEMORY_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "iommu_core/mem/physical_memory.h"

namespace viommu {

// One contiguous reservation [0, capacity) of which only pages that were touched cost memory.
// Frames are taken in ascending order, freed ones first. Not thread-safe for allocation; entries
// may be read by another agent (the physical unit) while their owner stores them.
class HostMemory final : public PhysicalMemory, public FrameAllocator {
 public:
  // Reserves `capacity_pages` of address space; nothing of it is committed.
  static absl::StatusOr<std::unique_ptr<HostMemory>> Create(uint64_t capacity_pages);
  ~HostMemory() override;
  HostMemory(const HostMemory&) = delete;
  HostMemory& operator=(const HostMemory&) = delete;

  std::optional<uint64_t> Read64(PhysAddr address) const override;
  bool Write64(PhysAddr address, uint64_t value) override;
  bool Write32(PhysAddr address, uint32_t value) override;
  std::optional<uint32_t> Read32(PhysAddr address) const override;
  bool ReadBytes(PhysAddr address, std::span<std::byte> out) const override;
  bool WriteBytes(PhysAddr address, std::span<const std::byte> in) override;
  const uint64_t* PageInPlace(PhysAddr page) const override;

  absl::StatusOr<PhysAddr> Allocate() override;
  void Free(PhysAddr frame) override;
  // The same for a frame whose entries are all zero already.
  void FreeZeroed(PhysAddr frame);
  uint64_t allocated() const override { return next_ - free_.size(); }

  // The entries of a frame from Allocate, for its owner.
  uint64_t* Entries(PhysAddr frame) { return reinterpret_cast<uint64_t*>(base_ + frame.value()); }
  const uint64_t* Entries(PhysAddr frame) const {
    return reinterpret_cast<const uint64_t*>(base_ + frame.value());
  }

 private:
  HostMemory(std::byte* base, uint64_t capacity_pages)
      : base_(base), capacity_pages_(capacity_pages) {}
  bool Inside(PhysAddr address, uint64_t size_bytes) const {
    const uint64_t end = next_ << kPageShift;
    return address.value() < end && size_bytes <= end - address.value();
  }

  std::byte* const base_;
  const uint64_t capacity_pages_;
  uint64_t next_ = 0;           // frames below were handed out at least once
  std::vector<uint32_t> free_;  // frame numbers, all zeroed
};

}  // namespace viommu

#endif  // VIOMMU_IOMMU_CORE_MEM_HOST_MEMORY_H_
