// What is invalidated, when, and what it costs: the policies of the guest.
#include <algorithm>
#include <utility>

#include "iommu_core/base/errors.h"
#include "iommu_core/dma/guest_machine_impl.h"
#include "iommu_core/dma/tick_timer.h"
#include "iommu_core/pt/psi_cover.h"

namespace viommu {
namespace {

// Intel's driver before 4.14: HIGH_WATER_MARK and a 10 ms timer.
constexpr size_t kDeferredPsiEntries = 250;
constexpr uint64_t kDeferredPsiTimeoutMs = 10;
// `lazy-psi-batched`: above this many descriptors one domain flush is sent instead.
constexpr size_t kDomainFlushAbovePieces = 4096;
// `adaptive`: the timer is due before the stale-age bound by what flushes lately took from their
// timer on, and a quarter more; by at least a sixteenth of the bound, by at most half of it.
constexpr double kLatencyReserve = 1.25;
constexpr double kLeastEarly = 1.0 / 16;
constexpr double kFlushShareOfBound = 1.0 / 2;
// How fast a long flush is forgotten, per flush.
constexpr double kLatencyMemory = 0.98;
// MAX_AGAW_PFN_WIDTH: a device-TLB invalidation of everything.
constexpr IovaRange kEverything{Iova(0), Iova(~uint64_t{0})};

std::vector<IovaRange> SortedAndMerged(std::vector<IovaRange> ranges) {
  std::sort(ranges.begin(), ranges.end(),
            [](const IovaRange& a, const IovaRange& b) { return a.first < b.first; });
  std::vector<IovaRange> out;
  for (const IovaRange& r : ranges) {
    if (!out.empty() && r.first <= out.back().end) {
      out.back().end = std::max(out.back().end, r.end);
    } else {
      out.push_back(r);
    }
  }
  return out;
}

}  // namespace

void GuestMachineImpl::BeginOp(uint32_t vcpu) {
  op_vcpu_ = vcpu % static_cast<uint32_t>(vcpu_busy_until_ns_.size());
  op_start_ns_ = static_cast<double>(clock_.NowNs());
  // A vCPU does one thing at a time: what it still owes comes first.
  cursor_ns_ = std::max(op_start_ns_, vcpu_busy_until_ns_[op_vcpu_]);
}

void GuestMachineImpl::SpendGuest(double ns) {
  stats_.modelled.guest_ns += ns;
  cursor_ns_ += ns;
}

void GuestMachineImpl::EndOp() {
  vcpu_busy_until_ns_[op_vcpu_] = cursor_ns_;
  last_op_ns_ = cursor_ns_ - op_start_ns_;
}

double GuestMachineImpl::ExposureNowNs() const {
  return clock_.modelled() ? cursor_ns_ : static_cast<double>(clock_.NowNs());
}

void GuestMachineImpl::CountDescriptors(std::span<const vtd::RawDescriptor> descriptors) {
  for (const vtd::RawDescriptor& raw : descriptors) {
    const vtd::DecodeResult d = vtd::Decode(raw, units_.front().driver->caps());
    if (std::holds_alternative<vtd::ContextCacheInvalidate>(d.descriptor)) {
      ++stats_.descriptors_context;
    } else if (const auto* iotlb = std::get_if<vtd::IotlbInvalidate>(&d.descriptor)) {
      switch (iotlb->granularity) {
        case vtd::Granularity::kGlobal:
          ++stats_.descriptors_iotlb_global;
          break;
        case vtd::Granularity::kDomain:
          ++stats_.descriptors_iotlb_domain;
          break;
        default:
          ++stats_.descriptors_iotlb_page;
      }
    } else {
      ++stats_.descriptors_device_tlb;
    }
  }
}

absl::StatusOr<SinkCompletion> GuestMachineImpl::Submit(
    uint32_t unit_index, std::span<const vtd::RawDescriptor> descriptors, TableClaim claim) {
  Unit& unit = units_[unit_index];
  for (DirtyMarks& marks : marks_) marks.Publish();
  absl::StatusOr<SinkCompletion> done = unit.driver->Submit(descriptors, claim);
  ++stats_.submissions;
  CountDescriptors(descriptors);
  ++stats_.descriptors_wait;
  if (!done.ok()) return done;

  stats_.sync += done->cost;
  stats_.stale_dma_hits += done->stale_dma_hits;
  ModelledCost price = PriceSync(config_.cost_model, done->cost);
  price.guest_ns = config_.cost_model.queue_build_ns;
  // The queue has one lock, held over the trapped tail write; a hand-over costs more the more vCPUs
  // spin for it.
  const double begin = std::max(cursor_ns_, unit.lock_free_ns);
  uint64_t spinning = 0;
  for (size_t cpu = 0; cpu < vcpu_busy_until_ns_.size(); ++cpu) {
    if (cpu != op_vcpu_ && vcpu_busy_until_ns_[cpu] > cursor_ns_) ++spinning;
  }
  price.wait_ns =
      begin - cursor_ns_ + static_cast<double>(spinning) * config_.cost_model.lock_spin_ns;
  cursor_ns_ += price.total();
  unit.lock_free_ns = cursor_ns_;
  stats_.modelled += price;
  return done;
}

vtd::RawDescriptor GuestMachineImpl::RangeDescriptor(const IommuDriver& driver, DomainId did,
                                                     IovaRange range, bool leaf_hint) const {
  const bool linux612 = config_.hint == HintMode::kLinux612;
  vtd::IotlbInvalidate d = InvalidationFor(range, did, leaf_hint && linux612, driver.caps());
  // iommu_flush_iotlb_psi (6.1) leaves the low bits; the unit masks them (6.5.2.3).
  if (!linux612 && d.granularity == vtd::Granularity::kPageOrDevice) d.address = range.first;
  return vtd::Encode(d);
}

vtd::RawDescriptor GuestMachineImpl::DeviceTlbDescriptor(SourceId sid, IovaRange range) {
  vtd::DeviceTlbInvalidate d;
  d.source_id = sid;
  const int mask = range == kEverything ? kAddressMaskAll
                                        : AddressMaskOf(range.first.value() >> kPageShift,
                                                        range.size_bytes() >> kPageShift);
  // qi_flush_dev_iotlb: the run of low ones codes the size (PCIe ATS 10.2.3.2).
  d.size = mask > 0;
  const uint64_t ones = mask > 0 ? ((uint64_t{1} << (kPageShift + mask - 1)) - 1) : 0;
  d.address = Iova((range.first.value() | ones) & ~kPageMask);
  return vtd::Encode(d);
}

TableClaim GuestMachineImpl::ClaimAfter(const DmaDomain* domain) const {
  const uint64_t going = domain == nullptr ? 0 : exposure_.stale_pages_of(domain->id);
  const bool settled = exposure_.stale_pages() == going && unsynced_maps_.empty() && AllCovered();
  return settled ? TableClaim::kSettled : TableClaim::kQuiet;
}

absl::Status GuestMachineImpl::InvalidateDeviceTlbs(DmaDomain& domain, uint32_t unit,
                                                    IovaRange range, TableClaim claim) {
  for (const auto& [sid, device] : domain.devices) {
    if (device.iommu != unit || !device.device_tlb) continue;
    const vtd::RawDescriptor d = DeviceTlbDescriptor(sid, range);
    if (auto done = Submit(unit, {&d, 1}, claim); !done.ok()) return done.status();
  }
  return absl::OkStatus();
}

void GuestMachineImpl::LearnDomainFlushCost(DmaDomain& domain, const SyncCost& cost) const {
  ModelledCost price = PriceSync(config_.cost_model, cost);
  price.guest_ns = config_.cost_model.queue_build_ns;
  domain.chooser.LearnDomain({.table_pages = domain.table->table_pages()}, price);
}

absl::Status GuestMachineImpl::InvalidateRange(DmaDomain& domain, IovaRange range, Change change) {
  const bool map = change == Change::kMapped;
  TableClaim claim = ClaimAfter(nullptr);
  if (change == Change::kReplaced) claim = TableClaim::kQuiet;  // the map itself is yet to come
  // A map that waits in vain is undone in the tables while its invalidation is still on its way;
  // on a clock that is modelled nothing waits in vain.
  if ((map || change == Change::kReplaced) && !clock_.modelled()) claim = TableClaim::kNone;
  for (const auto& [index, tag] : domain.tags) {
    const IommuDriver& driver = *units_[index].driver;
    // Without caching mode nothing not present is ever cached (6.1).
    if (map && !driver.caps().caching_mode()) continue;
    const vtd::RawDescriptor d =
        RangeDescriptor(driver, tag.did, range, change == Change::kLeavesGone);
    if (auto done = Submit(index, {&d, 1}, claim); !done.ok()) return done.status();
    if (map) continue;  // a device-TLB holds nothing that was not present
    if (absl::Status status = InvalidateDeviceTlbs(domain, index, range, claim); !status.ok()) {
      return status;
    }
  }
  exposure_.Revoke(domain.id, range, ExposureNowNs());
  return absl::OkStatus();
}

absl::Status GuestMachineImpl::InvalidateDomain(DmaDomain& domain, FlushChooser::Work flushed) {
  const ModelledCost before = stats_.modelled;
  const TableClaim claim = ClaimAfter(&domain);
  for (const auto& [index, tag] : domain.tags) {
    const IommuDriver& driver = *units_[index].driver;
    const vtd::RawDescriptor d = vtd::Encode(DomainInvalidation(tag.did, driver.caps()));
    auto done = Submit(index, {&d, 1}, claim);
    if (!done.ok()) return done.status();
    if (absl::Status status = InvalidateDeviceTlbs(domain, index, kEverything, claim);
        !status.ok()) {
      return status;
    }
  }
  exposure_.RevokeDomain(domain.id, ExposureNowNs());
  flushed.table_pages = domain.table->table_pages();
  domain.chooser.LearnDomain(flushed, stats_.modelled - before);
  return absl::OkStatus();
}

absl::Status GuestMachineImpl::InvalidateGlobally() {
  for (uint32_t index = 0; index < units_.size(); ++index) {
    vtd::IotlbInvalidate global = DomainInvalidation(DomainId(0), units_[index].driver->caps());
    global.granularity = vtd::Granularity::kGlobal;
    const vtd::RawDescriptor d = vtd::Encode(global);
    if (auto done = Submit(index, {&d, 1}, ClaimAfter(nullptr)); !done.ok()) {
      return done.status();
    }
  }
  for (const auto& [id, domain] : domains_) exposure_.RevokeDomain(id, ExposureNowNs());
  return absl::OkStatus();
}

absl::Status GuestMachineImpl::InvalidatePieces(DmaDomain& domain,
                                                std::span<const IovaRange> pieces) {
  const TableClaim claim = ClaimAfter(&domain);
  for (const auto& [index, tag] : domain.tags) {
    const IommuDriver& driver = *units_[index].driver;
    std::vector<vtd::RawDescriptor> all;
    for (const IovaRange& piece : pieces) {
      all.push_back(RangeDescriptor(driver, tag.did, piece, false));
      for (const auto& [sid, device] : domain.devices) {
        if (device.iommu == index && device.device_tlb) {
          all.push_back(DeviceTlbDescriptor(sid, piece));
        }
      }
    }
    for (size_t at = 0; at < all.size(); at += IommuDriver::kMaxBatch) {
      const size_t count = std::min<size_t>(IommuDriver::kMaxBatch, all.size() - at);
      const bool last = at + count == all.size();
      auto done =
          Submit(index, std::span(all).subspan(at, count), last ? claim : TableClaim::kQuiet);
      if (!done.ok()) return done.status();
    }
  }
  for (const IovaRange& piece : pieces) exposure_.Revoke(domain.id, piece, ExposureNowNs());
  return absl::OkStatus();
}

absl::Status GuestMachineImpl::FlushAdaptively(DmaDomain& domain,
                                               std::span<const IovaRange> pieces) {
  FlushChooser::Work work{.pieces = pieces.size(), .table_pages = domain.table->table_pages()};
  for (const IovaRange& piece : pieces) work.pages += piece.size_bytes() / kPageSize;
  for (const auto& [index, tag] : domain.tags) {
    size_t descriptors = 1;  // a piece
    for (const auto& [sid, device] : domain.devices) {
      if (device.iommu == index && device.device_tlb) ++descriptors;
    }
    work.submissions +=
        (pieces.size() * descriptors + IommuDriver::kMaxBatch - 1) / IommuDriver::kMaxBatch;
  }
  const FlushChooser::Kind kind = domain.chooser.Choose(
      work, absl::ToDoubleNanoseconds(config_.stale_age_bound) * kFlushShareOfBound);
  if (kind == FlushChooser::Kind::kDomain) return InvalidateDomain(domain, work);
  const ModelledCost before = stats_.modelled;
  absl::Status status = InvalidatePieces(domain, pieces);
  if (status.ok()) domain.chooser.LearnPages(work, stats_.modelled - before);
  return status;
}

void GuestMachineImpl::KeepStaleAgeBound(DmaDomain& domain, FlushQueue& queue) const {
  const double bound = absl::ToDoubleNanoseconds(config_.stale_age_bound);
  const double early = std::clamp(domain.flush_latency_ns * kLatencyReserve, bound * kLeastEarly,
                                  bound * kFlushShareOfBound);
  queue.set_deadline_ns(static_cast<uint64_t>(bound - early));
}

absl::Status GuestMachineImpl::FlushQueued(DmaDomain& domain, FlushReason reason) {
  switch (reason) {
    case FlushReason::kFull:
      ++stats_.flushes_full;
      break;
    case FlushReason::kTimeout:
      ++stats_.flushes_timeout;
      break;
    case FlushReason::kSync:
      ++stats_.flushes_sync;
      break;
  }
  const Policy policy = PolicyOf(domain);
  if (policy != Policy::kLazyPsiBatched && policy != Policy::kAdaptive) {
    return InvalidateDomain(domain);
  }
  std::vector<IovaRange> pieces;
  for (const IovaRange& range : SortedAndMerged(domain.queue->UnflushedRanges())) {
    for (const IovaRange& piece :
         ExactPieces(range, units_.front().driver->caps().max_address_mask())) {
      pieces.push_back(piece);
    }
  }
  if (policy == Policy::kAdaptive) return FlushAdaptively(domain, pieces);
  return pieces.size() > kDomainFlushAbovePieces ? InvalidateDomain(domain)
                                                 : InvalidatePieces(domain, pieces);
}

FlushQueue& GuestMachineImpl::QueueOf(DmaDomain& domain) {
  if (domain.queue == nullptr) {
    const FlushQueueShape shape =
        PolicyOf(domain) == Policy::kLazySingle ? kSingleShape : kPerCpuShape;
    domain.queue = std::make_unique<FlushQueue>(
        shape, config_.vcpus, config_.hz,
        [this, &domain](FlushReason reason)
            ABSL_NO_THREAD_SAFETY_ANALYSIS { return FlushQueued(domain, reason); },
        [this, &domain](FlushEntry&& entry, uint32_t cpu) ABSL_NO_THREAD_SAFETY_ANALYSIS {
          ++stats_.flushed_entries;
          Release(domain, std::move(entry), cpu);
        });
    if (PolicyOf(domain) == Policy::kAdaptive) KeepStaleAgeBound(domain, *domain.queue);
  }
  return *domain.queue;
}

absl::Status GuestMachineImpl::Defer(DmaDomain& domain, FlushEntry entry, uint32_t vcpu) {
  if (PolicyOf(domain) != Policy::kLazyPsi) {
    return QueueOf(domain).Add(std::move(entry), vcpu, clock_.NowNs());
  }
  // add_unmap: a full table is flushed first; the timer is armed anew after every flush.
  if (deferred_psi_.size() >= kDeferredPsiEntries) {
    if (absl::Status status = FlushDeferredPsi(FlushReason::kFull); !status.ok()) return status;
  }
  deferred_psi_.push_back({domain.id, std::move(entry)});
  if (!deferred_psi_timer_ns_) {
    deferred_psi_timer_ns_ = TimerFiresAtNs(clock_.NowNs(), kDeferredPsiTimeoutMs, config_.hz);
    deferred_psi_cpu_ = vcpu;
  }
  return absl::OkStatus();
}

absl::Status GuestMachineImpl::FlushDeferredPsi(FlushReason reason) {
  deferred_psi_timer_ns_.reset();
  if (deferred_psi_.empty()) return absl::OkStatus();
  ++(reason == FlushReason::kFull      ? stats_.flushes_full
     : reason == FlushReason::kTimeout ? stats_.flushes_timeout
                                       : stats_.flushes_sync);
  // flush_unmaps: "in caching mode, global flushes turn emulation expensive", so one page-selective
  // descriptor an entry there and one global flush a unit elsewhere.
  const bool caching_mode = std::any_of(
      units_.begin(), units_.end(), [](const Unit& u) { return u.driver->caps().caching_mode(); });
  absl::Status status;
  if (!caching_mode) status = InvalidateGlobally();
  size_t done = 0;
  for (; status.ok() && done < deferred_psi_.size(); ++done) {
    DeferredPsi& deferred = deferred_psi_[done];
    const auto found = domains_.find(deferred.domain);
    if (found == domains_.end()) continue;
    if (caching_mode) {
      status = InvalidateRange(*found->second, deferred.entry.range, ChangeOf(deferred.entry));
      if (!status.ok()) break;
    }
    ++stats_.flushed_entries;
    Release(*found->second, std::move(deferred.entry), deferred_psi_cpu_);
  }
  deferred_psi_.erase(deferred_psi_.begin(), deferred_psi_.begin() + static_cast<ptrdiff_t>(done));
  if (!status.ok()) {
    deferred_psi_timer_ns_ = TimerFiresAtNs(clock_.NowNs(), kDeferredPsiTimeoutMs, config_.hz);
  }
  return status;
}

void GuestMachineImpl::Release(DmaDomain& domain, FlushEntry&& entry, uint32_t vcpu) {
  domain.table->FreeTables(entry.freed_tables);
  if (entry.allocated) FreeIova(domain, entry.range, vcpu);
}

absl::Status GuestMachineImpl::SyncMapsLocked() {
  if (unsynced_maps_.empty()) return absl::OkStatus();
  std::map<uint32_t, std::vector<IovaRange>> by_domain;
  for (const auto& [domain, range] : unsynced_maps_) by_domain[domain].push_back(range);
  // One submission a unit, whatever the domains in it.
  std::map<uint32_t, std::vector<vtd::RawDescriptor>> by_unit;
  std::vector<std::pair<uint32_t, IovaRange>> covered;
  for (auto& [id, ranges] : by_domain) {
    const auto found = domains_.find(id);
    if (found == domains_.end()) continue;
    for (const IovaRange& merged : SortedAndMerged(std::move(ranges))) {
      covered.emplace_back(id, merged);
      for (const auto& [index, tag] : found->second->tags) {
        const IommuDriver& driver = *units_[index].driver;
        if (!driver.caps().caching_mode()) continue;
        for (const IovaRange& piece : ExactPieces(merged, driver.caps().max_address_mask())) {
          by_unit[index].push_back(RangeDescriptor(driver, tag.did, piece, false));
        }
      }
    }
  }
  for (const auto& [index, all] : by_unit) {
    for (size_t at = 0; at < all.size(); at += IommuDriver::kMaxBatch) {
      const size_t count = std::min<size_t>(IommuDriver::kMaxBatch, all.size() - at);
      auto done = Submit(index, std::span(all).subspan(at, count),
                         clock_.modelled() ? TableClaim::kQuiet : TableClaim::kNone);
      if (!done.ok()) return done.status();
    }
  }
  unsynced_maps_.clear();
  for (const auto& [id, range] : covered) exposure_.Revoke(id, range, ExposureNowNs());
  return absl::OkStatus();
}

absl::Status GuestMachineImpl::SyncMaps() {
  absl::MutexLock lock(&mu_);
  BeginOp(op_vcpu_);
  absl::Status status = FinishOutstanding();
  if (status.ok()) status = SyncMapsLocked();
  if (status.ok()) ReleaseCovered();
  EndOp();
  return status;
}

absl::StatusOr<uint64_t> GuestMachineImpl::FlushDeferred() {
  absl::MutexLock lock(&mu_);
  return FlushDeferredLocked();
}

absl::StatusOr<uint64_t> GuestMachineImpl::FlushDeferredLocked() {
  BeginOp(0);
  const uint64_t before = stats_.flushed_entries;
  absl::Status status = FinishOutstanding();
  if (status.ok()) status = SyncMapsLocked();
  for (auto& [id, domain] : domains_) {
    if (!status.ok()) break;
    if (domain->queue != nullptr) status = domain->queue->FlushAll(0);
  }
  if (status.ok()) status = FlushDeferredPsi(FlushReason::kSync);
  if (status.ok()) ReleaseCovered();
  EndOp();
  if (!status.ok()) return status;
  return stats_.flushed_entries - before;
}

std::optional<uint64_t> GuestMachineImpl::NextTimerNs() const {
  absl::MutexLock lock(&mu_);
  if (!Drained() || !AllCovered()) return clock_.NowNs();
  std::optional<uint64_t> next = deferred_psi_timer_ns_;
  for (const auto& [id, domain] : domains_) {
    if (domain->queue == nullptr) continue;
    const std::optional<uint64_t> at = domain->queue->timer_ns();
    if (at && (!next || *at < *next)) next = at;
  }
  return next;
}

absl::Status GuestMachineImpl::RunTimers() {
  absl::MutexLock lock(&mu_);
  const uint64_t now = clock_.NowNs();
  BeginOp(op_vcpu_);
  absl::Status finished = FinishOutstanding();
  EndOp();
  if (!finished.ok()) return finished;
  // A timer that re-arms within this call fires after `now`, so each fires at most once.
  if (deferred_psi_timer_ns_ && *deferred_psi_timer_ns_ <= now) {
    BeginOp(deferred_psi_cpu_);
    absl::Status status = FlushDeferredPsi(FlushReason::kTimeout);
    EndOp();
    if (!status.ok()) return status;
  }
  for (auto& [id, domain] : domains_) {
    if (domain->queue == nullptr) continue;
    const std::optional<uint64_t> at = domain->queue->timer_ns();
    if (!at || *at > now) continue;
    BeginOp(domain->queue->timer_cpu());
    absl::Status status = domain->queue->OnTimer(now);
    if (PolicyOf(*domain) == Policy::kAdaptive) {
      domain->flush_latency_ns = std::max(domain->flush_latency_ns * kLatencyMemory,
                                          ExposureNowNs() - static_cast<double>(*at));
      KeepStaleAgeBound(*domain, *domain->queue);
    }
    EndOp();
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

}  // namespace viommu
