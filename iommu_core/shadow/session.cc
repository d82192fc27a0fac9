// A session's life, its devices and its figures.
#include <algorithm>
#include <utility>

#include "iommu_core/base/errors.h"
#include "iommu_core/shadow/session_impl.h"

namespace viommu {
namespace {

// Root table and one context table per bus, beside the second-stage tables.
constexpr uint64_t kPagesOfRootAndContext = 257;

}  // namespace

absl::StatusOr<std::unique_ptr<HypervisorSession>> HypervisorSession::Create(
    SessionConfig config, PhysicalMemory& guest) {
  auto session = SessionImpl::Create(std::move(config), guest);
  if (!session.ok()) return session.status();
  return *std::move(session);
}

absl::StatusOr<std::unique_ptr<SessionImpl>> SessionImpl::Create(SessionConfig config,
                                                                 PhysicalMemory& guest) {
  if (config.host_page_shift != 12 && config.host_page_shift != 21 &&
      config.host_page_shift != 30) {
    return errors::Invalid("host_page_shift is 12, 21 or 30");
  }
  if (config.guest_haw_bits < 32 || config.guest_haw_bits >= HostMap::kHostWidth) {
    return errors::Invalid("guest_haw_bits lies in 32..51");
  }
  if (config.guest_caps.max_guest_width() > 48 || config.guest_caps.SupportsWidth(57)) {
    return errors::Invalid("guest address widths beyond 48 bits are not shadowed");
  }
  auto host_memory = HostMemory::Create(config.max_shadow_table_pages + kPagesOfRootAndContext);
  if (!host_memory.ok()) return host_memory.status();
  auto session = std::unique_ptr<SessionImpl>(
      new SessionImpl(std::move(config), guest, *std::move(host_memory)));
  if (absl::Status status = session->Start(); !status.ok()) return status;
  return session;
}

SessionImpl::SessionImpl(SessionConfig config, PhysicalMemory& guest,
                         std::unique_ptr<HostMemory> host_memory)
    : config_(std::move(config)),
      guest_(guest),
      pulled_(guest.pulled()),
      rules_(config_.guest_caps, config_.guest_haw_bits),
      map_(config_.guest_haw_bits, config_.host_page_shift),
      reference_(pulled_ != nullptr ? pulled_->oracle_view() : guest,
                 {config_.guest_caps, config_.guest_haw_bits}),
      host_memory_(std::move(host_memory)),
      pool_(*host_memory_, config_.max_shadow_table_pages),
      pins_(config_.pin_limit_bytes),
      nodes_{.max_nodes = config_.max_shadow_table_pages} {}

absl::Status SessionImpl::Start() {
  absl::MutexLock lock(&mu_);
  auto unit = PhysicalUnit::Create(*host_memory_, config_.iotlb_entries);
  if (!unit.ok()) return unit.status();
  unit_ = *std::move(unit);
  shadow_context_.emplace(ShadowContext{guest_, pulled_, rules_, map_, pool_, *unit_, pins_,
                                        config_.dma_entry_limit, config_.guest_ram_bytes});
  if (config_.strategy == Strategy::kDirtyLog && config_.dirty_log_base != 0) {
    auto log =
        DirtyLogView::Create(guest_, PhysAddr(config_.dirty_log_base), config_.guest_ram_bytes);
    if (!log.ok()) return log.status();
    dirty_index_ = std::make_unique<DirtyTableIndex>(*log, config_.guest_ram_bytes);
    stats_.dirty_log_active = true;
  }
  if (config_.strategy != Strategy::kNested) return absl::OkStatus();
  auto nested =
      NestedUnit::Create(guest_, config_.guest_ram_bytes, reference_.rules(), config_.iotlb_entries,
                         map_, pool_, pins_, config_.dma_entry_limit);
  if (!nested.ok()) return nested.status();
  nested_ = *std::move(nested);
  ++stats_.cost.dma_maps;
  stats_.cost.pages_pinned += nested_->account().pinned_pages();
  return absl::OkStatus();
}

SessionImpl::~SessionImpl() = default;

absl::Status SessionImpl::AddDevice(SourceId sid, bool has_device_tlb) {
  absl::MutexLock lock(&mu_);
  if (devices_.count(sid) != 0) return absl::AlreadyExistsError("the device is there already");
  if (devices_.size() >= config_.max_devices) {
    return errors::LimitReached("--max_devices", config_.max_devices);
  }
  Device& device =
      *devices_.emplace(sid, std::make_unique<Device>(sid, has_device_tlb)).first->second;
  if (nested_ != nullptr || !registers_.translation_enabled) return absl::OkStatus();
  WorkBudget budget(config_.max_work_per_invalidation, config_.yield);
  SyncCost cost;
  SyncRun run{.cost = cost, .budget = budget};
  Synced synced;
  const PullCounts before = LookAgain();
  Refresh(device, ReadContext(sid, cost), synced, run);
  ChargePulls(before, cost);
  stats_.cost += cost;
  return absl::OkStatus();
}

absl::Status SessionImpl::RemoveDevice(SourceId sid) {
  absl::MutexLock lock(&mu_);
  const auto it = devices_.find(sid);
  if (it == devices_.end()) return errors::UnknownDevice(sid);
  Detach(*it->second, stats_.cost);
  devices_.erase(it);
  return absl::OkStatus();
}

absl::Status SessionImpl::UpdateRegisters(const UnitRegisters& registers) {
  absl::MutexLock lock(&mu_);
  registers_ = registers;
  if (nested_ != nullptr) {
    // The hardware uses the guest's root from now on; nothing cached under the old one may stay.
    if (absl::Status s = nested_->translator().RegistersChanged(registers); !s.ok()) return s;
    ApplyOne({}, vtd::ContextCacheInvalidate{}, TableClaim::kNone, stats_.cost);
    ApplyOne({}, vtd::IotlbInvalidate{}, TableClaim::kNone, stats_.cost);
    for (auto& [sid, device] : devices_) device->tlb.DropAll();
    return absl::OkStatus();
  }
  const PullCounts before = LookAgain();
  RefreshAll(stats_.cost);
  ChargePulls(before, stats_.cost);
  return absl::OkStatus();
}

PullCounts SessionImpl::LookAgain() const {
  if (pulled_ == nullptr) return {};
  pulled_->Refresh();
  return pulled_->counts();
}

void SessionImpl::ChargePulls(const PullCounts& before, SyncCost& cost) const {
  if (pulled_ == nullptr) return;
  const PullCounts now = pulled_->counts();
  cost.remote_pages += now.pages - before.pages;
  cost.remote_bytes += now.bytes - before.bytes;
  cost.remote_round_trips += now.round_trips - before.round_trips;
}

SessionStats SessionImpl::stats() const {
  absl::MutexLock lock(&mu_);
  SessionStats out = stats_;
  out.bookkeeping_bytes = 0;
  for (const auto& shadow : shadows_) {
    out.live_pages += shadow->table().live_pages();
    out.bookkeeping_bytes += shadow->bookkeeping_bytes();
    out.refused_pages += shadow->refused().page_count();
    out.dma_entries_max = std::max(out.dma_entries_max, shadow->account().entries());
  }
  out.pinned_pages = pins_.pages();
  out.pinned_pages_max = pins_.pages_max();
  out.shadow_table_pages = pool_.pages();
  const TranslatorStats& translator =
      nested_ != nullptr ? nested_->translator().stats() : unit_->translator().stats();
  out.iotlb_hits = translator.iotlb_hits;
  out.iotlb_misses = translator.iotlb_misses;
  out.devices = static_cast<uint32_t>(devices_.size());
  out.domains = static_cast<uint32_t>(shadows_.size());
  if (pulled_ != nullptr) {
    out.pulled = pulled_->counts();
    out.oracle_pulled = pulled_->oracle_view().pulled()->counts();
  }
  return out;
}

std::vector<vtd::FaultRecord> SessionImpl::TakeFaults() {
  absl::MutexLock lock(&mu_);
  return std::exchange(faults_, {});
}

void SessionImpl::ObserveStoresForTest(std::function<void()> observer) {
  absl::MutexLock lock(&mu_);
  pool_.store_observer = std::move(observer);
}

void SessionImpl::CorruptShadowForTest(SourceId sid, Iova iova) {
  absl::MutexLock lock(&mu_);
  uint64_t changed = 0;
  devices_.at(sid)->shadow->table().Clear(MakeRange(iova, kPageSize), changed);
}

}  // namespace viommu
