// A log of table writes in guest memory: the guest marks what it wrote, the hypervisor visits only
// that. A proposal for a para-virtual interface; a hypervisor without the guest's help would fill
// the same log from write protection or page-modification logging.
//
// Layout, from a page-aligned base, for a guest of `ram_bytes`:
//   one byte for each group of 512 pages, one byte for each page, one byte for each 64-byte line of
//   each page. Not zero: something there was written since the byte was cleared.
// A scan takes the marks it reads, so each scanner has a log of its own.
// Protocol: the writer stores the entry, then the line's byte, the page's, the group's. The scanner
// clears the bytes it saw, then fences, then reads the level below, and at last the entries. So a
// write is either seen with its entry or still marked. Each part starts on its own cache line. What
// counts is that the marks stand before the invalidation that covers the entries is submitted, so a
// writer may keep them back until then (DirtyMarks).
#ifndef VIOMMU_IOMMU_CORE_MEM_DIRTY_LOG_H_
#define VIOMMU_IOMMU_CORE_MEM_DIRTY_LOG_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "iommu_core/base/types.h"
#include "iommu_core/mem/physical_memory.h"

namespace viommu {

inline constexpr uint64_t kDirtyLogGroupPages = 512;
inline constexpr uint64_t kDirtyLogLineBytes = 64;
inline constexpr uint64_t kDirtyLogLinesPerPage = kPageSize / kDirtyLogLineBytes;

// Bytes of the log of a guest, whole pages.
uint64_t DirtyLogBytes(uint64_t ram_bytes);

// Where the parts of one log lie in this process. The memory must be in place and contiguous.
class DirtyLogView {
 public:
  // InvalidArgument: the log does not lie page-aligned inside [0, ram_bytes). FailedPrecondition:
  // this memory has no pages in place (it is not shared).
  static absl::StatusOr<DirtyLogView> Create(PhysicalMemory& memory, PhysAddr base,
                                             uint64_t ram_bytes);

 private:
  friend class DirtyLogWriter;
  friend class DirtyMarks;
  friend class DirtyLogScanner;
  DirtyLogView(uint8_t* base, uint64_t ram_bytes);

  uint64_t pages_;
  uint64_t groups_;
  uint8_t* group_bytes_;
  uint8_t* page_bytes_;
  uint8_t* line_bytes_;
};

// The guest's side. Any number of threads.
class DirtyLogWriter {
 public:
  explicit DirtyLogWriter(DirtyLogView view) : view_(view) {}

  // The 8-byte entry at `slot` was stored. Call it after the store.
  void Mark(PhysAddr slot) const {
    const uint64_t page = slot.value() >> kPageShift;
    if (page >= view_.pages_) return;
    Set(view_.line_bytes_ + slot.value() / kDirtyLogLineBytes);
    Set(view_.page_bytes_ + page);
    Set(view_.group_bytes_ + page / kDirtyLogGroupPages);
  }

 private:
  friend class DirtyMarks;
  static void Set(uint8_t* byte) { __atomic_store_n(byte, 1, __ATOMIC_RELEASE); }

  DirtyLogView view_;
};

// The marks that one thread owes the logs. vCPUs that write the same tables share the log's cache
// lines: a store for each entry makes them wait for each other, while one look before an
// invalidation finds most bytes set already and only reads them. A look needs the entries' stores
// to be visible first, hence one fence for all of them. One thread at a time.
class alignas(64) DirtyMarks {
 public:
  // `logs` outlive the marks.
  explicit DirtyMarks(std::span<const DirtyLogWriter> logs) : logs_(logs) {}

  // The 8-byte entry at `slot` was stored.
  void Add(PhysAddr slot) {
    const uint64_t line = slot.value() / kDirtyLogLineBytes;
    if (count_ != 0 && lines_[count_ - 1] == line) return;
    if (count_ == lines_.size()) Publish();
    lines_[count_++] = line;
  }
  // To be called before an invalidation that covers what was added is submitted, by whichever
  // thread that is, under what orders the two.
  void Publish() {
    if (count_ != 0) PublishAll();
  }

 private:
  void PublishAll();

  std::span<const DirtyLogWriter> logs_;
  size_t count_ = 0;
  std::array<uint64_t, 64> lines_;
};

// The hypervisor's side. One thread at a time.
class DirtyLogScanner {
 public:
  explicit DirtyLogScanner(DirtyLogView view) : view_(view) {}

  // Takes the marks of all pages for which `wanted` is true, and calls `visit` with the page and
  // its dirty lines (bit n: bytes [64n, 64n + 64)). Entries read from then on are at least as new
  // as the marks. Of pages not wanted the mark is dropped, their lines stay marked.
  void Collect(absl::FunctionRef<bool(PhysAddr page)> wanted,
               absl::FunctionRef<void(PhysAddr page, uint64_t lines)> visit);
  // Drops the marks of a page's lines: it is read whole from here on, so older ones say nothing.
  void DropLines(PhysAddr page);

 private:
  DirtyLogView view_;
  std::vector<uint64_t> groups_;
  std::vector<uint64_t> pages_;
  std::vector<uint64_t> lines_;  // of each page
};

}  // namespace viommu

#endif  // VIOMMU_IOMMU_CORE_MEM_DIRTY_LOG_H_
