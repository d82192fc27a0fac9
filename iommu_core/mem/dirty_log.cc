#include "iommu_core/mem/dirty_log.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <span>
#include <utility>

#include "absl/status/status.h"
#include "iommu_core/base/errors.h"

namespace viommu {
namespace {

constexpr uint64_t kLine = 64;

uint64_t PagesOf(uint64_t ram_bytes) { return ram_bytes >> kPageShift; }
uint64_t GroupsOf(uint64_t ram_bytes) {
  return (PagesOf(ram_bytes) + kDirtyLogGroupPages - 1) / kDirtyLogGroupPages;
}

// Calls `visit` for each byte of [first, first + count) that is not zero, having cleared it.
// `first` starts a cache line, and the bytes up to the next one belong to the same part.
template <typename Visit>
void TakeMarks(uint8_t* bytes, uint64_t first, uint64_t count, const Visit& visit) {
  for (uint64_t at = first; at < first + count; at += sizeof(uint64_t)) {
    uint64_t word =
        __atomic_load_n(reinterpret_cast<const uint64_t*>(bytes + at), __ATOMIC_RELAXED);
    while (word != 0) {
      const auto byte = static_cast<uint64_t>(std::countr_zero(word)) / 8;
      word &= ~(uint64_t{0xff} << (8 * byte));
      __atomic_store_n(bytes + at + byte, 0, __ATOMIC_RELAXED);
      if (at + byte < first + count) visit(at + byte);
    }
  }
}

void Fence() { std::atomic_thread_fence(std::memory_order_seq_cst); }

}  // namespace

uint64_t DirtyLogBytes(uint64_t ram_bytes) {
  return AlignUp(AlignUp(GroupsOf(ram_bytes), kLine) + AlignUp(PagesOf(ram_bytes), kLine) +
                     PagesOf(ram_bytes) * kDirtyLogLinesPerPage,
                 kPageSize);
}

absl::StatusOr<DirtyLogView> DirtyLogView::Create(PhysicalMemory& memory, PhysAddr base,
                                                  uint64_t ram_bytes) {
  const uint64_t size = DirtyLogBytes(ram_bytes);
  if (!IsAligned(base.value(), kPageSize) || size > ram_bytes || base.value() > ram_bytes - size) {
    return errors::Invalid("the dirty log lies page-aligned inside guest memory");
  }
  const uint64_t* first = memory.PageInPlace(base);
  for (uint64_t at = 0; at < size; at += kPageSize) {
    const uint64_t* page = memory.PageInPlace(base + at);
    if (page == nullptr || page != first + at / sizeof(uint64_t)) {
      return absl::FailedPreconditionError("a dirty log needs guest memory that is shared");
    }
  }
  // PageInPlace is const for those who only compare tables; the log is memory both sides write.
  return DirtyLogView(reinterpret_cast<uint8_t*>(const_cast<uint64_t*>(first)), ram_bytes);
}

DirtyLogView::DirtyLogView(uint8_t* base, uint64_t ram_bytes)
    : pages_(PagesOf(ram_bytes)),
      groups_(GroupsOf(ram_bytes)),
      group_bytes_(base),
      page_bytes_(group_bytes_ + AlignUp(groups_, kLine)),
      line_bytes_(page_bytes_ + AlignUp(pages_, kLine)) {}

void DirtyMarks::PublishAll() {
  const auto is_set = [](const uint8_t* byte) {
    return __atomic_load_n(byte, __ATOMIC_ACQUIRE) != 0;
  };
  // A byte that is set from here on is cleared by a scan that reads these entries, since it fences
  // as well. Above a byte that is stored here nothing is looked at: the store may not be visible
  // yet to a scan that clears what is above.
  Fence();
  const auto lines = std::span(lines_).first(std::exchange(count_, 0));
  for (const DirtyLogWriter& log : logs_) {
    const DirtyLogView& view = log.view_;
    for (const uint64_t line : lines) {
      const uint64_t page = line / kDirtyLogLinesPerPage;
      if (page >= view.pages_) continue;
      uint8_t* const of_line = view.line_bytes_ + line;
      uint8_t* const of_page = view.page_bytes_ + page;
      uint8_t* const of_group = view.group_bytes_ + page / kDirtyLogGroupPages;
      const bool line_set = is_set(of_line);
      if (!line_set) DirtyLogWriter::Set(of_line);
      const bool page_set = line_set && is_set(of_page);
      if (!page_set) DirtyLogWriter::Set(of_page);
      if (!page_set || !is_set(of_group)) DirtyLogWriter::Set(of_group);
    }
  }
}

void DirtyLogScanner::Collect(absl::FunctionRef<bool(PhysAddr)> wanted,
                              absl::FunctionRef<void(PhysAddr, uint64_t)> visit) {
  groups_.clear();
  TakeMarks(view_.group_bytes_, 0, view_.groups_, [&](uint64_t g) { groups_.push_back(g); });
  if (groups_.empty()) return;
  Fence();
  pages_.clear();
  for (const uint64_t group : groups_) {
    const uint64_t first = group * kDirtyLogGroupPages;
    TakeMarks(view_.page_bytes_, first, std::min(kDirtyLogGroupPages, view_.pages_ - first),
              [&](uint64_t page) {
                if (wanted(PhysAddr(page << kPageShift))) pages_.push_back(page);
              });
  }
  if (pages_.empty()) return;
  Fence();
  lines_.assign(pages_.size(), 0);
  for (size_t i = 0; i < pages_.size(); ++i) {
    const uint64_t first = pages_[i] * kDirtyLogLinesPerPage;
    TakeMarks(view_.line_bytes_, first, kDirtyLogLinesPerPage,
              [&](uint64_t line) { lines_[i] |= uint64_t{1} << (line - first); });
  }
  Fence();  // the last marks are cleared before any entry is read
  for (size_t i = 0; i < pages_.size(); ++i) {
    if (lines_[i] != 0) visit(PhysAddr(pages_[i] << kPageShift), lines_[i]);
  }
}

void DirtyLogScanner::DropLines(PhysAddr page) {
  const uint64_t number = page.value() >> kPageShift;
  if (number >= view_.pages_) return;
  TakeMarks(view_.line_bytes_, number * kDirtyLogLinesPerPage, kDirtyLogLinesPerPage,
            [](uint64_t) {});
  Fence();
}

}  // namespace viommu
