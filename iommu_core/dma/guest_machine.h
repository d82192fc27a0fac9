// One guest: the IOMMU driver, the DMA API and the invalidation policies of Linux over one or more
// virtual units. Tables, rings and status words live in guest memory in VT-d format.
#ifndef VIOMMU_IOMMU_CORE_DMA_GUEST_MACHINE_H_
#define VIOMMU_IOMMU_CORE_DMA_GUEST_MACHINE_H_

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "iommu_core/base/clock.h"
#include "iommu_core/base/cost_model.h"
#include "iommu_core/base/sync_cost.h"
#include "iommu_core/base/types.h"
#include "iommu_core/dma/guest_config.h"
#include "iommu_core/iq/invalidation_sink.h"
#include "iommu_core/mem/physical_memory.h"
#include "iommu_core/vtd/fault.h"
#include "iommu_core/vtd/inv_descriptor.h"

namespace viommu {

// One physically contiguous piece of a mapping; whole pages.
struct Segment {
  GuestPhys guest_pa;
  uint64_t size_bytes = 0;
};

struct UnmapOutcome {
  bool deferred = false;  // devices may still reach the pages
};

// Totals since creation or ResetStats; gauges where said. Times are the machine's clock.
struct GuestStats {
  uint64_t maps = 0;  // Map/MapAt calls (a list is one)
  uint64_t unmaps = 0;
  uint64_t map_failures = 0;
  uint64_t unmap_failures = 0;
  uint64_t pages_mapped = 0;
  uint64_t pages_unmapped = 0;
  uint64_t map_updates = 0;  // table updates priced: one a segment of a list
  uint64_t unmap_updates = 0;
  uint64_t submissions = 0;  // doorbells: trapped submissions
  uint64_t descriptors_context = 0;
  uint64_t descriptors_iotlb_global = 0;
  uint64_t descriptors_iotlb_domain = 0;
  uint64_t descriptors_iotlb_page = 0;
  uint64_t descriptors_device_tlb = 0;
  uint64_t descriptors_wait = 0;
  uint64_t flushes_full = 0;  // flush-queue flushes by reason
  uint64_t flushes_timeout = 0;
  uint64_t flushes_sync = 0;  // asked for, or a domain's end
  uint64_t flushed_entries = 0;
  uint64_t flush_queue_entries = 0;  // gauge
  uint64_t stale_pages = 0;          // gauge: unmapped, not yet revoked
  double stale_page_seconds = 0;     // of revoked pages: sum of (revoked - unmap returned)
  double stale_age_max_seconds = 0;
  uint64_t reused_while_stale_pages = 0;
  uint64_t stale_dma_hits = 0;            // as completions report them
  uint64_t iova_allocated_bytes = 0;      // gauge
  uint64_t iova_allocated_bytes_max = 0;  // gauge: of the domain that has most
  uint64_t domains = 0;                   // gauge
  uint64_t devices = 0;                   // gauge
  SyncCost sync;                          // as completions report it
  ModelledCost modelled;                  // priced counts, all vCPUs
};

// Calls serialise on one lock (the queue's); any thread may call. While an invalidation is
// outstanding no call changes a table: it waits, then fails with "nothing was done".
class GuestMachine {
 public:
  // `ram`, `clock` and `sinks` (one per vIOMMU of the config, in order) outlive the machine. Frames
  // for tables and rings come from the top `table_region_bytes` of ram_bytes. Brings every unit up:
  // QI on, root table set, global invalidations, translation on.
  static absl::StatusOr<std::unique_ptr<GuestMachine>> Create(
      const GuestConfig& config, PhysicalMemory& ram, const Clock& clock,
      const std::vector<InvalidationSink*>& sinks);
  virtual ~GuestMachine() = default;

  // A domain has no unit until a device is attached; the policy decision needs none.
  virtual absl::StatusOr<uint32_t> CreateDomain(int dma_mask_bits) = 0;
  // FailedPrecondition while a device is attached. Queued entries go with it.
  virtual absl::Status DeleteDomain(uint32_t domain) = 0;
  // A device already in another domain is moved.
  virtual absl::StatusOr<DomainId> AttachDevice(uint32_t domain, SourceId sid, uint32_t iommu,
                                                bool device_tlb) = 0;
  virtual absl::Status DetachDevice(SourceId sid) = 0;

