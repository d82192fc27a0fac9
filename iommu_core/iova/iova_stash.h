// The single pages that one vCPU has at hand, in front of its magazines.
#ifndef VIOMMU_IOMMU_CORE_IOVA_IOVA_STASH_H_
#define VIOMMU_IOMMU_CORE_IOVA_IOVA_STASH_H_

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "iommu_core/base/types.h"
#include "iommu_core/iova/iova_allocator.h"

namespace viommu {

// The top of the magazine's stack, held without a lock: what was freed last is handed out first, as
// there, and nothing comes from the tree before it is needed. One thread at a time. The allocator
// counts what is here as allocated; count() says how much that is.
class IovaStash {
 public:
  static constexpr size_t kCapacity = 32;

  // `iovas` outlives the stash.
  IovaStash(IovaAllocator& iovas, uint32_t cpu) : iovas_(&iovas), cpu_(cpu) {}

  // One page, from here or the CPU's magazines; nullopt: both are empty, and the allocator has to
  // go to its tree.
  std::optional<Iova> Take() {
    if (count_ == 0 && !Refill()) return std::nullopt;
    return Iova(pfns_[--count_] << kPageShift);
  }
  void Free(Iova iova) {
    if (count_ == kCapacity) Spill(kCapacity / 2);
    pfns_[count_++] = iova.value() >> kPageShift;
  }
  // Gives everything back to the magazines, where other CPUs can get at it.
  void Empty() { Spill(count_); }

  uint64_t count() const { return count_; }

 private:
  bool Refill() {
    std::array<uint64_t, kCapacity / 2> taken;
    count_ = iovas_->TakeCachedPages(cpu_, taken);
    // The one to be handed out first lies on top.
    std::reverse_copy(taken.begin(), taken.begin() + count_, pfns_.begin());
    return count_ != 0;
  }
  // The lowest `n` go.
  void Spill(size_t n) {
    iovas_->GiveBackPages(cpu_, std::span(pfns_).first(n));
    std::copy(pfns_.begin() + n, pfns_.begin() + count_, pfns_.begin());
    count_ -= n;
  }

  IovaAllocator* iovas_;
  uint32_t cpu_;
  size_t count_ = 0;
  std::array<uint64_t, kCapacity> pfns_;
};

}  // namespace viommu

#endif  // VIOMMU_IOMMU_CORE_IOVA_IOVA_STASH_H_
