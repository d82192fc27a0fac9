// A guest's memory with root, context and second-stage tables, edited entry by entry as a driver
// (or an attacker) would.
#ifndef VIOMMU_TESTS_IOMMU_CORE_SHADOW_TEST_GUEST_H_
#define VIOMMU_TESTS_IOMMU_CORE_SHADOW_TEST_GUEST_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "iommu_core/mem/dirty_log.h"
#include "iommu_core/mem/shared_memory.h"
#include "iommu_core/shadow/session_impl.h"
#include "iommu_core/vtd/inv_descriptor.h"
#include "iommu_core/vtd/root_context.h"
#include "iommu_core/vtd/second_stage_pte.h"

namespace viommu {

inline constexpr uint64_t kRw = 3;
inline constexpr uint64_t kLarge = 1 << 7;

class TestGuest {
 public:
  explicit TestGuest(uint64_t ram_bytes = uint64_t{256} << 20)
      : memory_(*SharedMemory::Create(ram_bytes)), ram_bytes_(ram_bytes) {
    root_ = NewPage();
    log_base_ = ram_bytes - DirtyLogBytes(ram_bytes);
    log_.emplace(*DirtyLogView::Create(*memory_, PhysAddr(log_base_), ram_bytes));
  }

  PhysicalMemory& memory() { return *memory_; }
  uint64_t ram_bytes() const { return ram_bytes_; }
  PhysAddr root() const { return root_; }
  PhysAddr NewPage() {
    const PhysAddr page(next_);
    next_ += kPageSize;
    return page;
  }

  uint64_t Get(PhysAddr at) { return memory_->Read64(at).value_or(0); }
  // As a guest that keeps the log does.
  void Put(PhysAddr at, uint64_t value) {
    memory_->Write64(at, value);
    log_->Mark(at);
  }
  uint64_t dirty_log_base() const { return log_base_; }

  PhysAddr ContextSlot(SourceId sid) {
    const PhysAddr root_slot = root_ + 16u * static_cast<uint64_t>(vtd::RootIndex(sid));
    if ((Get(root_slot) & 1) == 0) Put(root_slot, vtd::RootEntry::Make(NewPage()).lo);
    return PhysAddr(Get(root_slot) & ~kPageMask) +
           16u * static_cast<uint64_t>(vtd::ContextIndex(sid));
  }
  void SetContext(SourceId sid, const vtd::ContextEntry& entry) {
    const PhysAddr slot = ContextSlot(sid);
    Put(slot + 8, entry.hi);
    Put(slot, entry.lo);
  }

  // The slot of `iova` at `level`, with tables made on the way where there are none.
  PhysAddr Slot(PhysAddr table, int levels, Iova iova, int level) {
    for (int at = levels;; --at) {
      const PhysAddr slot = table + 8u * static_cast<uint64_t>(vtd::LevelIndex(iova, at));
      if (at == level) return slot;
      const uint64_t entry = Get(slot);
      if ((entry & 3) == 0 || (entry & kLarge) != 0) {
        Put(slot, vtd::SecondStagePte::Table(NewPage()).raw);
      }
      table = PhysAddr(Get(slot) & 0xfffffffff000);
    }
  }
  void Map(PhysAddr table, int levels, uint64_t iova, uint64_t guest_pa, uint64_t bits = kRw,
           int level = 1) {
    Put(Slot(table, levels, Iova(iova), level), guest_pa | bits | (level > 1 ? kLarge : 0));
  }
  void Unmap(PhysAddr table, int levels, uint64_t iova, int level = 1) {
    Put(Slot(table, levels, Iova(iova), level), 0);
  }

 private:
  const std::unique_ptr<SharedMemory> memory_;
  const uint64_t ram_bytes_;
  uint64_t next_ = 0x100000;  // table pages; buffers lie where the tests put them
  PhysAddr root_;
  uint64_t log_base_ = 0;
  std::optional<DirtyLogWriter> log_;
};

inline vtd::RawDescriptor Psi(uint16_t did, uint64_t iova, int am = 0, bool ih = false) {
  vtd::IotlbInvalidate d;
  d.granularity = vtd::Granularity::kPageOrDevice;
  d.domain_id = DomainId(did);
  d.address_mask = static_cast<uint8_t>(am);
  d.address = Iova(iova);
  d.leaf_hint = ih;
  return vtd::Encode(d);
}
inline vtd::RawDescriptor Dsi(uint16_t did) {
  vtd::IotlbInvalidate d;
  d.granularity = vtd::Granularity::kDomain;
  d.domain_id = DomainId(did);
  return vtd::Encode(d);
}
inline vtd::RawDescriptor GlobalIotlb() { return vtd::Encode(vtd::IotlbInvalidate{}); }
inline vtd::RawDescriptor ContextGlobal() { return vtd::Encode(vtd::ContextCacheInvalidate{}); }
inline vtd::RawDescriptor ContextDomain(uint16_t did) {
  vtd::ContextCacheInvalidate d;
  d.granularity = vtd::Granularity::kDomain;
  d.domain_id = DomainId(did);
  return vtd::Encode(d);
}
inline vtd::RawDescriptor ContextDevice(SourceId sid, int fm = 0) {
  vtd::ContextCacheInvalidate d;
  d.granularity = vtd::Granularity::kPageOrDevice;
  d.source_id = sid;
  d.function_mask = static_cast<uint8_t>(fm);
  return vtd::Encode(d);
}

inline SinkCompletion Send(HypervisorSession& session, std::vector<vtd::RawDescriptor> raw,
                           TableClaim claim = TableClaim::kQuiet) {
  return session.Apply(raw, {}, claim);
}

inline std::unique_ptr<SessionImpl> MakeSession(TestGuest& guest, Strategy strategy,
                                                SessionConfig config = {}) {
  config.strategy = strategy;
  config.guest_ram_bytes = guest.ram_bytes();
  config.dirty_log_base = guest.dirty_log_base();
  auto session = SessionImpl::Create(config, guest.memory());
  if (!session.ok()) return nullptr;
  (*session)->UpdateRegisters({guest.root(), true}).IgnoreError();
  return *std::move(session);
}

}  // namespace viommu

#endif  // VIOMMU_TESTS_IOMMU_CORE_SHADOW_TEST_GUEST_H_