  // dma_map_sg: one contiguous IOVA range, one map-time invalidation.
  virtual absl::StatusOr<Iova> Map(uint32_t domain, std::span<const Segment> segments,
                                   Access access, uint32_t vcpu) = 0;
  // iommu_map at an IOVA that the caller chose (replay).
  virtual absl::Status MapAt(uint32_t domain, Iova iova, std::span<const Segment> segments,
                             Access access, uint32_t vcpu) = 0;
  // What Map or MapAt mapped; MapAt's may be undone in other pieces.
  virtual absl::StatusOr<UnmapOutcome> Unmap(uint32_t domain, Iova iova, uint64_t size_bytes,
                                             uint32_t vcpu) = 0;
  // A resident set of `pages` single 4K mappings at [first, ...), scattered guest pages, with one
  // domain flush for all of it. Not counted as maps.
  virtual absl::Status MapResident(uint32_t domain, Iova first, uint64_t pages) = 0;

  // With --map_sync=merged, map-time invalidations wait here: submits them together. The caller
  // does so before it tells a device about any of the mappings. Nothing to do otherwise.
  virtual absl::Status SyncMaps() = 0;

  // No wait for an invalidation goes on after `until`, until this is called again.
  virtual void set_deadline(std::chrono::steady_clock::time_point until) = 0;

  // Free guest pages for buffers, contiguous. What is freed while an invalidation is outstanding is
  // handed out again once it is done.
  virtual absl::StatusOr<GuestPhys> AllocateBuffer(uint64_t size_bytes) = 0;
  virtual void FreeBuffer(GuestPhys first, uint64_t size_bytes) = 0;

  // Undoes a Map whose SyncMaps failed, at once: its IOVA goes back when an invalidation that
  // covers it is done. InvalidArgument: Map made no mapping there.
  virtual absl::Status Abandon(uint32_t domain, Iova iova) = 0;
  // True: what Map mapped there was not unmapped yet.
  virtual bool Holds(uint32_t domain, Iova iova) const = 0;

  // Sends everything deferred and waits; returns the entries released.
  virtual absl::StatusOr<uint64_t> FlushDeferred() = 0;
  // Runs the flush timers that are due by the clock, each at its own tick, in order. On a virtual
  // clock the caller advances to NextTimerNs() first.
  virtual absl::Status RunTimers() = 0;
  virtual std::optional<uint64_t> NextTimerNs() const = 0;

  virtual PolicyDecision policy() const = 0;
  // Pending entries are flushed first when the new policy is strict.
  virtual absl::Status SetPolicy(Policy policy, bool force_lazy) = 0;

  // Writing DMA-FQ to the type of the domain's group: a strict domain defers from now on, with the
  // per-CPU queues of `lazy`, whatever the units' caching mode. Nothing changes under other
  // policies.
  virtual absl::Status MakeLazy(uint32_t domain) = 0;

  // The device touches this before the next doorbell.
  virtual void QueueTouch(uint32_t domain, Iova iova, bool write) = 0;
  // The fault registers of every unit, oldest first; reading clears them.
  virtual std::vector<vtd::FaultRecord> TakeFaults(bool* overflow) = 0;
  // Hands a fault that the hypervisor reported outside a completion to the unit.
  virtual void RecordFault(uint32_t iommu, const vtd::FaultRecord& record) = 0;

  // Every descriptor that a doorbell submitted, waits included; may be empty.
  using DescriptorHook = std::function<void(std::span<const vtd::RawDescriptor>)>;
  virtual void set_descriptor_hook(DescriptorHook hook) = 0;

  virtual GuestStats stats() const = 0;
  virtual void ResetStats() = 0;
  // Modelled nanoseconds of the last Map/MapAt/Unmap: own work, lock wait and submissions.
  virtual double last_op_modelled_ns() const = 0;
};

}  // namespace viommu

#endif  // VIOMMU_IOMMU_CORE_DMA_GUEST_MACHINE_H_
