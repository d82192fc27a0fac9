// A log of table writes in guest memory: the guest marks, the hypervisor collects. It stands for a
// para-virtual interface, or for page-modification logging of the pages that hold IO page tables.
#ifndef VIOMMU_IOMMU_CORE_MEM_DIRTY_LOG_H_
#define VIOMMU_IOMMU_CORE_MEM_DIRTY_LOG_H_

#include <array>
#include <cstdint>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "iommu_core/base/types.h"
#include "iommu_core/mem/physical_memory.h"

namespace viommu {

// One byte per guest page, then one byte per 64-byte line of each page: bytes, since two writers that
// set bits of one word would need a locked instruction. Not zero means written.
//
// No write is lost if the writer stores entry, line byte, page byte in this order, and the collector
// at each level clears the bytes it saw, then fences, then reads the level below. (A mark before its
// entry, or no fence, does lose writes.)
struct DirtyLogLayout {
  static constexpr uint64_t kLineBytes = 64;
  static constexpr uint64_t kLinesPerPage = kPageSize / kLineBytes;

  PhysAddr base;           // page-aligned
  uint64_t ram_bytes = 0;  // pages [0, ram_bytes) are logged

  // Bytes of a log for `ram_bytes` of memory, whole pages.
  static constexpr uint64_t SizeFor(uint64_t ram_bytes) {
    const uint64_t pages = ram_bytes >> kPageShift;
    return AlignUp(pages, kPageSize) + AlignUp(pages * kLinesPerPage, kPageSize);
  }
  // InvalidArgument: not aligned, too small for the memory, or outside it.
  absl::Status Check(uint64_t size_bytes) const;

  PhysAddr PageByte(PhysAddr page) const { return base + (page.value() >> kPageShift); }
  PhysAddr LineByte(PhysAddr at) const {
    return base + AlignUp(ram_bytes >> kPageShift, kPageSize) + at.value() / kLineBytes;
  }
};

// The guest's side.
class DirtyLogWriter {
 public:
  // `memory` outlives the writer.
  DirtyLogWriter(PhysicalMemory& memory, DirtyLogLayout layout)
      : memory_(memory), layout_(layout) {}

  // After the store to the entry at `slot`, before the invalidation that covers it.
  void Mark(PhysAddr slot) {
    if (slot.value() >= layout_.ram_bytes) return;
    memory_.Write8(layout_.LineByte(slot), 1);
    memory_.Write8(layout_.PageByte(slot), 1);
  }

 private:
  PhysicalMemory& memory_;
  const DirtyLogLayout layout_;
};

// The hypervisor's side. Only watched pages are looked at; marks of others stay for the time they are
// watched. Not thread-safe against itself; the guest may mark at any time. What a guest marks falsely
// or not at all changes what is looked at in its own tables, nothing else.
class DirtyLogCollector {
 public:
  DirtyLogCollector(PhysicalMemory& memory, DirtyLogLayout layout)
      : memory_(memory), layout_(layout) {}

  // Counted: a page watched twice is unwatched twice. Pages beyond the log are never reported.
  void Watch(PhysAddr page);
  void Unwatch(PhysAddr page);

  // Takes the marks of all watched pages; bit i of `lines` is line i of `page`. The lines' entries
  // are to be read after this returned. Adds the log bytes that were read to `bytes_read`.
  void Collect(absl::FunctionRef<void(PhysAddr page, uint64_t lines)> visit, uint64_t& bytes_read);

 private:
  // 64 pages: their bytes are one line of the log.
  struct Group {
    uint64_t number = 0;   // page number / 64
    uint64_t watched = 0;  // one bit a page
  };
  using Users = std::array<uint32_t, 64>;  // of each page of a group

  // Takes the marks of 64 bytes at `at`; one bit a byte. Bytes outside `mask` are left alone.
  uint64_t TakeBytes(PhysAddr at, uint64_t mask);

  PhysicalMemory& memory_;
  const DirtyLogLayout layout_;
  std::vector<Group> groups_;  // all that a collection without marks looks at
  std::vector<Users> users_;   // beside groups_
  absl::flat_hash_map<uint64_t, size_t> index_;  // group number -> place
};

}  // namespace viommu

#endif  // VIOMMU_IOMMU_CORE_MEM_DIRTY_LOG_H_
