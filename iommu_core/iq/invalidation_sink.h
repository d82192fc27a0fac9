// Where a virtual unit sends the descriptors it fetched from the guest's ring: in one process a
// HypervisorSession, between two the gRPC stream.
#ifndef VIOMMU_IOMMU_CORE_IQ_INVALIDATION_SINK_H_
#define VIOMMU_IOMMU_CORE_IQ_INVALIDATION_SINK_H_

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "iommu_core/base/sync_cost.h"
#include "iommu_core/base/types.h"
#include "iommu_core/vtd/fault.h"
#include "iommu_core/vtd/inv_descriptor.h"

namespace viommu {

// The registers of the virtual unit that the hypervisor acts on.
struct UnitRegisters {
  PhysAddr root_table;               // RTADDR as latched by GCMD.SRTP
  bool translation_enabled = false;  // GSTS.TES
  friend bool operator==(const UnitRegisters&, const UnitRegisters&) = default;
};

// What became of one posted batch.
struct SinkCompletion {
  uint32_t consumed = 0;               // descriptors verified and done, in order
  vtd::Iqei error = vtd::Iqei::kNone;  // not kNone: descriptor [consumed] is bad (IQE)
  SyncCost cost;
  uint64_t stale_dma_hits =
      0;                       // touches of this batch that reached memory the guest no longer maps
  uint64_t refused_pages = 0;  // gauge: pages that a limit keeps out of the shadow
  uint64_t pinned_pages = 0;   // gauge
  std::vector<vtd::FaultRecord> faults;  // device accesses blocked since the last completion
};

// A device access that happens before the doorbell it is posted with, e.g. a device that keeps
// touching a page the driver has unmapped.
struct DeviceTouch {
  SourceId source_id;
  Iova iova;
  bool write = false;
};

// What a guest states of its tables with a doorbell; the oracle demands no more than that.
enum class TableClaim : uint8_t {
  // They may change while the batch is under way.
  kNone,
  // None changes until the batch is done, and whoever logs table writes has logged all so far.
  kQuiet,
  // Besides, no change will be waiting for a deferred invalidation then, so that the whole shadow
  // must equal the tables.
  kSettled,
};

// Calls come in order from one thread at a time (the holder of the queue lock), Await from any.
class InvalidationSink {
 public:
  virtual ~InvalidationSink() = default;

  // One doorbell: descriptors in ring order, at most the ring's size. Returns a ticket; the batch
  // counts as done only once Await says so. Unavailable: not sent.
  virtual absl::StatusOr<uint64_t> Post(std::span<const vtd::RawDescriptor> descriptors,
                                        std::span<const DeviceTouch> touches, TableClaim claim) = 0;
  // Blocks until the batch is complete. DeadlineExceeded: it may complete later; await it again.
  // Any other error ends the ticket: the batch may or may not have been done.
  virtual absl::StatusOr<SinkCompletion> Await(uint64_t ticket, absl::Duration timeout) = 0;
  // SRTP and TE take effect before it returns.
  virtual absl::Status UpdateRegisters(const UnitRegisters& registers) = 0;
  // A device appears behind the unit (`present`) or leaves it; effective before it returns.
  virtual absl::Status UpdateDevice(SourceId sid, bool present, bool has_device_tlb) = 0;
};

}  // namespace viommu

#endif  // VIOMMU_IOMMU_CORE_IQ_INVALIDATION_SINK_H_
