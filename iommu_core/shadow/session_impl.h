// The one implementation of HypervisorSession. Tests include it for its hooks.
#ifndef VIOMMU_IOMMU_CORE_SHADOW_SESSION_IMPL_H_
#define VIOMMU_IOMMU_CORE_SHADOW_SESSION_IMPL_H_

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "iommu_core/hw/dma_container.h"
#include "iommu_core/mem/host_memory.h"
#include "iommu_core/shadow/guest_pte.h"
#include "iommu_core/shadow/host_map.h"
#include "iommu_core/shadow/hypervisor_session.h"
#include "iommu_core/shadow/nested_unit.h"
#include "iommu_core/shadow/physical_unit.h"
#include "iommu_core/shadow/shadow.h"
#include "iommu_core/shadow/shadow_table.h"
#include "iommu_core/shadow/snapshot_shadow.h"
#include "iommu_core/shadow/table_index.h"

namespace viommu {

class SessionImpl final : public HypervisorSession {
 public:
  static absl::StatusOr<std::unique_ptr<SessionImpl>> Create(SessionConfig config,
                                                             PhysicalMemory& guest);
  ~SessionImpl() override;

  absl::Status AddDevice(SourceId sid, bool has_device_tlb) override;
  absl::Status RemoveDevice(SourceId sid) override;
  absl::Status UpdateRegisters(const UnitRegisters& registers) override;
  SinkCompletion Apply(std::span<const vtd::RawDescriptor> descriptors,
                       std::span<const DeviceTouch> touches, TableClaim claim) override;
  DmaResult Dma(SourceId sid, Iova iova, bool write, std::span<std::byte> data,
                bool probe) override;
  absl::StatusOr<DeviceTranslation> Translate(SourceId sid, Iova iova,
                                              Access access) const override;
  absl::StatusOr<std::vector<LeafMapping>> FlattenShadow(SourceId sid) const override;
  uint64_t VerifyAll() override;
  SessionStats stats() const override;
  std::vector<vtd::FaultRecord> TakeFaults() override;

  // Called, with the session locked, after each store to a physical table; HostPageForTest may be
  // called from it.
  void ObserveStoresForTest(std::function<void()> observer);
  // Where the physical tables, walked afresh, lead one page of a device; access none: nowhere.
  LeafMapping HostPageForTest(SourceId sid, Iova iova) const ABSL_NO_THREAD_SAFETY_ANALYSIS;
  // Unmaps one page behind the session's back.
  void CorruptShadowForTest(SourceId sid, Iova iova);

 private:
  struct Device {
    explicit Device(SourceId s, bool ats) : sid(s), has_device_tlb(ats) {}
    const SourceId sid;
    const bool has_device_tlb;
    bool uses_device_tlb = false;  // the guest's context entry allows it (TT)
    GuestTable guest_table;        // as last read
    Shadow* shadow = nullptr;      // null: blocked
    bool no_room = false;          // blocked by a limit, whatever the guest's tables say
    DeviceTlb tlb;
  };
  // A context entry as the guest has it now.
  struct GuestContext {
    GuestTable table;
    bool device_tlb = false;
  };
  struct Reach {
    vtd::FaultReason reason = vtd::FaultReason::kNone;
    bool interrupt = false;  // a write into the interrupt window: a message, no memory
    HostPhys host;
    GuestPhys guest;
  };
  using Synced = std::set<const Shadow*>;
  using Moves = std::vector<std::pair<Device*, GuestContext>>;

  SessionImpl(SessionConfig config, PhysicalMemory& guest, std::unique_ptr<HostMemory> host_memory);
  absl::Status Start();

  // Pulled guest memory: what is read from here on is as it is now. Returns the counts so far, for
  // ChargePulls at the end of the synchronisation.
  PullCounts LookAgain() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void ChargePulls(const PullCounts& before, SyncCost& cost) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // The oracle looks again, for itself.
  void OracleLooksAgain() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    if (pulled_ != nullptr) pulled_->oracle_view().pulled()->Refresh();
  }
  // What could not be read may be there: no statement about the guest's tables holds.
  bool PullFailed() const { return pulled_ != nullptr && pulled_->failed(); }

