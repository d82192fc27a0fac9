#include "iommu_core/iova/iova_allocator.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <memory>
#include <optional>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "iommu_core/base/errors.h"
#include "iommu_core/iova/magazine.h"
#include "iommu_core/iova/range_tree.h"

namespace viommu {
namespace {

constexpr uint64_t kCachedPagesEnd = uint64_t{1} << (RangeCaches::kOrders - 1);
constexpr uint64_t kFirstPfn = 1;           // page 0 means failure
constexpr uint64_t kMsiFirstPfn = 0xfee00;  // IOAPIC_RANGE_START
constexpr uint64_t kMsiEndPfn = 0xfef00;
constexpr int k32Bits = 32;

// Small sizes are rounded up so that a freed range fits any request of its order.
uint64_t PagesFor(uint64_t size_bytes) {
  const uint64_t pages = AlignUp(size_bytes, kPageSize) >> kPageShift;
  return pages < kCachedPagesEnd ? std::bit_ceil(pages) : pages;
}

}  // namespace

struct IovaAllocator::State {
  explicit State(const IovaAllocatorOptions& options)
      : mask_bits(std::max(kPageShift, std::min(options.dma_mask_bits, options.address_width))),
        caches(options.cpus),
        tree(kFirstPfn) {
    tree.Reserve(kMsiFirstPfn, kMsiEndPfn);
  }

  // alloc_iova_fast: the CPU's magazine, then the tree, then, if asked, everybody's magazines are
  // emptied into the tree and it is tried once more.
  std::optional<uint64_t> AllocateBelow(uint64_t pages, int bits, bool flush_caches, uint32_t cpu) {
    const uint64_t end_pfn = uint64_t{1} << (bits - kPageShift);
    if (pages > end_pfn) return std::nullopt;
    const int order = OrderOf(pages);
    if (order < RangeCaches::kOrders) {
      if (const auto pfn = caches.Pop(cpu, order, end_pfn - pages)) return pfn;
    }
    const auto pfn = AllocateFromTree(pages, end_pfn, flush_caches);
    if (pfn) caches.Count(cpu, pages, /*allocated=*/true);
    return pfn;
  }

  std::optional<uint64_t> AllocateFromTree(uint64_t pages, uint64_t end_pfn, bool flush_caches) {
    absl::MutexLock lock(&mu);
    const auto pfn = tree.Allocate(pages, end_pfn);
    if (pfn || !flush_caches) return pfn;
    for (const uint64_t freed : caches.Drain()) tree.Free(freed);
    return tree.Allocate(pages, end_pfn);
  }

  const int mask_bits;
  RangeCaches caches;
  // pci_32bit_workaround: try below 4 GiB first, until that fails once.
  std::atomic<bool> prefer_32bit{true};

  mutable absl::Mutex mu;
  RangeTree tree ABSL_GUARDED_BY(mu);
};

IovaAllocator::IovaAllocator(IovaAllocatorOptions options)
    : state_(std::make_unique<State>(options)) {}
IovaAllocator::~IovaAllocator() = default;

absl::StatusOr<Iova> IovaAllocator::Allocate(uint64_t size_bytes, uint32_t cpu) {
  if (size_bytes == 0 || size_bytes > (uint64_t{1} << 48)) {
    return errors::Invalid("an IOVA range is 1 byte to 256 TiB");
  }
  const uint64_t pages = PagesFor(size_bytes);
  std::optional<uint64_t> pfn;
  if (state_->mask_bits > k32Bits && state_->prefer_32bit.load(std::memory_order_relaxed)) {
    pfn = state_->AllocateBelow(pages, k32Bits, /*flush_caches=*/false, cpu);
    if (!pfn) state_->prefer_32bit.store(false, std::memory_order_relaxed);
  }
  if (!pfn) pfn = state_->AllocateBelow(pages, state_->mask_bits, /*flush_caches=*/true, cpu);
  if (!pfn) return errors::IovaExhausted(size_bytes);
  return Iova(*pfn << kPageShift);
}

void IovaAllocator::Free(Iova iova, uint64_t size_bytes, uint32_t cpu) {
  const uint64_t pages = PagesFor(size_bytes);
  const uint64_t pfn = iova.value() >> kPageShift;
  const int order = OrderOf(pages);
  if (order < RangeCaches::kOrders) {
    state_->caches.Push(cpu, order, pfn);
    return;
  }
  state_->caches.Count(cpu, pages, /*allocated=*/false);
  absl::MutexLock lock(&state_->mu);
  state_->tree.Free(pfn);
}

size_t IovaAllocator::TakeCachedPages(uint32_t cpu, std::span<uint64_t> out) {
  const bool below_4g =
      state_->mask_bits > k32Bits && state_->prefer_32bit.load(std::memory_order_relaxed);
  const int bits = below_4g ? k32Bits : state_->mask_bits;
  return state_->caches.PopPages(cpu, (uint64_t{1} << (bits - kPageShift)) - 1, out);
}

void IovaAllocator::GiveBackPages(uint32_t cpu, std::span<const uint64_t> pfns) {
  state_->caches.PushPages(cpu, pfns);
}

absl::Status IovaAllocator::Reserve(IovaRange range) {
  const uint64_t first = range.first.value() >> kPageShift;
  const uint64_t end = AlignUp(range.end.value(), kPageSize) >> kPageShift;
  if (first >= end) return errors::BadRange(range, "empty");
  absl::MutexLock lock(&state_->mu);
  if (!state_->tree.Reserve(first, end)) return errors::AlreadyMapped(range);
  return absl::OkStatus();
}

uint64_t IovaAllocator::allocated_bytes() const {
  return state_->caches.allocated_pages() << kPageShift;
}

uint64_t IovaAllocator::tree_ranges() const {
  absl::MutexLock lock(&state_->mu);
  return state_->tree.ranges();
}

}  // namespace viommu
