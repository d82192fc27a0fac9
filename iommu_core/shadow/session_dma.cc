// Device accesses through the physical unit.
#include <algorithm>

#include "iommu_core/shadow/session_impl.h"

namespace viommu {

using vtd::FaultReason;

namespace {

bool Permits(Access granted, Access wanted) {
  return (granted.read || !wanted.read) && (granted.write || !wanted.write);
}

}  // namespace

SessionImpl::Reach SessionImpl::ReachLocked(Device* device, SourceId sid, Iova iova,
                                            Access wanted) const {
  Reach out;
  if (device == nullptr) {
    out.reason = FaultReason::kContextNotPresent;  // the host gave this requester no context
    return out;
  }
  const uint64_t offset = iova.value() & kPageMask;
  // A device with a TLB of its own sends what it holds as a translated request.
  const bool ats = device->has_device_tlb && (nested_ != nullptr || device->uses_device_tlb);
  if (ats) {
    const auto held = device->tlb.Find(iova);
    if (held && Permits(held->access, wanted)) {
      out.host = ToHostPhys(held->host_page + offset);
      out.guest = map_.ToGuest(out.host);
      return out;
    }
  }
  if (nested_ != nullptr && !registers_.translation_enabled) {
    out.reason = FaultReason::kContextNotPresent;
    return out;
  }
  Translator& translator = nested_ != nullptr ? nested_->translator() : unit_->translator();
  const TranslateOutcome found = translator.Translate(sid, iova, wanted);
  out.reason = found.reason;
  out.interrupt = found.interrupt_request;
  if (out.reason != FaultReason::kNone || out.interrupt) return out;
  if (nested_ != nullptr) {
    const auto page = nested_->second().Lookup(Iova(found.address.value()));
    if (!page) {
      out.reason = wanted.write ? FaultReason::kWriteDenied : FaultReason::kReadDenied;
      return out;
    }
    out.host = page->host + offset;
  } else {
    out.host = ToHostPhys(found.address);
  }
  out.guest = map_.ToGuest(out.host);
  if (ats) {
    // 4.2.1: the translation request that came before the access it is for.
    const TranslateOutcome request =
        translator.Translate(sid, iova, wanted, RequestKind::kTranslationRequest);
    if (request.reason == FaultReason::kNone && Permits(request.access, wanted)) {
      device->tlb.Insert(iova, {ToPhys(out.host) - offset, request.access});
    }
  }
  return out;
}

void SessionImpl::RecordFault(SourceId sid, Iova iova, bool write, FaultReason physical) {
  // What the guest's own unit would report of this access, for it is the guest that reads it.
  const Translation guest =
      reference_.Translate(registers_.root_table, sid, iova, write ? kWriteOnly : kReadOnly);
  if (PullFailed()) return;
  const FaultReason reason = guest.reason != FaultReason::kNone ? guest.reason : physical;
  ++stats_.faults[static_cast<size_t>(reason) % std::size(stats_.faults)];
  if (guest.fault_processing_disabled && vtd::QualifiedByFpd(reason)) return;
  if (faults_.size() >= config_.max_faults_retained) {
    ++stats_.faults_dropped;
    return;
  }
  faults_.push_back({sid, Iova(AlignDown(iova.value(), kPageSize)), reason, !write});
}

DmaResult SessionImpl::DmaLocked(SourceId sid, Iova iova, bool write, std::span<std::byte> data,
                                 uint64_t size_bytes, bool probe) {
  DmaResult out;
  const auto found = devices_.find(sid);
  Device* device = found == devices_.end() ? nullptr : found->second.get();
  const Access wanted = write ? kWriteOnly : kReadOnly;
  while (size_bytes != 0) {
    const uint64_t chunk = std::min(size_bytes, kPageSize - (iova.value() & kPageMask));
    const Reach reach = ReachLocked(device, sid, iova, wanted);
    if (reach.reason != FaultReason::kNone) {
      out.reason = reach.reason;
      if (!probe) RecordFault(sid, iova, write, reach.reason);
      return out;
    }
    if (!reach.interrupt) {
      const Translation now = reference_.Translate(registers_.root_table, sid, iova, wanted);
      if (PullFailed()) return out;
      if (now.reason != FaultReason::kNone || now.address != ToPhys(reach.guest)) {
        out.stale = true;
        ++stats_.stale_dma_hits;
      }
      if (!data.empty()) {
        const PhysAddr at = ToPhys(reach.guest);
        const bool moved = write ? guest_.WriteBytes(at, data.first(chunk))
                                 : guest_.ReadBytes(at, data.first(chunk));
        if (!moved)
          return out;  // no memory there: nobody answers on the bus, no fault of the IOMMU
        out.bytes_moved += chunk;
        data = data.subspan(chunk);
      }
    } else if (!data.empty()) {
      data = data.subspan(chunk);
    }
    size_bytes -= chunk;
    iova += chunk;
  }
  return out;
}

DmaResult SessionImpl::Dma(SourceId sid, Iova iova, bool write, std::span<std::byte> data,
                           bool probe) {
  absl::MutexLock lock(&mu_);
  LookAgain();
  const uint64_t size_bytes = data.empty() && probe ? 1 : data.size();
  return DmaLocked(sid, iova, write, data, size_bytes, probe);
}

absl::StatusOr<DeviceTranslation> SessionImpl::Translate(SourceId sid, Iova iova,
                                                         Access access) const {
  absl::MutexLock lock(&mu_);
  LookAgain();
  const auto found = devices_.find(sid);
  Device* device = found == devices_.end() ? nullptr : found->second.get();
  const Reach reach = ReachLocked(device, sid, iova, access);
  return DeviceTranslation{reach.reason, reach.host, reach.guest};
}

}  // namespace viommu
