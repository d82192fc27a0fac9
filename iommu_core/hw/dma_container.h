// The host's DMA container: which IOVA ranges are mapped, how many calls that took, what is pinned.
// Rules of VFIO type1 v2 (Linux drivers/vfio/vfio_iommu_type1.c: vfio_dma_do_map,
// vfio_dma_do_unmap).
#ifndef VIOMMU_IOMMU_CORE_HW_DMA_CONTAINER_H_
#define VIOMMU_IOMMU_CORE_HW_DMA_CONTAINER_H_

#include <cstdint>
#include <map>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "iommu_core/base/types.h"

namespace viommu {

// Bytes that all containers of one session may pin (RLIMIT_MEMLOCK). As in type1 a page is charged
// once per mapping that holds it, so the same page mapped twice counts twice.
class PinBudget {
 public:
  explicit PinBudget(uint64_t limit_bytes) : limit_bytes_(limit_bytes) {}

  // PinLimit: nothing charged.
  absl::Status Charge(uint64_t page_count);
  // The same without saying why not.
  bool TryCharge(uint64_t page_count) {
    if (!Fits(page_count)) return false;
    pages_ += page_count;
    if (pages_ > pages_max_) pages_max_ = pages_;
    return true;
  }
  bool Fits(uint64_t page_count) const {
    const uint64_t limit = limit_bytes_ >> kPageShift;
    return pages_ <= limit && page_count <= limit - pages_;
  }
  // A run of charges and releases that fits: `gain` pages more in the end, `peak` more on the way.
  void ChargeRun(int64_t gain, uint64_t peak) {
    if (pages_ + peak > pages_max_) pages_max_ = pages_ + peak;
    pages_ += static_cast<uint64_t>(gain);
  }
  void Release(uint64_t page_count) { pages_ -= page_count; }
  uint64_t limit_bytes() const { return limit_bytes_; }
  uint64_t pages() const { return pages_; }
  uint64_t pages_max() const { return pages_max_; }

 private:
  const uint64_t limit_bytes_;
  uint64_t pages_ = 0;
  uint64_t pages_max_ = 0;
};

// The figures of one container, without its records: for owners that have a record of their own.
class DmaAccount {
 public:
  // `pins` outlives the account.
  DmaAccount(uint64_t entry_limit, PinBudget& pins) : entry_limit_(entry_limit), pins_(pins) {}
  ~DmaAccount() { pins_.Release(pinned_pages_); }
  DmaAccount(const DmaAccount&) = delete;
  DmaAccount& operator=(const DmaAccount&) = delete;

  // One map call. EntryLimit or PinLimit: the call is counted, nothing else changed.
  absl::Status Map(uint64_t page_count);
  // The same without saying why not.
  bool TryMap(uint64_t page_count) {
    ++map_calls_;
    if (entries_ >= entry_limit_ || !pins_.TryCharge(page_count)) {
      ++failed_map_calls_;
      return false;
    }
    ++entries_;
    pinned_pages_ += page_count;
    return true;
  }
  // Whether `count` more map calls of one page each are sure to succeed.
  bool Fits(uint64_t count) const {
    return entries_ <= entry_limit_ && count <= entry_limit_ - entries_ && pins_.Fits(count);
  }
  // A run of map calls that succeed and of unmap calls that release something, of one page each;
  // at most `peak` mappings more than now on the way.
  void CountRun(uint64_t maps, uint64_t unmaps, uint64_t peak) {
    map_calls_ += maps;
    unmap_calls_ += unmaps;
    entries_ += maps - unmaps;
    pinned_pages_ += maps - unmaps;
    pins_.ChargeRun(static_cast<int64_t>(maps) - static_cast<int64_t>(unmaps), peak);
  }
  // One unmap call that released `entries` mappings of `page_count` pages in all.
  void Unmap(uint64_t entries, uint64_t page_count);

  uint64_t entries() const { return entries_; }
  uint64_t entry_limit() const { return entry_limit_; }
  uint64_t pinned_pages() const { return pinned_pages_; }
  uint64_t map_calls() const { return map_calls_; }
  uint64_t failed_map_calls() const { return failed_map_calls_; }
  uint64_t unmap_calls() const { return unmap_calls_; }

 private:
  const uint64_t entry_limit_;
  PinBudget& pins_;
  uint64_t entries_ = 0;
  uint64_t pinned_pages_ = 0;
  uint64_t map_calls_ = 0;
  uint64_t failed_map_calls_ = 0;
  uint64_t unmap_calls_ = 0;
};

// An account with type1's tree of mappings.
class DmaContainer {
 public:
  struct Mapping {
    uint64_t size_bytes = 0;
    GuestPhys guest_pa;
    Access access;
    friend bool operator==(const Mapping&, const Mapping&) = default;
  };
  using Tree = std::map<Iova, Mapping>;
  struct Unmapped {
    uint64_t entries = 0;
    uint64_t page_count = 0;
  };

  DmaContainer(uint64_t entry_limit, PinBudget& pins) : account_(entry_limit, pins) {}

  // InvalidArgument (EINVAL): not whole pages, empty, wrapping, or no access. AlreadyExists
  // (EEXIST): overlaps a mapping. ResourceExhausted: EntryLimit (ENOSPC), then PinLimit (ENOMEM).
  absl::Status Map(IovaRange range, GuestPhys guest_pa, Access access);
  // Removes every mapping inside `range`; nothing there is success. InvalidArgument (EINVAL): an
  // end of the range would cut a mapping in two; nothing was removed.
  absl::StatusOr<Unmapped> Unmap(IovaRange range);

  // The first mapping that overlaps `range`, or mappings().end().
  Tree::const_iterator FirstOverlap(IovaRange range) const {
    auto it = mappings_.upper_bound(range.first);
    if (it != mappings_.begin()) {
      const auto before = std::prev(it);
      if (before->first + before->second.size_bytes > range.first) return before;
    }
    return it != mappings_.end() && it->first < range.end ? it : mappings_.end();
  }
  const Tree& mappings() const { return mappings_; }
  const DmaAccount& account() const { return account_; }
  uint64_t bookkeeping_bytes() const {
    // A red-black node: parent, two children and colour before the value.
    return mappings_.size() * (4 * sizeof(void*) + sizeof(Tree::value_type));
  }

 private:
  Tree mappings_;
  DmaAccount account_;
};

}  // namespace viommu

#endif  // VIOMMU_IOMMU_CORE_HW_DMA_CONTAINER_H_