  // session_apply.cc
  vtd::DecodeResult DecodeOne(const vtd::RawDescriptor& raw) const;
  void ApplyOne(const vtd::RawDescriptor& raw, const vtd::Descriptor& d, TableClaim claim,
                SyncCost& cost) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Carries out the leading ones of `next` (kReadAhead at most) that each name one page which
  // stands as it was seen last: the cache misses of all are under way at once. Returns how many.
  size_t TakeUnchanged(std::span<const vtd::RawDescriptor> next, SyncCost& cost)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  // session_sync.cc
  GuestContext ReadContext(SourceId sid, SyncCost& cost) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  DomainId MaskDomain(DomainId did) const;
  IovaRange RangeOf(const vtd::IotlbInvalidate& d) const;
  void Invalidate(const vtd::ContextCacheInvalidate& d, SyncRun& run)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Invalidate(const vtd::IotlbInvalidate& d, SyncRun& run) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Invalidate(const vtd::DeviceTlbInvalidate& d, SyncRun& run)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Points the device where the guest's context entry says and syncs that shadow, once per
  // `synced`.
  void Refresh(Device& device, const GuestContext& context, Synced& synced, SyncRun& run)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void RefreshMovedFirst(Moves affected, SyncRun& run) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Detach(Device& device, SyncCost& cost) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // The shadow of that domain, where there is one and no more.
  const Shadow* OnlyShadowOf(DomainId did) const ABSL_SHARED_LOCKS_REQUIRED(mu_);
  Shadow* FindShadow(const GuestTable& table) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  Shadow* FindOrMakeShadow(Device& device, const GuestTable& table)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Another shadow for `table`, complete, beside the one that devices are about to leave. False:
  // no room for both.
  bool ReplaceShadow(const GuestTable& table, Synced& synced, SyncRun& run)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  Shadow* AddShadow(const GuestTable& table) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void RemoveShadow(Shadow* shadow, SyncCost& cost) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::StatusOr<std::unique_ptr<Shadow>> MakeShadow(const GuestTable& table, DomainId host_domain)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void DropUser(Shadow* shadow, Device& device, SyncCost& cost) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void SyncShadow(Shadow& shadow, IovaRange range, SyncRun& run) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void RefreshAll(SyncCost& cost) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  // session_dma.cc
  Reach ReachLocked(Device* device, SourceId sid, Iova iova, Access wanted) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  DmaResult DmaLocked(SourceId sid, Iova iova, bool write, std::span<std::byte> data,
                      uint64_t size_bytes, bool probe) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void RecordFault(SourceId sid, Iova iova, bool write, vtd::FaultReason physical)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  // session_verify.cc
  bool WantsVerify(IovaRange range) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  std::optional<std::vector<LeafMapping>> ReferenceRuns(const GuestTable& table,
                                                        IovaRange range) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // The same by another walker.
  std::optional<std::vector<LeafMapping>> RunsOf(const Walker& walker, const GuestTable& table,
                                                 IovaRange range) const;
  std::vector<LeafMapping> HostRuns(PhysAddr root, int levels, IovaRange range) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  std::vector<LeafMapping> FlattenLocked(SourceId sid) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  GuestTable ReferenceTable(SourceId sid) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  uint64_t VerifyAllLocked(SyncCost& cost) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  const SessionConfig config_;
  PhysicalMemory& guest_;
  const PulledMemory* const pulled_;  // null: guest memory is in place
  const GuestPteRules rules_;
  const HostMap map_;
  const Walker reference_;  // the oracle

  mutable absl::Mutex mu_;
  const std::unique_ptr<HostMemory> host_memory_ ABSL_PT_GUARDED_BY(mu_);
  TablePool pool_ ABSL_GUARDED_BY(mu_);
  PinBudget pins_ ABSL_GUARDED_BY(mu_);
  NodePool nodes_ ABSL_GUARDED_BY(mu_);
  std::unique_ptr<DirtyTableIndex> dirty_index_ ABSL_GUARDED_BY(mu_);  // null: no dirty log
  std::unique_ptr<PhysicalUnit> unit_ ABSL_GUARDED_BY(mu_);
  std::unique_ptr<NestedUnit> nested_ ABSL_GUARDED_BY(mu_);  // strategy nested only
  std::optional<ShadowContext> shadow_context_ ABSL_GUARDED_BY(mu_);
  UnitRegisters registers_ ABSL_GUARDED_BY(mu_);
  std::map<SourceId, std::unique_ptr<Device>> devices_ ABSL_GUARDED_BY(mu_);
  std::vector<std::unique_ptr<Shadow>> shadows_ ABSL_GUARDED_BY(mu_);  // in order of creation
  std::vector<uint16_t> free_host_domains_ ABSL_GUARDED_BY(mu_);
  uint16_t next_host_domain_ ABSL_GUARDED_BY(mu_) = 1;
  uint64_t verify_eligible_ ABSL_GUARDED_BY(mu_) = 0;
  SessionStats stats_ ABSL_GUARDED_BY(mu_);
  std::vector<vtd::FaultRecord> faults_ ABSL_GUARDED_BY(mu_);
};

}  // namespace viommu

#endif  // VIOMMU_IOMMU_CORE_SHADOW_SESSION_IMPL_H_
