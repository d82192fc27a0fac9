// Memory made of pages that exist only once written: modelled host memory, memory images, tests.
#ifndef VIOMMU_IOMMU_CORE_MEM_SPARSE_MEMORY_H_
#define VIOMMU_IOMMU_CORE_MEM_SPARSE_MEMORY_H_

#include <array>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "iommu_core/mem/physical_memory.h"

namespace viommu {

// Not thread-safe. Reads of pages never written give zero inside `ram`, nullopt outside.
class SparseMemory final : public PhysicalMemory {
 public:
  struct Ram {
    PhysAddr first;
    PhysAddr end;
  };
  explicit SparseMemory(std::vector<Ram> ram) : ram_(std::move(ram)) {}

  std::optional<uint64_t> Read64(PhysAddr address) const override;
  bool Write64(PhysAddr address, uint64_t value) override;
  bool Write32(PhysAddr address, uint32_t value) override;
  std::optional<uint32_t> Read32(PhysAddr address) const override;
  bool ReadBytes(PhysAddr address, std::span<std::byte> out) const override;
  bool WriteBytes(PhysAddr address, std::span<const std::byte> in) override;
  const uint64_t* PageInPlace(PhysAddr page) const override;

  // Forgets the content of a page: it reads as zero again.
  void Drop(PhysAddr page) { pages_.erase(page.value()); }
  size_t resident_pages() const { return pages_.size(); }

 private:
  using Page = std::array<uint64_t, kPageSize / sizeof(uint64_t)>;

  bool IsRam(PhysAddr address, uint64_t size_bytes) const;
  const Page* Find(PhysAddr address) const;
  Page& Touch(PhysAddr address);

  std::vector<Ram> ram_;
  absl::flat_hash_map<uint64_t, std::unique_ptr<Page>> pages_;
};

// Frames taken in ascending order from [first, end), freed ones first (last in, first out).
class SimpleFrameAllocator final : public FrameAllocator {
 public:
  SimpleFrameAllocator(PhysicalMemory& memory, PhysAddr first, PhysAddr end)
      : memory_(memory), next_(first), end_(end) {}

  absl::StatusOr<PhysAddr> Allocate() override;
  void Free(PhysAddr frame) override;
  uint64_t allocated() const override { return allocated_; }

 private:
  PhysicalMemory& memory_;
  PhysAddr next_;
  const PhysAddr end_;
  std::vector<PhysAddr> free_;
  uint64_t allocated_ = 0;
};

}  // namespace viommu

#endif  // VIOMMU_IOMMU_CORE_MEM_SPARSE_MEMORY_H_
