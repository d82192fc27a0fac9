// The hypervisor's side of one guest vIOMMU: decodes descriptors, walks guest tables, keeps the
// shadow, programs the physical IOMMU, and models the guest's devices.
#ifndef VIOMMU_IOMMU_CORE_SHADOW_HYPERVISOR_SESSION_H_
#define VIOMMU_IOMMU_CORE_SHADOW_HYPERVISOR_SESSION_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "iommu_core/base/sync_cost.h"
#include "iommu_core/base/types.h"
#include "iommu_core/iq/invalidation_sink.h"
#include "iommu_core/mem/physical_memory.h"
#include "iommu_core/pt/walker.h"
#include "iommu_core/vtd/capability.h"
#include "iommu_core/vtd/fault.h"

namespace viommu {

enum class Strategy { kWalk, kWalkShared, kSnapshot, kDirtyLog, kNested };
// "walk", "walk-shared", "snapshot", "dirty-log", "nested"; InvalidArgument lists them.
absl::StatusOr<Strategy> ParseStrategy(absl::string_view name);
absl::string_view StrategyName(Strategy strategy);

// How often the oracle compares shadow and reference walk after a completed invalidation.
enum class Verify { kOff, kSampled, kFull };
absl::StatusOr<Verify> ParseVerify(absl::string_view name);

struct SessionConfig {
  vtd::Capabilities guest_caps = vtd::QemuCapabilities(48, true);
  int guest_haw_bits = 48;
  uint64_t guest_ram_bytes = 0;
  Strategy strategy = Strategy::kWalk;
  Verify verify = Verify::kSampled;
  int host_page_shift = 12;                 // 12, 21 or 30: granule of the GPA -> HPA map
  uint64_t dma_entry_limit = 65535;         // per DMA container (VFIO type1 dma_entry_limit)
  uint64_t pin_limit_bytes = ~uint64_t{0};  // per session (RLIMIT_MEMLOCK)
  uint32_t iotlb_entries = 1024;            // of the physical unit
  uint32_t max_devices = 256;
  uint32_t max_domains = 256;  // shadows alive at once
  uint64_t max_shadow_table_pages = uint64_t{1} << 20;
  uint64_t max_work_per_invalidation = uint64_t{1} << 26;  // guest entries read
  uint64_t max_faults_retained = 1024;                     // further ones are counted as dropped
  // Strategy dirty-log: guest-physical base of the log that the guest keeps for this session alone
  // (mem/dirty_log.h). 0: it keeps none, and the strategy works as snapshot does.
  uint64_t dirty_log_base = 0;
  // Called between bounded slices of a long walk so that other sessions get their turn.
  std::function<void()> yield;
  // Called before work that is long and has no slices: the oracle's walk of a whole domain.
  std::function<void()> before_long;
};

struct DmaResult {
  vtd::FaultReason reason = vtd::FaultReason::kNone;  // kNone: the data moved
  uint64_t bytes_moved = 0;                           // before the fault, at page boundaries
  bool stale = false;  // it succeeded on a page that the guest's tables no longer map that way
};

// Where one access of a device would go.
struct DeviceTranslation {
  vtd::FaultReason reason = vtd::FaultReason::kNone;  // kNone: the rest is valid
  HostPhys host;
  GuestPhys guest;
};

// Totals since the session began; gauges where said.
struct SessionStats {
  SyncCost cost;
  uint64_t live_pages = 0;    // gauge: 4K pages mapped in the shadow, once per shadow
  uint64_t pinned_pages = 0;  // gauge
  uint64_t pinned_pages_max = 0;
  uint64_t shadow_table_pages = 0;  // gauge: physical table pages
  uint64_t bookkeeping_bytes = 0;   // gauge: records and last-seen copies
  uint64_t refused_pages = 0;       // gauge: pages waiting to be mapped again after a limit
  uint64_t dma_entries_max = 0;     // gauge: mappings in the DMA container that holds most
  uint64_t iotlb_hits = 0;
  uint64_t iotlb_misses = 0;
  uint64_t stale_dma_hits = 0;
  uint64_t faults[16] = {};  // by reason
  uint64_t faults_dropped = 0;
  uint64_t work_refused = 0;       // invalidations stopped at max_work_per_invalidation
  uint64_t shadows_refused = 0;    // devices left blocked at max_domains
  uint64_t invalidations[4] = {};  // by granularity: 1 global, 2 domain, 3 page
  // Remote guest memory: all that was copied from the guest (synchronisations, which `cost` has as
  // well, and device accesses), and apart from that what the oracle copied.
  PullCounts pulled;
  PullCounts oracle_pulled;
  bool dirty_log_active = false;  // strategy dirty-log has a log to go by
  uint32_t devices = 0;
  uint32_t domains = 0;
};

// Thread-safe: calls on one session serialise; sessions share nothing but const configuration.
class HypervisorSession {
 public:
  // `guest` outlives the session and may change under it at any time. One that is pulled is used by
  // this session only; when a pull fails, what was asked for is treated as absent, and the caller
  // (who sees the failure in that memory) has the guest's state replayed.
  static absl::StatusOr<std::unique_ptr<HypervisorSession>> Create(SessionConfig config,
                                                                   PhysicalMemory& guest);
  virtual ~HypervisorSession() = default;

  virtual absl::Status AddDevice(SourceId sid, bool has_device_tlb) = 0;
  // Blocks the device's DMA and releases what it alone pinned.
  virtual absl::Status RemoveDevice(SourceId sid) = 0;

  // SRTP / TE of the guest's unit. Over-invalidates: everything is looked at again.
  virtual absl::Status UpdateRegisters(const UnitRegisters& registers) = 0;
  // Descriptors in ring order; stops at the first bad one.
  virtual SinkCompletion Apply(std::span<const vtd::RawDescriptor> descriptors,
                               std::span<const DeviceTouch> touches, TableClaim claim) = 0;

  // A device reads or writes `data.size()` bytes at `iova`, through the physical unit. A `probe`
  // counts as a touch (stale_dma_hits) and records no fault.
  virtual DmaResult Dma(SourceId sid, Iova iova, bool write, std::span<std::byte> data,
                        bool probe) = 0;

  // Looks one access up as Dma would, without moving data, recording a fault or counting a touch.
  virtual absl::StatusOr<DeviceTranslation> Translate(SourceId, Iova, Access) const {
    return absl::UnimplementedError("this session does not translate single accesses");
  }

  // What the physical unit lets `sid` reach now, ascending, in guest-physical terms.
  virtual absl::StatusOr<std::vector<LeafMapping>> FlattenShadow(SourceId sid) const = 0;
  // Compares every page of every device with the reference walk; returns pages that differ.
  virtual uint64_t VerifyAll() = 0;
  virtual SessionStats stats() const = 0;
  // Faults recorded since the last call, oldest first.
  virtual std::vector<vtd::FaultRecord> TakeFaults() = 0;
};

}  // namespace viommu

#endif  // VIOMMU_IOMMU_CORE_SHADOW_HYPERVISOR_SESSION_H_
