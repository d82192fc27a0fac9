// The one seam between an IOMMU and the memory it reads: tables, queue, status words, DMA data.
#ifndef VIOMMU_IOMMU_CORE_MEM_PHYSICAL_MEMORY_H_
#define VIOMMU_IOMMU_CORE_MEM_PHYSICAL_MEMORY_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "absl/status/statusor.h"
#include "iommu_core/base/types.h"

namespace viommu {

// What was copied from another host.
struct PullCounts {
  uint64_t pages = 0;
  uint64_t bytes = 0;
  uint64_t round_trips = 0;  // waits for an answer, however many pages it brought

  friend bool operator==(const PullCounts&, const PullCounts&) = default;
};

class PhysicalMemory;

// What a reader does about a memory whose pages are copied here from another host. Copies are a
// cache, so all of this is const.
class PulledMemory {
 public:
  virtual ~PulledMemory() = default;

  // Reads from now on give values that were there at this call or later.
  virtual void Refresh() const = 0;
  // The page-aligned `pages` are read next: copies those that are missing with one wait.
  virtual void Prefetch(std::span<const PhysAddr> pages) const = 0;
  // A pull failed since Refresh: what reads as no memory may be some.
  virtual bool failed() const = 0;
  // Since the memory was made.
  virtual PullCounts counts() const = 0;
  // The same memory with copies and counts of its own, so that what the oracle reads is neither
  // charged to the synchronisation nor spared it.
  virtual const PhysicalMemory& oracle_view() const = 0;
};

// Another agent may change this memory at any time. Every read returns a value that was there at
// one moment; a caller that checks a value acts on the copy it checked, never on a second read.
class PhysicalMemory {
 public:
  virtual ~PhysicalMemory() = default;

  // One atomic 8-byte load; `address` is 8-byte aligned. nullopt: not memory.
  virtual std::optional<uint64_t> Read64(PhysAddr address) const = 0;
  // One atomic store; `address` is naturally aligned. False: not memory, nothing stored.
  virtual bool Write64(PhysAddr address, uint64_t value) = 0;
  virtual bool Write32(PhysAddr address, uint32_t value) = 0;
  virtual std::optional<uint32_t> Read32(PhysAddr address) const = 0;

  // Bulk data (DMA buffers). False: part of the range is not memory, nothing was done.
  virtual bool ReadBytes(PhysAddr address, std::span<std::byte> out) const = 0;
  virtual bool WriteBytes(PhysAddr address, std::span<const std::byte> in) = 0;

  // A page as 512 entries in place, for bulk compares; entries may change while they are read, so
  // each is loaded once (relaxed atomic) and used from a register. nullptr: not memory, or this
  // memory has no page in place (read it entry by entry). `page` is page-aligned. Of a pulled
  // memory the page is good until the next read, prefetch or refresh; of others for good.
  virtual const uint64_t* PageInPlace(PhysAddr page) const = 0;

  // Null: reads cost no more than a load.
  virtual const PulledMemory* pulled() const { return nullptr; }
};

// Hands out zeroed table pages.
class FrameAllocator {
 public:
  virtual ~FrameAllocator() = default;
  // A zeroed page-aligned page, or ResourceExhausted.
  virtual absl::StatusOr<PhysAddr> Allocate() = 0;
  // `frame` came from Allocate and is no longer referenced by any table.
  virtual void Free(PhysAddr frame) = 0;
  virtual uint64_t allocated() const = 0;
};

}  // namespace viommu

#endif  // VIOMMU_IOMMU_CORE_MEM_PHYSICAL_MEMORY_H_
