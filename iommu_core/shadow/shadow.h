// One shadow: what a guest's table lets a device reach, as physical tables, and its
// synchronisation.
#ifndef VIOMMU_IOMMU_CORE_SHADOW_SHADOW_H_
#define VIOMMU_IOMMU_CORE_SHADOW_SHADOW_H_

#include <algorithm>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "iommu_core/base/sync_cost.h"
#include "iommu_core/base/types.h"
#include "iommu_core/hw/dma_container.h"
#include "iommu_core/mem/physical_memory.h"
#include "iommu_core/shadow/entry_line.h"
#include "iommu_core/shadow/guest_pte.h"
#include "iommu_core/shadow/physical_unit.h"
#include "iommu_core/shadow/range_set.h"
#include "iommu_core/shadow/shadow_table.h"

namespace viommu {

// What a guest's context entry points a device at.
struct GuestTable {
  enum class Kind : uint8_t { kNone, kSecondStage, kPassThrough };

  Kind kind = Kind::kNone;  // kNone: every request of the device is blocked
  PhysAddr table;
  int levels = 0;
  DomainId domain_id;
  uint64_t end = 0;  // input addresses from here on are beyond min(MGAW, AW)

  friend bool operator==(const GuestTable&, const GuestTable&) = default;
  friend auto operator<=>(const GuestTable&, const GuestTable&) = default;
};

// The bound on the work of one invalidation, and where a long one lets others run.
class WorkBudget {
 public:
  static constexpr uint64_t kSlice = 8192;  // entries between two calls of `yield`

  WorkBudget(uint64_t bound, const std::function<void()>& yield) : left_(bound), yield_(yield) {}

  // Takes `entries`; false once the bound is reached.
  bool Spend(uint64_t entries) {
    if (entries > left_) {
      left_ = 0;
      return false;
    }
    left_ -= entries;
    slice_ += entries;
    if (slice_ >= kSlice) {
      slice_ = 0;
      if (yield_) yield_();
    }
    return true;
  }

 private:
  uint64_t left_;
  uint64_t slice_ = 0;
  const std::function<void()>& yield_;
};

// What the shadows of one session share.
struct ShadowContext {
  const PhysicalMemory& guest;
  const PulledMemory* pulled;  // null: guest memory is in place
  const GuestPteRules& rules;
  const HostMap& map;
  TablePool& pool;
  PhysicalUnit& unit;
  PinBudget& pins;
  uint64_t dma_entry_limit;
  uint64_t guest_ram_bytes;
};

// One invalidation as it is carried out.
struct SyncRun {
  SyncCost& cost;
  WorkBudget& budget;
  bool quiet = false;         // no table changes meanwhile (TableClaim)
  bool leaf_hint = false;     // IH of the descriptor
  bool work_refused = false;  // out: the bound was reached
};

// Not thread-safe. Whatever a strategy does, these hold after Sync(range):
//  - a page of `range` is mapped exactly as the guest's table says, or it is in `refused` (a limit)
//    or `unlooked` (the work bound) and not mapped;
//  - no page whose translation is the same before and after was unmapped on the way;
//  - the physical unit's caches know of every page that was unmapped or changed.
class Shadow {
 public:
  virtual ~Shadow() = default;
  Shadow(const Shadow&) = delete;
  Shadow& operator=(const Shadow&) = delete;

  // Where a page's translation ends in the guest's table and in the copy of it.
  struct Spot {
    const uint64_t* entry = nullptr;  // the guest's
    const uint64_t* last = nullptr;
    uint32_t tables = 0;   // on the way
    uint32_t entries = 0;  // that an invalidation has to compare

    bool Unchanged() const { return LoadEntry(entry) == *last; }
    void Count(SyncCost& cost) const {
      cost.table_pages_read += tables;
      cost.ptes_read += entries;
      cost.bytes_read += sizeof(uint64_t) * entries;
    }
  };

  // Brings `range` in step with the guest's table, then tries again what was refused elsewhere.
  void Sync(IovaRange range, SyncRun& run);
  // Unmaps everything; the device was blocked or points elsewhere by now.
  void Release(SyncCost& cost);

