// IOVA space of one domain, allocated as Linux does (drivers/iommu/iova.c, dma-iommu.c): top-down,
// naturally aligned, per-CPU magazines in front of a tree of ranges.
#ifndef VIOMMU_IOMMU_CORE_IOVA_IOVA_ALLOCATOR_H_
#define VIOMMU_IOMMU_CORE_IOVA_IOVA_ALLOCATOR_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "iommu_core/base/types.h"

namespace viommu {

struct IovaAllocatorOptions {
  uint32_t cpus = 1;
  // Highest address a device of the domain can issue, and the address width of its tables, in bits.
  int dma_mask_bits = 64;
  int address_width = 39;
};

// Thread-safe; calls for different CPUs meet only in the depot and the tree.
class IovaAllocator {
 public:
  explicit IovaAllocator(IovaAllocatorOptions options);
  ~IovaAllocator();

  // A range of whole pages, aligned to its size rounded up to a power of two. Never page 0, never
  // the MSI window 0xfee00000-0xfeefffff. 32-bit first until the first failure there
  // (iommu_dma_alloc_iova), then the whole mask. ResourceExhausted if nothing is free.
  absl::StatusOr<Iova> Allocate(uint64_t size_bytes, uint32_t cpu);
  // Gives back what Allocate returned, same size. Goes to `cpu`'s magazine for orders 0-5.
  void Free(Iova iova, uint64_t size_bytes, uint32_t cpu);
  // What `cpu`'s magazines hold, one page each, at most `out.size()` of them: page numbers in the
  // order in which Allocate would give them out. Returns how many; never goes to the tree. They
  // count as allocated.
  size_t TakeCachedPages(uint32_t cpu, std::span<uint64_t> out);
  // Gives page numbers of one-page ranges back to `cpu`'s magazines, the first of them first.
  void GiveBackPages(uint32_t cpu, std::span<const uint64_t> pfns);
  // Takes a range out of the space for good. AlreadyExists if part of it is allocated.
  absl::Status Reserve(IovaRange range);

  // Bytes handed out and not given back.
  uint64_t allocated_bytes() const;
  // Ranges in the tree, magazines' content included (they stay in the tree, as Linux's do).
  uint64_t tree_ranges() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace viommu

#endif  // VIOMMU_IOMMU_CORE_IOVA_IOVA_ALLOCATOR_H_
