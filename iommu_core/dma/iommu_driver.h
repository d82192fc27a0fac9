// The guest kernel's driver of one vIOMMU (Linux drivers/iommu/intel): brings the unit up, owns its
// root and context tables and domain ids, and submits invalidations through the ring in guest
// memory.
#ifndef VIOMMU_IOMMU_CORE_DMA_IOMMU_DRIVER_H_
#define VIOMMU_IOMMU_CORE_DMA_IOMMU_DRIVER_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "absl/container/btree_set.h"
#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "iommu_core/base/types.h"
#include "iommu_core/iq/sink_backend.h"
#include "iommu_core/iq/vtd_unit.h"
#include "iommu_core/mem/physical_memory.h"
#include "iommu_core/vtd/root_context.h"

namespace viommu {

// Not thread-safe: the machine's lock is the queue's.
class IommuDriver {
 public:
  // Queue of 256 descriptors of 16 bytes in one page (dmar.c QI_LENGTH).
  static constexpr uint32_t kQueueEntries = 256;
  // A submission needs its descriptors, its wait, and one slot that stays free.
  static constexpr uint32_t kMaxBatch = kQueueEntries - 2;
  using DescriptorHook = std::function<void(std::span<const vtd::RawDescriptor>)>;

  // Enables the queue, sets the root table, invalidates globally, enables translation
  // (intel_iommu_init). `memory`, `frames` and `sink` outlive the driver.
  static absl::StatusOr<std::unique_ptr<IommuDriver>> Create(vtd::Capabilities caps, int haw_bits,
                                                             PhysicalMemory& memory,
                                                             FrameAllocator& frames,
                                                             InvalidationSink& sink,
                                                             DescriptorHook hook);

  // qi_submit_sync: descriptors, one wait, one tail write; returns when the status word says done.
  // At most kMaxBatch. Unavailable, DeadlineExceeded: submitted, or behind an earlier one and not
  // even that; what they covered must be submitted again after Drain. QueueError: a descriptor was
  // refused.
  absl::StatusOr<SinkCompletion> Submit(std::span<const vtd::RawDescriptor> descriptors,
                                        TableClaim claim);
  // Waits for what an earlier Submit left undone; OK if there is nothing.
  absl::Status Drain();
  bool drained() const { return drained_; }

  // Touches that the device makes before the next doorbell.
  void QueueTouch(const DeviceTouch& touch);

  // The lowest free id from 2 (domain_attach_iommu; 0 and 1 are reserved).
  absl::StatusOr<DomainId> AllocateDomainId();
  void FreeDomainId(DomainId did) { domain_ids_.erase(did.value()); }

  absl::Status AddDevice(SourceId sid, bool device_tlb);
  absl::Status RemoveDevice(SourceId sid);
  // Writes the context entry, Present last. The caller invalidates.
  absl::Status SetContext(SourceId sid, vtd::ContextEntry entry);
  absl::Status ClearContext(SourceId sid);

  VtdUnit& unit() { return unit_; }
  const vtd::Capabilities& caps() const { return caps_; }
  void set_timeout(absl::Duration timeout) { backend_.set_timeout(timeout); }
  void set_deadline(std::chrono::steady_clock::time_point until) { backend_.set_deadline(until); }
  void set_hook(DescriptorHook hook) { hook_ = std::move(hook); }

 private:
  void Put(const vtd::RawDescriptor& d);  // into the ring, at the tail
  IommuDriver(vtd::Capabilities caps, int haw_bits, PhysicalMemory& memory, FrameAllocator& frames,
              InvalidationSink& sink, DescriptorHook hook);
  absl::Status BringUp();
  absl::StatusOr<PhysAddr> ContextSlot(SourceId sid, bool create);

  const vtd::Capabilities caps_;
  PhysicalMemory& memory_;
  FrameAllocator& frames_;
  InvalidationSink& sink_;
  DescriptorHook hook_;
  SinkBackend backend_;
  VtdUnit unit_;

  PhysAddr ring_;
  PhysAddr status_words_;  // one 32-bit word a slot
  PhysAddr root_table_;
  uint32_t tail_ = 0;  // slot
  bool drained_ = true;
  std::vector<DeviceTouch> touches_;
  absl::btree_set<uint16_t> domain_ids_;
  absl::flat_hash_map<int, PhysAddr> context_tables_;  // by bus
};

}  // namespace viommu

#endif  // VIOMMU_IOMMU_CORE_DMA_IOMMU_DRIVER_H_
