// Inside of GuestMachine; only this folder includes it.
#ifndef VIOMMU_IOMMU_CORE_DMA_GUEST_MACHINE_IMPL_H_
#define VIOMMU_IOMMU_CORE_DMA_GUEST_MACHINE_IMPL_H_

#include <map>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/btree_map.h"
#include "absl/container/flat_hash_map.h"
#include "absl/synchronization/mutex.h"
#include "iommu_core/dma/dma_domain.h"
#include "iommu_core/dma/exposure_ledger.h"
#include "iommu_core/dma/guest_machine.h"
#include "iommu_core/dma/iommu_driver.h"
#include "iommu_core/mem/dirty_log.h"
#include "iommu_core/mem/sparse_memory.h"

namespace viommu {

class GuestMachineImpl final : public GuestMachine {
 public:
  GuestMachineImpl(const GuestConfig& config, PhysicalMemory& ram, const Clock& clock);
  absl::Status BringUp(const std::vector<InvalidationSink*>& sinks);

  absl::StatusOr<uint32_t> CreateDomain(int dma_mask_bits) override;
  absl::Status DeleteDomain(uint32_t domain) override;
  absl::StatusOr<DomainId> AttachDevice(uint32_t domain, SourceId sid, uint32_t iommu,
                                        bool device_tlb) override;
  absl::Status DetachDevice(SourceId sid) override;
  absl::StatusOr<Iova> Map(uint32_t domain, std::span<const Segment> segments, Access access,
                           uint32_t vcpu) override;
  absl::Status MapAt(uint32_t domain, Iova iova, std::span<const Segment> segments, Access access,
                     uint32_t vcpu) override;
  absl::StatusOr<UnmapOutcome> Unmap(uint32_t domain, Iova iova, uint64_t size_bytes,
                                     uint32_t vcpu) override;
  absl::Status MapResident(uint32_t domain, Iova first, uint64_t pages) override;
  absl::Status SyncMaps() override;
  absl::Status Abandon(uint32_t domain, Iova iova) override;
  bool Holds(uint32_t domain, Iova iova) const override;
  void set_deadline(std::chrono::steady_clock::time_point until) override;
  absl::StatusOr<GuestPhys> AllocateBuffer(uint64_t size_bytes) override;
  void FreeBuffer(GuestPhys first, uint64_t size_bytes) override;
  absl::StatusOr<uint64_t> FlushDeferred() override;
  absl::Status RunTimers() override;
  std::optional<uint64_t> NextTimerNs() const override;
  PolicyDecision policy() const override;
  absl::Status SetPolicy(Policy policy, bool force_lazy) override;
  absl::Status MakeLazy(uint32_t domain) override;
  void QueueTouch(uint32_t domain, Iova iova, bool write) override;
  std::vector<vtd::FaultRecord> TakeFaults(bool* overflow) override;
  void RecordFault(uint32_t iommu, const vtd::FaultRecord& record) override;
  void set_descriptor_hook(DescriptorHook hook) override;
  GuestStats stats() const override;
  void ResetStats() override;
  double last_op_modelled_ns() const override;

 private:
  struct Unit {
    std::unique_ptr<IommuDriver> driver;
    double lock_free_ns = 0;  // modelled: when the queue's lock is next free
  };
  // An unmapped range whose invalidation is not known to be done, or was never sent.
  struct Unfinished {
    uint32_t domain = 0;
    FlushEntry entry;
    bool covered = false;  // by an invalidation that is done
  };
  // `lazy-psi`: one machine-wide table, as Intel's driver had (deferred_flush).
  struct DeferredPsi {
    uint32_t domain = 0;
    FlushEntry entry;
  };

  // --- guest_machine.cc
  absl::StatusOr<DmaDomain*> FindLocked(uint32_t domain) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::Status CheckSegments(std::span<const Segment> segments) const;
  absl::StatusOr<Iova> AllocateIova(DmaDomain& domain, uint64_t size_bytes)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  static void FreeIova(DmaDomain& domain, IovaRange range, uint32_t vcpu);
  absl::Status DetachLocked(SourceId sid) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // On failure nothing stays mapped; `allocated`: the IOVA goes back when no device can know it.
  absl::Status MapLocked(DmaDomain& domain, Iova iova, std::span<const Segment> segments,
                         Access access, bool allocated) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::StatusOr<UnmapOutcome> UnmapLocked(DmaDomain& domain, IovaRange range, uint32_t vcpu)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // The guest page behind each page of `range`, skipping what is not mapped.
  static std::vector<uint64_t> PagesOf(const DmaDomain& domain, IovaRange range);

