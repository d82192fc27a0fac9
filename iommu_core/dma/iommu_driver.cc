#include "iommu_core/dma/iommu_driver.h"

#include <utility>

#include "iommu_core/base/errors.h"
#include "iommu_core/pt/psi_cover.h"
#include "iommu_core/vtd/registers.h"

namespace viommu {
namespace {

constexpr uint32_t kQiInUse = 1;
constexpr uint32_t kQiDone = 2;
constexpr uint32_t kDescriptorBytes = 16;
constexpr uint16_t kFirstDomainId = 2;
// Touches that may wait for a doorbell; further ones are not made.
constexpr size_t kMaxTouches = 4096;

VtdUnitOptions OptionsOf(vtd::Capabilities caps, int haw_bits) {
  VtdUnitOptions options;
  options.caps = caps;
  options.haw_bits = haw_bits;
  return options;
}

}  // namespace

absl::StatusOr<std::unique_ptr<IommuDriver>> IommuDriver::Create(
    vtd::Capabilities caps, int haw_bits, PhysicalMemory& memory, FrameAllocator& frames,
    InvalidationSink& sink, DescriptorHook hook) {
  std::unique_ptr<IommuDriver> driver(
      new IommuDriver(caps, haw_bits, memory, frames, sink, std::move(hook)));
  if (absl::Status status = driver->BringUp(); !status.ok()) return status;
  return driver;
}

IommuDriver::IommuDriver(vtd::Capabilities caps, int haw_bits, PhysicalMemory& memory,
                         FrameAllocator& frames, InvalidationSink& sink, DescriptorHook hook)
    : caps_(caps),
      memory_(memory),
      frames_(frames),
      sink_(sink),
      hook_(std::move(hook)),
      backend_(sink),
      unit_(OptionsOf(caps, haw_bits), memory, backend_) {}

absl::Status IommuDriver::BringUp() {
  for (PhysAddr* page : {&ring_, &status_words_, &root_table_}) {
    auto frame = frames_.Allocate();
    if (!frame.ok()) return frame.status();
    *page = *frame;
  }
  // dmar_enable_qi: tail 0, address and size, then QIE.
  unit_.Write64(vtd::kIqt, 0);
  unit_.Write64(vtd::kIqa, ring_.value());
  unit_.Write32(vtd::kGcmd, vtd::gcmd::Qie::kMask);
  // iommu_set_root_entry: RTADDR, SRTP, then global invalidations (no ESRTPS is assumed).
  unit_.Write64(vtd::kRtaddr, root_table_.value());
  unit_.Write32(vtd::kGcmd, vtd::gcmd::Qie::kMask | vtd::gcmd::Srtp::kMask);
  if (absl::Status status = unit_.last_status(); !status.ok()) return status;

  vtd::IotlbInvalidate iotlb = DomainInvalidation(DomainId(0), caps_);
  iotlb.granularity = vtd::Granularity::kGlobal;
  const vtd::RawDescriptor global[] = {vtd::Encode(vtd::ContextCacheInvalidate{}),
                                       vtd::Encode(iotlb)};
  for (const vtd::RawDescriptor& d : global) {
    if (auto done = Submit({&d, 1}, TableClaim::kSettled); !done.ok()) return done.status();
  }
  unit_.Write32(vtd::kGcmd, vtd::gcmd::Qie::kMask | vtd::gcmd::Te::kMask);
  return unit_.last_status();
}

absl::StatusOr<SinkCompletion> IommuDriver::Submit(std::span<const vtd::RawDescriptor> descriptors,
                                                   TableClaim claim) {
  if (descriptors.size() > kMaxBatch) return errors::Invalid("too many descriptors at once");
  if (absl::Status status = Drain(); !status.ok()) return status;

  const uint32_t wait_slot = (tail_ + static_cast<uint32_t>(descriptors.size())) % kQueueEntries;
  const PhysAddr status_word = status_words_ + sizeof(uint32_t) * uint64_t{wait_slot};
  vtd::InvalidationWait wait;
  wait.status_write = true;
  wait.status_data = kQiDone;
  wait.status_address = status_word;
  const vtd::RawDescriptor wait_descriptor = vtd::Encode(wait);

  memory_.Write32(status_word, kQiInUse);
  for (const vtd::RawDescriptor& d : descriptors) Put(d);
  Put(wait_descriptor);
  if (hook_) {
    std::vector<vtd::RawDescriptor> all(descriptors.begin(), descriptors.end());
    all.push_back(wait_descriptor);
    hook_(all);
  }
  backend_.SetNext(std::move(touches_), claim);
  touches_.clear();
  drained_ = false;
  unit_.Write64(vtd::kIqt, uint64_t{tail_} * kDescriptorBytes);

  if ((unit_.Read32(vtd::kFsts) & vtd::fsts::Iqe::kMask) != 0) {
    // qi_check_fault: the bad descriptor is replaced by the wait, the queue goes on.
    const auto iqei = static_cast<uint32_t>(vtd::iqercd::Iqei::Get(unit_.Read64(vtd::kIqercd)));
    const PhysAddr bad = ring_ + unit_.Read64(vtd::kIqh);
    memory_.Write64(bad, wait_descriptor.qw0);
    memory_.Write64(bad + 8, wait_descriptor.qw1);
    unit_.Write32(vtd::kFsts, vtd::fsts::Iqe::kMask);
    drained_ = unit_.last_status().ok();
    return errors::QueueError(iqei);
  }
  if (absl::Status status = unit_.last_status(); !status.ok()) return status;
  drained_ = true;
  std::optional<SinkCompletion> completion = backend_.TakeCompletion();
  if (memory_.Read32(status_word) != kQiDone || !completion) return errors::InvalidationTimeout();
  for (const vtd::FaultRecord& fault : completion->faults) unit_.RecordFault(fault);
  return *std::move(completion);
}

void IommuDriver::Put(const vtd::RawDescriptor& d) {
  const PhysAddr slot = ring_ + uint64_t{tail_} * kDescriptorBytes;
  memory_.Write64(slot, d.qw0);
  memory_.Write64(slot + 8, d.qw1);
  tail_ = (tail_ + 1) % kQueueEntries;
}

absl::Status IommuDriver::Drain() {
  if (drained_) return absl::OkStatus();
  if (absl::Status status = unit_.Resume(); !status.ok()) return status;
  drained_ = true;
  if (auto late = backend_.TakeCompletion()) {
    for (const vtd::FaultRecord& fault : late->faults) unit_.RecordFault(fault);
  }
  return absl::OkStatus();
}

void IommuDriver::QueueTouch(const DeviceTouch& touch) {
  if (touches_.size() < kMaxTouches) touches_.push_back(touch);
}

absl::StatusOr<DomainId> IommuDriver::AllocateDomainId() {
  uint32_t id = kFirstDomainId;
  for (const uint16_t used : domain_ids_) {
    if (used != id) break;
    ++id;
  }
  if (id >= caps_.domain_count()) {
    return errors::LimitReached("domain ids of the unit", caps_.domain_count());
  }
  domain_ids_.insert(static_cast<uint16_t>(id));
  return DomainId(static_cast<uint16_t>(id));
}

absl::Status IommuDriver::AddDevice(SourceId sid, bool device_tlb) {
  return sink_.UpdateDevice(sid, true, device_tlb);
}

absl::Status IommuDriver::RemoveDevice(SourceId sid) {
  return sink_.UpdateDevice(sid, false, false);
}

absl::StatusOr<PhysAddr> IommuDriver::ContextSlot(SourceId sid, bool create) {
  const int bus = vtd::RootIndex(sid);
  auto it = context_tables_.find(bus);
  if (it == context_tables_.end()) {
    if (!create) return errors::UnknownDevice(sid);
    auto frame = frames_.Allocate();
    if (!frame.ok()) return frame.status();
    memory_.Write64(root_table_ + 16u * static_cast<uint64_t>(bus),
                    vtd::RootEntry::Make(*frame).lo);
    it = context_tables_.emplace(bus, *frame).first;
  }
  return it->second + 16u * static_cast<uint64_t>(vtd::ContextIndex(sid));
}

absl::Status IommuDriver::SetContext(SourceId sid, vtd::ContextEntry entry) {
  auto slot = ContextSlot(sid, true);
  if (!slot.ok()) return slot.status();
  // The word that holds Present goes last, so that no walk sees a half-written entry.
  memory_.Write64(*slot + 8, entry.hi);
  memory_.Write64(*slot, entry.lo);
  return absl::OkStatus();
}

absl::Status IommuDriver::ClearContext(SourceId sid) {
  auto slot = ContextSlot(sid, false);
  if (!slot.ok()) return slot.status();
  memory_.Write64(*slot, 0);
  memory_.Write64(*slot + 8, 0);
  return absl::OkStatus();
}

}  // namespace viommu
