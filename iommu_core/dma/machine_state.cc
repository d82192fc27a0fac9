// Buffers, policy changes, faults and figures of a GuestMachine.
#include <algorithm>
#include <utility>

#include "iommu_core/base/errors.h"
#include "iommu_core/dma/guest_machine_impl.h"

namespace viommu {

absl::StatusOr<GuestPhys> GuestMachineImpl::AllocateBuffer(uint64_t size_bytes) {
  const uint64_t size = AlignUp(size_bytes, kPageSize);
  if (size == 0) return errors::Invalid("a buffer has at least one byte");
  absl::MutexLock lock(&mu_);
  for (auto it = free_buffers_.begin(); it != free_buffers_.end(); ++it) {
    if (it->second < size) continue;
    const uint64_t first = it->first;
    const uint64_t left = it->second - size;
    free_buffers_.erase(it);
    if (left != 0) free_buffers_[first + size] = left;
    return GuestPhys(first);
  }
  return absl::ResourceExhaustedError("no free guest memory for the buffer (raise --ram_bytes)");
}

void GuestMachineImpl::FreeBuffer(GuestPhys first, uint64_t size_bytes) {
  absl::MutexLock lock(&mu_);
  if (Drained() && unfinished_.empty()) return FreeBufferLocked(first, size_bytes);
  parked_buffers_.emplace_back(first, size_bytes);
}

void GuestMachineImpl::FreeBufferLocked(GuestPhys first, uint64_t size_bytes) {
  uint64_t begin = first.value();
  uint64_t size = AlignUp(size_bytes, kPageSize);
  auto next = free_buffers_.lower_bound(begin);
  if (next != free_buffers_.end() && begin + size == next->first) {
    size += next->second;
    next = free_buffers_.erase(next);
  }
  if (next != free_buffers_.begin()) {
    auto before = std::prev(next);
    if (before->first + before->second == begin) {
      begin = before->first;
      size += before->second;
      free_buffers_.erase(before);
    }
  }
  free_buffers_[begin] = size;
}

bool GuestMachineImpl::Holds(uint32_t id, Iova iova) const {
  absl::MutexLock lock(&mu_);
  const auto found = domains_.find(id);
  return found != domains_.end() && found->second->allocated.contains(iova.value());
}

PolicyDecision GuestMachineImpl::policy() const {
  absl::MutexLock lock(&mu_);
  return policy_;
}

absl::Status GuestMachineImpl::SetPolicy(Policy policy, bool force_lazy) {
  absl::MutexLock lock(&mu_);
  const PolicyDecision next = DecidePolicy(policy, force_lazy, config_.iommu_caching_mode);
  const bool translation_changes =
      (next.effective == Policy::kPassthrough) != (policy_.effective == Policy::kPassthrough);
  if (translation_changes && !domains_.empty()) {
    return absl::FailedPreconditionError(
        "to or from passthrough only while there is no domain: the translation type of a device "
        "cannot change under it");
  }
  if (auto flushed = FlushDeferredLocked(); !flushed.ok()) return flushed.status();
  // Rings of another shape or rule start empty.
  for (auto& [id, domain] : domains_) domain->queue.reset();
  policy_ = next;
  return absl::OkStatus();
}

absl::Status GuestMachineImpl::MakeLazy(uint32_t id) {
  absl::MutexLock lock(&mu_);
  auto found = FindLocked(id);
  if (!found.ok()) return found.status();
  (*found)->made_lazy = true;
  return absl::OkStatus();
}

void GuestMachineImpl::QueueTouch(uint32_t id, Iova iova, bool write) {
  absl::MutexLock lock(&mu_);
  const auto found = domains_.find(id);
  if (found == domains_.end() || found->second->devices.empty()) return;
  const auto& [sid, device] = *found->second->devices.begin();
  units_[device.iommu].driver->QueueTouch({sid, iova, write});
}

std::vector<vtd::FaultRecord> GuestMachineImpl::TakeFaults(bool* overflow) {
  absl::MutexLock lock(&mu_);
  std::vector<vtd::FaultRecord> out;
  *overflow = false;
  for (Unit& unit : units_) {
    VtdUnit& regs = unit.driver->unit();
    const uint32_t base = unit.driver->caps().fault_record_offset();
    const int records = unit.driver->caps().fault_records();
    uint32_t status = regs.Read32(vtd::kFsts);
    if ((status & vtd::fsts::Pfo::kMask) != 0) *overflow = true;
    // dmar_fault: from FRI on, while F is set, clearing each.
    auto index = static_cast<int>(vtd::fsts::Fri::Get(status));
    for (int i = 0; i < records; ++i, index = (index + 1) % records) {
      const uint32_t at = base + 16u * static_cast<uint32_t>(index);
      const uint64_t hi = regs.Read64(at + 8);
      if (!vtd::FaultRecord::F::Get(hi)) break;
      out.push_back({.source_id = SourceId(static_cast<uint16_t>(vtd::FaultRecord::Sid::Get(hi))),
                     .page = Iova(AlignDown(regs.Read64(at), kPageSize)),
                     .reason = static_cast<vtd::FaultReason>(vtd::FaultRecord::Reason::Get(hi)),
                     .read = vtd::FaultRecord::T::Get(hi) != 0});
      regs.Write32(at + 12, uint32_t{1} << 31);
    }
    regs.Write32(vtd::kFsts, static_cast<uint32_t>(vtd::fsts::Pfo::kMask));
  }
  return out;
}

void GuestMachineImpl::RecordFault(uint32_t iommu, const vtd::FaultRecord& record) {
  absl::MutexLock lock(&mu_);
  if (iommu < units_.size()) units_[iommu].driver->unit().RecordFault(record);
}

void GuestMachineImpl::set_descriptor_hook(DescriptorHook hook) {
  absl::MutexLock lock(&mu_);
  hook_ = std::move(hook);
  for (Unit& unit : units_) unit.driver->set_hook(hook_);
}

uint64_t GuestMachineImpl::QueuedEntries() const {
  uint64_t entries = deferred_psi_.size();
  for (const auto& [id, domain] : domains_) {
    if (domain->queue != nullptr) entries += domain->queue->entries();
  }
  return entries;
}

GuestStats GuestMachineImpl::stats() const {
  absl::MutexLock lock(&mu_);
  GuestStats out = stats_;
  const double now = static_cast<double>(clock_.NowNs());
  out.flush_queue_entries = QueuedEntries();
  out.stale_pages = exposure_.stale_pages();
  out.stale_page_seconds = exposure_.page_seconds_at(now);
  out.stale_age_max_seconds = exposure_.age_max_seconds_at(now);
  out.reused_while_stale_pages = exposure_.reused_pages();
  for (const auto& [id, domain] : domains_) {
    uint64_t bytes = domain->iovas->allocated_bytes();
    for (const PageLane& lane : domain->lanes) bytes -= lane.iovas.count() * kPageSize;
    out.iova_allocated_bytes += bytes;
    out.iova_allocated_bytes_max = std::max(out.iova_allocated_bytes_max, bytes);
  }
  out.domains = domains_.size();
  out.devices = domain_of_device_.size();
  return out;
}

void GuestMachineImpl::ResetStats() {
  absl::MutexLock lock(&mu_);
  stats_ = GuestStats{};
  exposure_.ResetTotals();
}

double GuestMachineImpl::last_op_modelled_ns() const {
  absl::MutexLock lock(&mu_);
  return last_op_ns_;
}

}  // namespace viommu
