// Guest memory on another host: pages are copied here when they are read.
#ifndef VIOMMU_IOMMU_CORE_MEM_REMOTE_MEMORY_H_
#define VIOMMU_IOMMU_CORE_MEM_REMOTE_MEMORY_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "iommu_core/mem/physical_memory.h"

namespace viommu {

// The copy of one page.
struct alignas(64) RemotePage {
  std::array<uint64_t, kPageSize / sizeof(uint64_t)> entries;
};

// Who copies.
class PageSource {
 public:
  virtual ~PageSource() = default;
  // The content of each of `pages` (page-aligned, inside the guest's memory, each once) into the
  // page of `out` at the same place. Not OK: `out` holds nothing that counts.
  virtual absl::Status Fetch(std::span<const PhysAddr> pages, std::span<RemotePage* const> out) = 0;
  // Stores `data` at `address`, inside the guest's memory; OK: it is there.
  virtual absl::Status Store(PhysAddr address, std::span<const std::byte> data) = 0;
};

// Guest-physical [0, size). A page is copied whole and read from the copy, which does not change
// under its reader; only a later copy may differ. Copies are kept from one Refresh to the next, the
// oldest dropped when there is no room. Once a pull failed, of either view, none is tried until the
// memory is refreshed; the oracle's view alone can be refreshed too, which only drops its copies.
// The first pull after Refresh brings along the tables that were read first a short while before:
// an unmap goes down much the same tables as the last ones, so its walk waits once and not once a
// level.
// Not thread-safe.
class RemoteMemory final : public PhysicalMemory, public PulledMemory {
 public:
  static constexpr size_t kMaxFetchPages = 512;   // of one wait: all tables below one
  static constexpr size_t kMaxAlongPages = 16;    // root, context, the walks of a few domains
  static constexpr uint64_t kAlongRefreshes = 8;  // not read for as many: comes along no more

  struct Limits {
    size_t cached_pages = 2048;                      // at least 2 * kMaxFetchPages
    uint64_t pages_per_refresh = uint64_t{1} << 18;  // pulled between two Refresh
  };

  // InvalidArgument: no whole number of pages, or a limit below its least. `source` outlives it.
  // The limits hold for the memory and for its oracle's view, each.
  static absl::StatusOr<std::unique_ptr<RemoteMemory>> Create(uint64_t size_bytes,
                                                              PageSource& source, Limits limits);

  // Why `failed`; OK: it did not.
  const absl::Status& status() const {
    return status_.ok() && twin_ != nullptr ? twin_->status_ : status_;
  }

  std::optional<uint64_t> Read64(PhysAddr address) const override;
  std::optional<uint32_t> Read32(PhysAddr address) const override;
  bool ReadBytes(PhysAddr address, std::span<std::byte> out) const override;
  bool Write64(PhysAddr address, uint64_t value) override;
  bool Write32(PhysAddr address, uint32_t value) override;
  bool WriteBytes(PhysAddr address, std::span<const std::byte> in) override;
  const uint64_t* PageInPlace(PhysAddr page) const override;
  const PulledMemory* pulled() const override { return this; }

  void Refresh() const override;
  void Prefetch(std::span<const PhysAddr> pages) const override;
  bool failed() const override { return !status().ok(); }
  PullCounts counts() const override { return counts_; }
  const PhysicalMemory& oracle_view() const override {
    return oracle_ != nullptr ? *oracle_ : *this;
  }

 private:
  static constexpr uint64_t kNoPage = ~uint64_t{0};
  struct Slot {
    uint64_t page = kNoPage;
    std::unique_ptr<RemotePage> copy;
    bool table = false;  // entries of it were read; it was not only brought along, and is no data
  };

  struct Along {
    PhysAddr page;
    uint64_t refresh;  // before which it was read last
  };

  RemoteMemory(uint64_t size_bytes, PageSource& source, Limits limits)
      : size_bytes_(size_bytes), source_(source), limits_(limits) {}
  bool Inside(PhysAddr address, uint64_t size_bytes) const {
    return address.value() < size_bytes_ && size_bytes <= size_bytes_ - address.value();
  }
  // The copy of the page that holds `address`; null: not memory, or a pull failed.
  const RemotePage* Find(PhysAddr address, bool table = true) const;
  // Copies `asked`, and what comes along, with one wait. They are inside, missing, different, and
  // at most kMaxFetchPages.
  void Pull(std::span<const PhysAddr> asked) const;
  void DropAll() const;
  void Drop(PhysAddr page) const;

  const uint64_t size_bytes_;
  PageSource& source_;
  const Limits limits_;
  std::unique_ptr<RemoteMemory> oracle_;  // null: this is the oracle's
  RemoteMemory* twin_ = nullptr;          // the other of the two

  mutable absl::flat_hash_map<uint64_t, size_t> slot_of_page_;  // by page number
  mutable std::vector<Slot> slots_;  // a ring: the next one to be taken holds the oldest copy
  mutable size_t next_slot_ = 0;
  mutable std::vector<Along> along_;      // latest first
  mutable uint64_t refreshes_ = 0;        // before which tables were read
  mutable uint64_t last_page_ = kNoPage;  // read last, found without a look-up
  mutable const RemotePage* last_copy_ = nullptr;
  mutable uint64_t pulled_since_refresh_ = 0;
  mutable PullCounts counts_;
  mutable absl::Status status_;
};

}  // namespace viommu

#endif  // VIOMMU_IOMMU_CORE_MEM_REMOTE_MEMORY_H_