  // Whether `range` is one page, nothing is noted, and all entries above its last are as seen
  // last; then Sync(range) is spot.Count() where the last is Unchanged() as well. `spot` is good
  // until the next Sync. Counts nothing.
  virtual bool FindSpot(IovaRange, bool /*leaf_hint*/, Spot&) const { return false; }

  // Whether Sync of everything visits only what the guest's log names.
  virtual bool goes_by_log() const { return false; }

  virtual const DmaAccount& account() const = 0;
  // Bytes of records and copies beside the physical tables.
  virtual uint64_t bookkeeping_bytes() const = 0;

  const GuestTable& guest_table() const { return guest_table_; }
  ShadowTable& table() { return *table_; }
  const ShadowTable& table() const { return *table_; }
  DomainId host_domain() const { return host_domain_; }
  const RangeSet& refused() const { return refused_; }
  const RangeSet& unlooked() const { return unlooked_; }
  uint64_t extra_bytes() const {
    return refused_.bookkeeping_bytes() + unlooked_.bookkeeping_bytes();
  }

  // Device-TLBs of the devices behind it: they are told of every unmap, as Linux does before it
  // unpins (drivers/iommu/intel/cache.c).
  std::vector<DeviceTlb*> device_tlbs;
  uint32_t users = 0;  // devices
  // Another shadow of the same guest table takes its place: no device comes to it any more.
  bool retired = false;

 protected:
  enum class Halt : uint8_t { kNo, kWorkBound, kRefused };

  Shadow(const ShadowContext& context, std::unique_ptr<ShadowTable> table, GuestTable guest_table,
         DomainId host_domain, bool batch_invalidations)
      : context_(context),
        guest_table_(guest_table),
        table_(std::move(table)),
        host_domain_(host_domain),
        batch_invalidations_(batch_invalidations) {}

  // One pass over `range`. With `stop_at_refusal` ends at the first map that a limit refuses.
  // Returns whether a map was refused.
  virtual bool SyncRange(IovaRange range, bool stop_at_refusal, SyncRun& run) = 0;
  virtual void ForgetAll(SyncCost& cost) = 0;

  // The physical part of a map: tables, or a refusal that leaves nothing of the range behind.
  absl::Status SetPages(IovaRange range, GuestPhys guest_pa, Access access, SyncRun& run);
  void ClearPages(IovaRange range, SyncCost& cost) { table_->Clear(range, cost.ptes_changed); }
  void Refuse(IovaRange range) { refused_.Add(range); }
  bool nothing_noted() const { return refused_.empty() && unlooked_.empty(); }
  // `range` was looked at: what was noted about it is settled.
  void Settle(IovaRange range) {
    if (!refused_.empty()) refused_.Erase(range);
    if (!unlooked_.empty()) unlooked_.Erase(range);
  }
  void Abandon(IovaRange range) {
    refused_.Erase(range);
    unlooked_.Add(range);
  }
  // `range` was unmapped or changed in the tables.
  void Invalidate(IovaRange range, SyncCost& cost) {
    NoteInvalid(range);
    if (!batch_invalidations_) FlushInvalidations(cost);
  }
  // The same where invalidations are batched.
  void NoteInvalid(IovaRange range) {
    if (!TellsWholeDomain()) pending_.push_back(range);
  }
  // Further ranges make no difference.
  bool TellsWholeDomain() const { return pending_.size() > kMaxPieces; }
  void FlushInvalidations(SyncCost& cost) {
    if (!pending_.empty()) TellPending(cost);
  }

  const ShadowContext& context_;
  GuestTable guest_table_;

 private:
  // Above this many pieces one domain invalidation is cheaper than the pieces (a model choice).
  static constexpr size_t kMaxPieces = 16;

  void TellPending(SyncCost& cost);
  void TellDeviceTlbs(IovaRange range, SyncCost& cost);

  const std::unique_ptr<ShadowTable> table_;
  const DomainId host_domain_;
  const bool batch_invalidations_;  // one round for a sync, instead of one for each unmap
  std::vector<IovaRange> pending_;  // one more than the pieces worth telling: the whole domain
  RangeSet refused_;
  RangeSet unlooked_;
};

}  // namespace viommu

#endif  // VIOMMU_IOMMU_CORE_SHADOW_SHADOW_H_