  // --- invalidation.cc, outstanding.cc
  // One doorbell on one unit: counts it, prices it, and moves the modelled time of this operation.
  absl::StatusOr<SinkCompletion> Submit(uint32_t unit,
                                        std::span<const vtd::RawDescriptor> descriptors,
                                        TableClaim claim) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // What happened to a range before its invalidation.
  enum class Change {
    kLeavesGone,
    kTablesGone,
    kMapped,
    kReplaced,  // tables, by a larger leaf of a map that is not done yet
  };
  static Change ChangeOf(const FlushEntry& unmapped) {
    return unmapped.freed_tables.empty() ? Change::kLeavesGone : Change::kTablesGone;
  }
  absl::Status InvalidateRange(DmaDomain& domain, IovaRange range, Change change)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // `flushed`: what of the queue this is for.
  absl::Status InvalidateDomain(DmaDomain& domain, FlushChooser::Work flushed = {})
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // The device-TLBs of the domain's devices behind one unit, a submission each.
  absl::Status InvalidateDeviceTlbs(DmaDomain& domain, uint32_t unit, IovaRange range,
                                    TableClaim claim) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // What `adaptive` goes by when it prices the next domain flush: that of a device's attach.
  void LearnDomainFlushCost(DmaDomain& domain, const SyncCost& cost) const;
  absl::Status InvalidateGlobally() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Many exact ranges, as few submissions as the queue allows.
  absl::Status InvalidatePieces(DmaDomain& domain, std::span<const IovaRange> pieces)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void CountDescriptors(std::span<const vtd::RawDescriptor> descriptors)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  vtd::RawDescriptor RangeDescriptor(const IommuDriver& driver, DomainId did, IovaRange range,
                                     bool leaf_hint) const;
  static vtd::RawDescriptor DeviceTlbDescriptor(SourceId sid, IovaRange range);
  // Of a batch after which the machine waits: settled if nothing but `domain` (of which all stale
  // pages are about to go) is stale anywhere.
  TableClaim ClaimAfter(const DmaDomain* domain) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  Policy PolicyOf(const DmaDomain& domain) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    return domain.made_lazy && policy_.effective == Policy::kStrict ? Policy::kLazy
                                                                    : policy_.effective;
  }
  FlushQueue& QueueOf(DmaDomain& domain) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::Status FlushQueued(DmaDomain& domain, FlushReason reason)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::Status FlushAdaptively(DmaDomain& domain, std::span<const IovaRange> pieces)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Flushes of `domain` begin early enough to be done within the stale-age bound.
  void KeepStaleAgeBound(DmaDomain& domain, FlushQueue& queue) const;
  absl::Status FlushDeferredPsi(FlushReason reason) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::Status Defer(DmaDomain& domain, FlushEntry entry, uint32_t vcpu)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::Status SyncMapsLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::StatusOr<uint64_t> FlushDeferredLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Release(DmaDomain& domain, FlushEntry&& entry, uint32_t vcpu)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void KeepUnfinished(uint32_t domain, FlushEntry entry) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    unfinished_.push_back({domain, std::move(entry), false});
  }
  // Waits for what an earlier call left outstanding, and invalidates again what that covered: some
  // of it may never have been sent. Not OK: "nothing was done", and the caller does nothing either.
  absl::Status FinishOutstanding() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Gives back what FinishOutstanding covered, at the end of an operation that succeeded.
  void ReleaseCovered() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  bool Drained() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  bool AllCovered() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void FreeBufferLocked(GuestPhys first, uint64_t size_bytes) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  uint64_t QueuedEntries() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  // Modelled time of the operation in progress.
  void BeginOp(uint32_t vcpu) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void SpendGuest(double ns) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void EndOp() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // "Now" for exposure: the modelled moment on a virtual clock, the clock itself otherwise.
  double ExposureNowNs() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  // Constant after construction.
  const GuestConfig config_;
  PhysicalMemory& ram_;
  const Clock& clock_;
  const GuestPhys buffers_first_;
  const GuestPhys buffers_end_;  // logs and tables follow
  // Marked whatever the hypervisor's strategy, which a guest does not know; none where memory is
  // not in place.
  std::vector<DirtyLogWriter> dirty_logs_;  // of each vIOMMU; none: memory is not shared

  mutable absl::Mutex mu_;
  std::vector<DirtyMarks> marks_ ABSL_GUARDED_BY(mu_);  // by vCPU; none without a log
  SimpleFrameAllocator frames_ ABSL_GUARDED_BY(mu_);
  std::vector<Unit> units_ ABSL_GUARDED_BY(mu_);
  PolicyDecision policy_ ABSL_GUARDED_BY(mu_);
  std::map<uint32_t, std::unique_ptr<DmaDomain>> domains_ ABSL_GUARDED_BY(mu_);
  std::map<SourceId, uint32_t> domain_of_device_ ABSL_GUARDED_BY(mu_);
  uint32_t next_domain_ ABSL_GUARDED_BY(mu_) = 0;
  std::vector<Unfinished> unfinished_ ABSL_GUARDED_BY(mu_);
  // Freed while something was outstanding: a device may still reach them.
  std::vector<std::pair<GuestPhys, uint64_t>> parked_buffers_ ABSL_GUARDED_BY(mu_);
  std::vector<DeferredPsi> deferred_psi_ ABSL_GUARDED_BY(mu_);
  std::optional<uint64_t> deferred_psi_timer_ns_ ABSL_GUARDED_BY(mu_);
  uint32_t deferred_psi_cpu_ ABSL_GUARDED_BY(mu_) = 0;
  std::vector<std::pair<uint32_t, IovaRange>> unsynced_maps_ ABSL_GUARDED_BY(mu_);
  absl::btree_map<uint64_t, uint64_t> free_buffers_ ABSL_GUARDED_BY(mu_);  // first -> bytes
  DescriptorHook hook_ ABSL_GUARDED_BY(mu_);
  ExposureLedger exposure_ ABSL_GUARDED_BY(mu_);
  GuestStats stats_ ABSL_GUARDED_BY(mu_);

  uint32_t op_vcpu_ ABSL_GUARDED_BY(mu_) = 0;
  double op_start_ns_ ABSL_GUARDED_BY(mu_) = 0;
  double cursor_ns_ ABSL_GUARDED_BY(mu_) = 0;
  double last_op_ns_ ABSL_GUARDED_BY(mu_) = 0;
  std::vector<double> vcpu_busy_until_ns_ ABSL_GUARDED_BY(mu_);
};

}  // namespace viommu

#endif  // VIOMMU_IOMMU_CORE_DMA_GUEST_MACHINE_IMPL_H_
