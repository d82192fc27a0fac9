#include "iommu_core/dma/guest_machine.h"

#include <algorithm>
#include <bit>
#include <numeric>
#include <utility>

#include "absl/strings/str_cat.h"
#include "iommu_core/base/errors.h"
#include "iommu_core/dma/guest_machine_impl.h"
#include "iommu_core/pt/psi_cover.h"

namespace viommu {
namespace {

// The first MiB of guest memory is left alone, as a PC's is.
constexpr uint64_t kBuffersFirst = uint64_t{1} << 20;
constexpr uint64_t kMaxSegments = 4096;
constexpr int kOwnWidth = 52;  // of entries that this guest wrote itself

}  // namespace

absl::StatusOr<std::unique_ptr<GuestMachine>> GuestMachine::Create(
    const GuestConfig& config, PhysicalMemory& ram, const Clock& clock,
    const std::vector<InvalidationSink*>& sinks) {
  if (absl::Status status = CheckConfig(config); !status.ok()) return status;
  if (sinks.size() != config.iommu_caching_mode.size()) {
    return errors::Invalid("one sink for each vIOMMU");
  }
  const uint64_t log_bytes = sinks.size() * DirtyLogBytes(config.ram_bytes);
  if (TableRegionBytes(config) + log_bytes + kBuffersFirst >= config.ram_bytes) {
    return errors::Invalid("ram_bytes leaves no room beside the table region");
  }
  auto machine = std::make_unique<GuestMachineImpl>(config, ram, clock);
  if (absl::Status status = machine->BringUp(sinks); !status.ok()) return status;
  return machine;
}

GuestMachineImpl::GuestMachineImpl(const GuestConfig& config, PhysicalMemory& ram,
                                   const Clock& clock)
    : config_(config),
      ram_(ram),
      clock_(clock),
      buffers_first_(GuestPhys(kBuffersFirst)),
      buffers_end_(ToGuestPhys(DirtyLogBase(config, 0))),
      frames_(ram, PhysAddr(config.ram_bytes - TableRegionBytes(config)),
              PhysAddr(config.ram_bytes)),
      policy_(DecidePolicy(config.policy, config.force_lazy, config.iommu_caching_mode)),
      vcpu_busy_until_ns_(config.vcpus, 0) {
  free_buffers_[kBuffersFirst] = buffers_end_ - buffers_first_;
  for (size_t i = 0; i < config.iommu_caching_mode.size(); ++i) {
    auto log = DirtyLogView::Create(ram, DirtyLogBase(config, i), config.ram_bytes);
    if (!log.ok()) return;  // this memory is not shared: nobody could read a log
    dirty_logs_.emplace_back(*log);
  }
  marks_.assign(config.vcpus, DirtyMarks(dirty_logs_));
}

absl::Status GuestMachineImpl::BringUp(const std::vector<InvalidationSink*>& sinks) {
  absl::MutexLock lock(&mu_);
  for (size_t i = 0; i < sinks.size(); ++i) {
    auto driver = IommuDriver::Create(GuestCapabilities(config_, i), config_.address_width, ram_,
                                      frames_, *sinks[i], nullptr);
    if (!driver.ok()) return driver.status();
    (*driver)->set_timeout(config_.invalidation_timeout);
    units_.push_back({*std::move(driver), 0});
  }
  return absl::OkStatus();
}

absl::StatusOr<DmaDomain*> GuestMachineImpl::FindLocked(uint32_t domain) {
  const auto found = domains_.find(domain);
  if (found == domains_.end()) return errors::UnknownDomain(domain);
  return found->second.get();
}

absl::StatusOr<uint32_t> GuestMachineImpl::CreateDomain(int dma_mask_bits) {
  if (dma_mask_bits < 20 || dma_mask_bits > 64) {
    return errors::Invalid("a DMA mask has 20 to 64 bits");
  }
  absl::MutexLock lock(&mu_);
  auto domain = std::make_unique<DmaDomain>();
  domain->id = next_domain_;
  domain->pass_through = policy_.effective == Policy::kPassthrough;
  auto table = SecondStageTable::Create(ram_, frames_, vtd::LevelsOfWidth(config_.address_width),
                                        units_.front().driver->caps());
  if (!table.ok()) return table.status();
  domain->table = *std::move(table);
  if (!dirty_logs_.empty()) {
    domain->table->set_write_hook([this](PhysAddr slot) {
      for (const DirtyLogWriter& log : dirty_logs_) log.Mark(slot);
    });
  }
  domain->iovas =
      std::make_unique<IovaAllocator>(IovaAllocatorOptions{.cpus = config_.vcpus,
                                                           .dma_mask_bits = dma_mask_bits,
                                                           .address_width = config_.address_width});
  for (uint32_t vcpu = 0; vcpu < config_.vcpus; ++vcpu) {
    domain->lanes.emplace_back(*domain->iovas, vcpu, *domain->table,
                               marks_.empty() ? nullptr : &marks_[vcpu]);
  }
  domains_[next_domain_] = std::move(domain);
  return next_domain_++;
}

absl::Status GuestMachineImpl::DeleteDomain(uint32_t id) {
  absl::MutexLock lock(&mu_);
  auto found = FindLocked(id);
  if (!found.ok()) return found.status();
  DmaDomain& domain = **found;
  if (!domain.devices.empty()) {
    return absl::FailedPreconditionError(
        absl::StrCat("domain ", id, " still has ", domain.devices.size(), " devices attached"));
  }
  BeginOp(op_vcpu_);
  // No device can reach it any more: its last detach invalidated it. Queued tables come back with
  // it, IOVAs die with it.
  exposure_.RevokeDomain(id, ExposureNowNs());
  if (domain.queue != nullptr) {
    for (const FlushEntry& entry : domain.queue->TakeAll()) {
      domain.table->FreeTables(entry.freed_tables);
    }
  }
  std::erase_if(deferred_psi_, [&](const DeferredPsi& d) {
    if (d.domain != id) return false;
    domain.table->FreeTables(d.entry.freed_tables);
    return true;
  });
  std::erase_if(unsynced_maps_, [&](const auto& m) { return m.first == id; });
  std::erase_if(unfinished_, [&](const Unfinished& u) {
    if (u.domain != id) return false;
    domain.table->FreeTables(u.entry.freed_tables);
    return true;
  });
  domains_.erase(id);
  return absl::OkStatus();
}

absl::StatusOr<DomainId> GuestMachineImpl::AttachDevice(uint32_t id, SourceId sid, uint32_t iommu,
                                                        bool device_tlb) {
  absl::MutexLock lock(&mu_);
  auto found = FindLocked(id);
  if (!found.ok()) return found.status();
  if (iommu >= units_.size()) {
    return errors::Invalid(absl::StrCat("there is no vIOMMU ", iommu));
  }
  DmaDomain& domain = **found;
  BeginOp(op_vcpu_);
  if (absl::Status status = FinishOutstanding(); !status.ok()) return status;
  if (domain_of_device_.contains(sid)) {
    if (absl::Status status = DetachLocked(sid); !status.ok()) return status;
  }
  IommuDriver& driver = *units_[iommu].driver;
  auto tag = domain.tags.find(iommu);
  if (tag == domain.tags.end()) {
    auto did = driver.AllocateDomainId();
    if (!did.ok()) return did.status();
    tag = domain.tags.emplace(iommu, DomainTag{*did, 0}).first;
  }
  const DomainId did = tag->second.did;
  const auto undo_tag = [&] {
    if (tag->second.device_count == 0) {
      driver.FreeDomainId(did);
      domain.tags.erase(tag);
    }
  };
  if (absl::Status status = driver.AddDevice(sid, device_tlb); !status.ok()) {
    undo_tag();
    return status;
  }
  const vtd::TranslationType type = domain.pass_through ? vtd::TranslationType::kPassThrough
                                    : device_tlb        ? vtd::TranslationType::kWithDeviceTlb
                                                        : vtd::TranslationType::kUntranslatedOnly;
  if (absl::Status status = driver.SetContext(
          sid, vtd::ContextEntry::Make(domain.table->root(), domain.table->levels(), did, type));
      !status.ok()) {
    undo_tag();
    return status;
  }
  ++tag->second.device_count;
  domain.devices[sid] = {iommu, device_tlb};
  domain_of_device_[sid] = id;
  // domain_context_mapping: not present may have been cached, tagged with domain id 0; then the
  // domain's own tag. Without caching mode nothing was cached.
  absl::Status status;
  if (driver.caps().caching_mode()) {
    vtd::ContextCacheInvalidate context;
    context.granularity = vtd::Granularity::kPageOrDevice;
    context.source_id = sid;
    const vtd::RawDescriptor d = vtd::Encode(context);
    status = Submit(iommu, {&d, 1}, TableClaim::kQuiet).status();
    if (status.ok()) {
      const vtd::RawDescriptor flush = vtd::Encode(DomainInvalidation(did, driver.caps()));
      auto done = Submit(iommu, {&flush, 1}, ClaimAfter(&domain));
      status = done.status();
      if (done.ok()) {
        LearnDomainFlushCost(domain, done->cost);
        if (domain.tags.size() == 1) exposure_.RevokeDomain(id, ExposureNowNs());
      }
    }
  }
  if (status.ok()) ReleaseCovered();
  EndOp();
  if (!status.ok()) return status;
  return did;
}

absl::Status GuestMachineImpl::DetachDevice(SourceId sid) {
  absl::MutexLock lock(&mu_);
  BeginOp(op_vcpu_);
  absl::Status status = FinishOutstanding();
  if (status.ok()) status = DetachLocked(sid);
  if (status.ok()) ReleaseCovered();
  EndOp();
  return status;
}

absl::Status GuestMachineImpl::DetachLocked(SourceId sid) {
  const auto home = domain_of_device_.find(sid);
  if (home == domain_of_device_.end()) return errors::UnknownDevice(sid);
  DmaDomain& domain = *domains_.at(home->second);
  const DomainDevice device = domain.devices.at(sid);
  const DomainTag tag = domain.tags.at(device.iommu);
  IommuDriver& driver = *units_[device.iommu].driver;
  // domain_context_clear_one: entry, device-selective context invalidation, domain flush,
  // device-TLB.
  if (absl::Status status = driver.ClearContext(sid); !status.ok()) return status;
  vtd::ContextCacheInvalidate context;
  context.granularity = vtd::Granularity::kPageOrDevice;
  context.domain_id = tag.did;
  context.source_id = sid;
  std::vector<vtd::RawDescriptor> steps = {vtd::Encode(context),
                                           vtd::Encode(DomainInvalidation(tag.did, driver.caps()))};
  if (device.device_tlb) {
    steps.push_back(DeviceTlbDescriptor(sid, {Iova(0), Iova(~uint64_t{0})}));
  }
  for (size_t i = 0; i < steps.size(); ++i) {
    auto done =
        Submit(device.iommu, {&steps[i], 1}, i == 0 ? TableClaim::kQuiet : ClaimAfter(&domain));
    if (!done.ok()) return done.status();
  }
  if (absl::Status status = driver.RemoveDevice(sid); !status.ok()) return status;
  // The domain flush above covered everything the domain left stale on this unit.
  if (domain.tags.size() == 1) exposure_.RevokeDomain(domain.id, ExposureNowNs());
  domain.devices.erase(sid);
  domain_of_device_.erase(home);
  if (--domain.tags[device.iommu].device_count == 0) {
    domain.tags.erase(device.iommu);
    driver.FreeDomainId(tag.did);
  }
  return absl::OkStatus();
}

absl::Status GuestMachineImpl::CheckSegments(std::span<const Segment> segments) const {
  if (segments.empty() || segments.size() > kMaxSegments) {
    return errors::Invalid(absl::StrCat("a list has 1 to ", kMaxSegments, " segments"));
  }
  for (const Segment& s : segments) {
    if (s.size_bytes == 0 || !IsAligned(s.guest_pa.value() | s.size_bytes, kPageSize)) {
      return errors::Invalid("a segment is not whole pages");
    }
    // Tables and their log are the kernel's: a device must never be given them.
    if (s.guest_pa.value() >= buffers_end_.value() || s.size_bytes > buffers_end_ - s.guest_pa) {
      return errors::NotRam(ToPhys(s.guest_pa));
    }
  }
  return absl::OkStatus();
}

absl::Status GuestMachineImpl::MapLocked(DmaDomain& domain, Iova iova,
                                         std::span<const Segment> segments, Access access,
                                         bool allocated) {
  // __domain_mapping sets DMA_FL_PTE_PRESENT, which is the read bit of a second-stage entry: what
  // Linux maps for writing can be read, too (seen in the memory images of real guests).
  access.read = access.read || access.write;
  Iova at = iova;
  std::vector<PhysAddr> replaced;
  absl::Status status;
  for (const Segment& segment : segments) {
    ++stats_.map_updates;
    SpendGuest(config_.cost_model.map_update_ns);
    if (segment.size_bytes == kPageSize &&
        domain.lanes[op_vcpu_].entries.Set(at, ToPhys(segment.guest_pa), access)) {
      at += kPageSize;
      continue;
    }
    auto mapped = domain.table->Map(at, ToPhys(segment.guest_pa), segment.size_bytes, access);
    if (!mapped.ok()) {
      status = mapped.status();
      break;
    }
    at += segment.size_bytes;
    // switch_to_super_page: the tables that a large leaf replaced are flushed on their own.
    replaced.insert(replaced.end(), mapped->replaced_tables.begin(), mapped->replaced_tables.end());
    for (const IovaRange& range : mapped->replaced_ranges) {
      status = InvalidateRange(domain, range, Change::kReplaced);
      if (!status.ok()) break;
    }
    if (!status.ok()) break;
  }
  const IovaRange done{iova, at};
  if (status.ok() && !domain.tags.empty()) {
    if (config_.map_sync == MapSync::kMerged) {
      unsynced_maps_.emplace_back(domain.id, done);
      status =
          unsynced_maps_.size() >= IommuDriver::kMaxBatch ? SyncMapsLocked() : absl::OkStatus();
    } else {
      status = InvalidateRange(domain, done, Change::kMapped);
    }
  }
  if (!status.ok()) {
    // Nothing was told to a device yet. The tables may be cached by now, so they wait for the next
    // invalidation that is known to be done.
    uint64_t size_bytes = 0;
    for (const Segment& segment : segments) size_bytes += segment.size_bytes;
    FlushEntry entry{MakeRange(iova, size_bytes), allocated, std::move(replaced)};
    if (!done.empty()) {
      if (auto undone = domain.table->Unmap(done); undone.ok()) {
        entry.freed_tables.insert(entry.freed_tables.end(), undone->freed_tables.begin(),
                                  undone->freed_tables.end());
      }
    }
    // Who just waited in vain does not wait a second time.
    if (!Drained() || (!done.empty() && !domain.tags.empty() &&
                       !InvalidateRange(domain, done, Change::kTablesGone).ok())) {
      KeepUnfinished(domain.id, std::move(entry));
    } else {
      Release(domain, std::move(entry), op_vcpu_);
    }
    return status;
  }
  domain.table->FreeTables(replaced);
  stats_.pages_mapped += done.size_bytes() / kPageSize;
  for (const Segment& segment : segments) {
    const uint64_t first = segment.guest_pa.value() >> kPageShift;
    for (uint64_t i = 0; i < segment.size_bytes / kPageSize; ++i) exposure_.OnMap(first + i);
  }
  return absl::OkStatus();
}

absl::StatusOr<Iova> GuestMachineImpl::AllocateIova(DmaDomain& domain, uint64_t size_bytes) {
  if (size_bytes == kPageSize) {
    if (const auto iova = domain.lanes[op_vcpu_].iovas.Take()) return *iova;
  }
  auto iova = domain.iovas->Allocate(size_bytes, op_vcpu_);
  if (iova.ok()) return iova;
  // alloc_iova_fast empties every CPU's cache before it gives up; the allocator does that with the
  // magazines, here is what stands before them.
  for (PageLane& lane : domain.lanes) lane.iovas.Empty();
  return domain.iovas->Allocate(size_bytes, op_vcpu_);
}

void GuestMachineImpl::FreeIova(DmaDomain& domain, IovaRange range, uint32_t vcpu) {
  if (range.size_bytes() == kPageSize) {
    domain.lanes[vcpu % domain.lanes.size()].iovas.Free(range.first);
  } else {
    domain.iovas->Free(range.first, range.size_bytes(), vcpu);
  }
}

absl::StatusOr<Iova> GuestMachineImpl::Map(uint32_t id, std::span<const Segment> segments,
                                           Access access, uint32_t vcpu) {
  absl::MutexLock lock(&mu_);
  auto found = FindLocked(id);
  if (!found.ok()) return found.status();
  DmaDomain& domain = **found;
  if (absl::Status status = CheckSegments(segments); !status.ok()) return status;
  BeginOp(vcpu);
  uint64_t size_bytes = 0;
  for (const Segment& s : segments) size_bytes += s.size_bytes;
  if (domain.pass_through) {
    ++stats_.maps;
    stats_.pages_mapped += size_bytes / kPageSize;
    EndOp();
    // Each segment is reached at its own guest-physical address.
    return Iova(segments.front().guest_pa.value());
  }
  absl::StatusOr<Iova> iova = Iova(0);
  absl::Status status = FinishOutstanding();
  if (status.ok()) {
    iova = AllocateIova(domain, size_bytes);
    status = iova.status();
  }
  if (status.ok()) status = MapLocked(domain, *iova, segments, access, /*allocated=*/true);
  if (status.ok()) {
    domain.allocated[iova->value()] = size_bytes;
    ReleaseCovered();
  }
  ++(status.ok() ? stats_.maps : stats_.map_failures);
  EndOp();
  if (!status.ok()) return status;
  return *iova;
}

absl::Status GuestMachineImpl::MapAt(uint32_t id, Iova iova, std::span<const Segment> segments,
                                     Access access, uint32_t vcpu) {
  absl::MutexLock lock(&mu_);
  auto found = FindLocked(id);
  if (!found.ok()) return found.status();
  if (absl::Status status = CheckSegments(segments); !status.ok()) return status;
  BeginOp(vcpu);
  absl::Status status;
  if ((*found)->pass_through) {
    for (const Segment& s : segments) stats_.pages_mapped += s.size_bytes / kPageSize;
  } else {
    status = FinishOutstanding();
    if (status.ok()) status = MapLocked(**found, iova, segments, access, /*allocated=*/false);
    if (status.ok()) ReleaseCovered();
  }
  ++(status.ok() ? stats_.maps : stats_.map_failures);
  EndOp();
  return status;
}

std::vector<uint64_t> GuestMachineImpl::PagesOf(const DmaDomain& domain, IovaRange range) {
  std::vector<uint64_t> pages;
  for (Iova at = range.first; at < range.end;) {
    const SecondStageTable::Entry entry = domain.table->Find(at);
    const uint64_t span = vtd::LevelSize(entry.level);
    const Iova next = Iova(AlignDown(at.value(), span) + span);
    if (entry.pte.present()) {
      const uint64_t first = entry.pte.address(kOwnWidth, entry.level).value() >> kPageShift;
      const uint64_t skip = (at.value() & (span - 1)) >> kPageShift;
      const uint64_t count = (std::min(next, range.end) - at) >> kPageShift;
      const size_t old = pages.size();
      pages.resize(old + count);
      std::iota(pages.begin() + static_cast<ptrdiff_t>(old), pages.end(), first + skip);
    }
    at = next;
  }
  return pages;
}

absl::StatusOr<UnmapOutcome> GuestMachineImpl::UnmapLocked(DmaDomain& domain, IovaRange range,
                                                           uint32_t vcpu) {
  const bool deferred = PolicyOf(domain) != Policy::kStrict && !domain.tags.empty();
  const auto allocated = domain.allocated.find(range.first.value());
  if (allocated != domain.allocated.end() && allocated->second != range.size_bytes()) {
    return errors::Invalid(absl::StrCat("the mapping at this IOVA is ", allocated->second,
                                        " bytes; it is unmapped whole"));
  }
  // What is still unsynced of this very range must reach the hypervisor before it goes again.
  const bool unsynced = std::any_of(
      unsynced_maps_.begin(), unsynced_maps_.end(),
      [&](const auto& map) { return map.first == domain.id && map.second.Overlaps(range); });
  if (unsynced) {
    if (absl::Status status = SyncMapsLocked(); !status.ok()) return status;
  }
  ++stats_.unmap_updates;
  SpendGuest(config_.cost_model.unmap_update_ns);
  std::vector<uint64_t> pages;  // of a deferred unmap
  FlushEntry entry{range, allocated != domain.allocated.end(), {}};
  std::optional<vtd::SecondStagePte> single;
  if (range.size_bytes() == kPageSize) single = domain.lanes[op_vcpu_].entries.Clear(range.first);
  if (single) {
    if (deferred) pages.push_back(single->address(kOwnWidth, 1).value() >> kPageShift);
    ++stats_.pages_unmapped;
  } else {
    if (deferred) pages = PagesOf(domain, range);
    auto unmapped = domain.table->Unmap(range);
    if (!unmapped.ok()) return unmapped.status();
    if (unmapped->unmapped_bytes == 0) return errors::NotMapped(range);
    entry.freed_tables = std::move(unmapped->freed_tables);
    stats_.pages_unmapped += unmapped->unmapped_bytes / kPageSize;
  }
  if (entry.allocated) domain.allocated.erase(allocated);

  if (!deferred) {
    absl::Status status = InvalidateRange(domain, range, ChangeOf(entry));
    if (!status.ok()) {
      // Not complete: the IOVA is not reusable and the tables stay until it is.
      KeepUnfinished(domain.id, std::move(entry));
      return status;
    }
    Release(domain, std::move(entry), op_vcpu_);
    return UnmapOutcome{.deferred = false};
  }
  const double since = ExposureNowNs();
  if (!pages.empty()) exposure_.Add(domain.id, range, std::move(pages), since);
  absl::Status status = Defer(domain, entry, vcpu);
  if (!status.ok()) {
    KeepUnfinished(domain.id, std::move(entry));
    return status;
  }
  return UnmapOutcome{.deferred = true};
}

absl::StatusOr<UnmapOutcome> GuestMachineImpl::Unmap(uint32_t id, Iova iova, uint64_t size_bytes,
                                                     uint32_t vcpu) {
  absl::MutexLock lock(&mu_);
  auto found = FindLocked(id);
  if (!found.ok()) return found.status();
  const IovaRange range = MakeRange(iova, size_bytes);
  if (size_bytes == 0 || !IsAligned(iova.value() | size_bytes, kPageSize) ||
      range.end < range.first) {
    return errors::BadRange(range, "not whole pages");
  }
  BeginOp(vcpu);
  if ((*found)->pass_through) {
    ++stats_.unmaps;
    stats_.pages_unmapped += size_bytes / kPageSize;
    EndOp();
    return UnmapOutcome{};
  }
  absl::Status finished = FinishOutstanding();
  absl::StatusOr<UnmapOutcome> outcome =
      finished.ok() ? UnmapLocked(**found, range, op_vcpu_) : finished;
  if (outcome.ok()) ReleaseCovered();
  ++(outcome.ok() ? stats_.unmaps : stats_.unmap_failures);
  EndOp();
  return outcome;
}

absl::Status GuestMachineImpl::MapResident(uint32_t id, Iova first, uint64_t pages) {
  absl::MutexLock lock(&mu_);
  auto found = FindLocked(id);
  if (!found.ok()) return found.status();
  DmaDomain& domain = **found;
  if (domain.pass_through || pages == 0) return absl::OkStatus();
  if (absl::Status status = FinishOutstanding(); !status.ok()) return status;
  if (absl::Status status = domain.iovas->Reserve(MakeRange(first, pages * kPageSize));
      !status.ok()) {
    return status;
  }
  // Every guest page once, in an order that puts no two neighbours side by side: odd stride over a
  // power of two of pages.
  const uint64_t available = (buffers_end_ - buffers_first_) >> kPageShift;
  const uint64_t slots = std::bit_floor(available);
  const uint64_t stride = ((slots * 5 / 8) | 1) % slots;
  for (uint64_t i = 0; i < pages; ++i) {
    const uint64_t page = (i * stride) & (slots - 1);
    auto mapped =
        domain.table->Map(first + i * kPageSize, ToPhys(buffers_first_ + (page << kPageShift)),
                          kPageSize, kReadWrite);
    if (!mapped.ok()) return mapped.status();
  }
  BeginOp(0);
  const std::vector<double> busy = vcpu_busy_until_ns_;
  std::vector<double> locks;
  for (const Unit& unit : units_) locks.push_back(unit.lock_free_ns);
  absl::Status status = InvalidateDomain(domain);
  EndOp();
  // It was there before the load began: nobody waits for it.
  vcpu_busy_until_ns_ = busy;
  for (size_t i = 0; i < units_.size(); ++i) units_[i].lock_free_ns = locks[i];
  return status;
}

}  // namespace viommu
