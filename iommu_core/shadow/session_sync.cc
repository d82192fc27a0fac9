// What each descriptor makes the hypervisor do.
#include <algorithm>
#include <type_traits>
#include <utility>
#include <variant>

#include "iommu_core/base/errors.h"
#include "iommu_core/shadow/mapping_runs.h"
#include "iommu_core/shadow/session_impl.h"
#include "iommu_core/shadow/walk_shadow.h"
#include "iommu_core/vtd/root_context.h"

namespace viommu {

using vtd::Granularity;

DomainId SessionImpl::MaskDomain(DomainId did) const {
  return DomainId(
      static_cast<uint16_t>(did.value() & BitMask(config_.guest_caps.domain_id_bits() - 1, 0)));
}

// An entry of 16 bytes counts as one entry read, as the contract of `walk` has it.
SessionImpl::GuestContext SessionImpl::ReadContext(SourceId sid, SyncCost& cost) {
  GuestContext none;
  const auto read = [&](PhysAddr entry) -> std::optional<std::pair<uint64_t, uint64_t>> {
    ++cost.table_pages_read;
    ++cost.ptes_read;
    cost.bytes_read += 2 * sizeof(uint64_t);
    const auto lo = guest_.Read64(entry);
    const auto hi = guest_.Read64(entry + sizeof(uint64_t));
    if (!lo || !hi) return std::nullopt;
    return std::make_pair(*lo, *hi);
  };
  const int haw = config_.guest_haw_bits;
  // Absent, unreadable or malformed at either level: the device is blocked (3.4.3, 9.1, 9.3).
  const auto root_words =
      read(registers_.root_table + 16u * static_cast<uint64_t>(vtd::RootIndex(sid)));
  if (!root_words) return none;
  const vtd::RootEntry root{root_words->first, root_words->second};
  if (!root.present() || root.reserved_lo(haw) != 0 || root.reserved_hi() != 0) return none;
  const auto words =
      read(root.context_table(haw) + 16u * static_cast<uint64_t>(vtd::ContextIndex(sid)));
  if (!words) return none;
  const vtd::ContextEntry entry{words->first, words->second};
  if (!entry.present() || entry.reserved_lo(haw) != 0 || entry.reserved_hi() != 0) return none;
  const int width_code = entry.address_width_code();
  if (width_code > 2 || !config_.guest_caps.SupportsWidth(entry.width_bits())) return none;

  GuestContext out;
  out.table.domain_id = MaskDomain(entry.domain_id());
  switch (entry.translation_type()) {
    case vtd::TranslationType::kWithDeviceTlb:
      if (!config_.guest_caps.device_tlb()) return none;
      out.device_tlb = true;
      [[fallthrough]];
    case vtd::TranslationType::kUntranslatedOnly:
      out.table.kind = GuestTable::Kind::kSecondStage;
      out.table.table = entry.second_stage_table(haw);
      out.table.levels = entry.levels();
      out.table.end =
          uint64_t{1} << std::min(entry.width_bits(), config_.guest_caps.max_guest_width());
      return out;
    case vtd::TranslationType::kPassThrough:
      if (!config_.guest_caps.pass_through()) return none;
      out.table.kind = GuestTable::Kind::kPassThrough;
      return out;
    case vtd::TranslationType::kReserved:
      break;
  }
  return none;
}

absl::StatusOr<std::unique_ptr<Shadow>> SessionImpl::MakeShadow(const GuestTable& table,
                                                                DomainId host_domain) {
  if (config_.strategy == Strategy::kWalk || config_.strategy == Strategy::kWalkShared) {
    return WalkShadow::Create(*shadow_context_, table, host_domain);
  }
  return SnapshotShadow::Create(*shadow_context_, table, host_domain, nodes_, dirty_index_.get());
}

Shadow* SessionImpl::FindShadow(const GuestTable& table) const {
  for (const auto& shadow : shadows_) {
    if (shadow->guest_table() == table && !shadow->retired) return shadow.get();
  }
  return nullptr;
}

const Shadow* SessionImpl::OnlyShadowOf(DomainId did) const {
  const Shadow* found = nullptr;
  for (const auto& shadow : shadows_) {
    if (shadow->guest_table().domain_id != did) continue;
    if (found != nullptr) return nullptr;
    found = shadow.get();
  }
  return found;
}

Shadow* SessionImpl::FindOrMakeShadow(Device& device, const GuestTable& table) {
  const bool shared = config_.strategy != Strategy::kWalk;
  if (!shared && device.shadow != nullptr) {
    static_cast<WalkShadow*>(device.shadow)->Retarget(table);
    return device.shadow;
  }
  if (shared) {
    if (Shadow* shadow = FindShadow(table)) return shadow;
  }
  return AddShadow(table);
}

Shadow* SessionImpl::AddShadow(const GuestTable& table) {
  if (shadows_.size() >= config_.max_domains) return nullptr;
  uint16_t number;
  if (!free_host_domains_.empty()) {
    number = free_host_domains_.back();
    free_host_domains_.pop_back();
  } else {
    number = next_host_domain_++;
  }
  auto made = MakeShadow(table, DomainId(number));
  if (!made.ok()) {
    free_host_domains_.push_back(number);
    return nullptr;
  }
  return shadows_.emplace_back(*std::move(made)).get();
}

void SessionImpl::DropUser(Shadow* shadow, Device& device, SyncCost& cost) {
  auto& tlbs = shadow->device_tlbs;
  tlbs.erase(std::remove(tlbs.begin(), tlbs.end(), &device.tlb), tlbs.end());
  device.tlb.DropAll();
  if (--shadow->users == 0) RemoveShadow(shadow, cost);
}

void SessionImpl::RemoveShadow(Shadow* shadow, SyncCost& cost) {
  shadow->Release(cost);
  free_host_domains_.push_back(shadow->host_domain().value());
  shadows_.erase(std::find_if(shadows_.begin(), shadows_.end(),
                              [&](const auto& s) { return s.get() == shadow; }));
}

void SessionImpl::Detach(Device& device, SyncCost& cost) {
  device.guest_table = {};
  device.uses_device_tlb = false;
  device.no_room = false;
  if (device.shadow == nullptr) return;
  unit_->ClearContext(device.sid, cost);
  DropUser(std::exchange(device.shadow, nullptr), device, cost);
}

void SessionImpl::Refresh(Device& device, const GuestContext& context, Synced& synced,
                          SyncRun& run) {
  if (context.table.kind == GuestTable::Kind::kNone) {
    Detach(device, run.cost);
    return;
  }
  Shadow* shadow = FindOrMakeShadow(device, context.table);
  if (shadow == nullptr) {
    // No room for another shadow: blocked, counted, tried again at the next context invalidation.
    Detach(device, run.cost);
    device.no_room = true;
    ++stats_.shadows_refused;
    return;
  }
  // Complete before the device is pointed at it, so that a page which it reaches before and after
  // is never missing.
  if (synced.insert(shadow).second) SyncShadow(*shadow, ShadowTable::kAll, run);
  const bool uses_device_tlb = device.has_device_tlb && context.device_tlb;
  if (!unit_
           ->SetContext(device.sid, shadow->table().root(), ShadowTable::kLevels,
                        shadow->host_domain(), uses_device_tlb, run.cost)
           .ok()) {
    Detach(device, run.cost);
    return;
  }
  device.no_room = false;
  Shadow* const before = std::exchange(device.shadow, shadow);
  if (before != shadow) {
    ++shadow->users;
    if (before != nullptr) DropUser(before, device, run.cost);
  }
  auto& tlbs = shadow->device_tlbs;
  tlbs.erase(std::remove(tlbs.begin(), tlbs.end(), &device.tlb), tlbs.end());
  if (uses_device_tlb) {
    tlbs.push_back(&device.tlb);
  } else {
    device.tlb.DropAll();
  }
  device.guest_table = context.table;
  device.uses_device_tlb = uses_device_tlb;
  // What the old shadow had pinned may be what kept something out of the new one.
  if (before != nullptr && before != shadow && !shadow->refused().empty()) {
    shadow->Sync({}, run);
  }
}

bool SessionImpl::ReplaceShadow(const GuestTable& table, Synced& synced, SyncRun& run) {
  Shadow* const before = FindShadow(table);
  Shadow* const made = AddShadow(table);
  if (made == nullptr) return false;
  SyncShadow(*made, ShadowTable::kAll, run);
  if (!made->refused().empty() || !made->unlooked().empty()) {
    RemoveShadow(made, run.cost);
    return false;
  }
  synced.insert(made);
  before->retired = true;
  return true;
}

void SessionImpl::RefreshMovedFirst(Moves affected, SyncRun& run) {
  Synced synced;
  const auto first_stayer =
      std::stable_partition(affected.begin(), affected.end(),
                            [](const auto& a) { return a.second.table != a.first->guest_table; });
  Moves moved(affected.begin(), first_stayer);
  affected.erase(affected.begin(), first_stayer);
  // A device that leaves a shared shadow goes before that shadow takes up what changed in a table
  // which is no longer the device's: a page that it has before and after must not go in between.
  const auto waits = [&](const auto& move) {
    const Shadow* to = FindShadow(move.second.table);
    return to != nullptr && std::any_of(moved.begin(), moved.end(), [&](const auto& other) {
             return other.first != move.first && other.first->shadow == to;
           });
  };
  while (!moved.empty()) {
    auto next = moved.begin();
    if (config_.strategy != Strategy::kWalk) {
      next = std::find_if_not(moved.begin(), moved.end(), waits);
      if (next == moved.end()) {
        // They wait for each other, having swapped tables: one goes to a shadow of its own.
        next = moved.begin();
        Shadow* const left = FindShadow(next->second.table);
        if (ReplaceShadow(next->second.table, synced, run)) {
          // Who stays with the table comes along.
          for (auto& [sid, device] : devices_) {
            const auto is_device = [&d = device](const auto& m) { return m.first == d.get(); };
            if (device->shadow != left || std::any_of(moved.begin(), moved.end(), is_device)) {
              continue;
            }
            Refresh(*device, {device->guest_table, device->uses_device_tlb}, synced, run);
          }
        }
      }
    }
    const auto [device, context] = *next;
    moved.erase(next);
    Refresh(*device, context, synced, run);
  }
  for (const auto& [device, context] : affected) Refresh(*device, context, synced, run);
}

void SessionImpl::RefreshAll(SyncCost& cost) {
  WorkBudget budget(config_.max_work_per_invalidation, config_.yield);
  SyncRun run{.cost = cost, .budget = budget};
  Moves affected;
  for (auto& [sid, device] : devices_) {
    // With translation off the model blocks a device: see README.md.
    affected.emplace_back(device.get(),
                          registers_.translation_enabled ? ReadContext(sid, cost) : GuestContext{});
  }
  RefreshMovedFirst(std::move(affected), run);
  if (run.work_refused) ++stats_.work_refused;
}

void SessionImpl::SyncShadow(Shadow& shadow, IovaRange range, SyncRun& run) {
  const bool all = range == ShadowTable::kAll;
  if (dirty_index_ != nullptr && all) dirty_index_->Collect();
  // What a vCPU wrote and did not log yet has an invalidation of its own to come.
  const bool demanded = run.quiet || !all || !shadow.goes_by_log();
  const bool verify = demanded && WantsVerify(range);
  if (verify && all && config_.before_long) config_.before_long();
  std::optional<std::vector<LeafMapping>> before;
  if (verify) before = ReferenceRuns(shadow.guest_table(), range);
  shadow.Sync(range, run);
  if (!before) return;
  OracleLooksAgain();
  const auto after = ReferenceRuns(shadow.guest_table(), range);
  if (!after || PullFailed()) return;
  std::vector<IovaRange> excluded = shadow.refused().Within(range);
  const std::vector<IovaRange> unlooked = shadow.unlooked().Within(range);
  excluded.insert(excluded.end(), unlooked.begin(), unlooked.end());
  std::sort(excluded.begin(), excluded.end(),
            [](const IovaRange& a, const IovaRange& b) { return a.first < b.first; });
  const std::vector<LeafMapping> host =
      HostRuns(shadow.table().root(), ShadowTable::kLevels, range);
  RunComparison compared = CompareRuns(range, host, *after, *before, excluded);
  if (compared.differing_pages != 0 && pulled_ != nullptr) {
    // What an earlier descriptor of the same doorbell copied may be older than `before`: what the
    // guest changed since then has an invalidation of its own to come.
    const auto copied = RunsOf(Walker(guest_, reference_.rules()), shadow.guest_table(), range);
    if (!copied || PullFailed()) return;
    compared = CompareRuns(range, host, *after, *copied, excluded);
  }
  run.cost.shadow_mismatches += compared.differing_pages;
  run.cost.verified_pages += compared.compared_pages;
}

// 6.5.2.3: address bits above MGAW are ignored, and so are the low AM page bits.
IovaRange SessionImpl::RangeOf(const vtd::IotlbInvalidate& d) const {
  if (d.granularity != Granularity::kPageOrDevice) return ShadowTable::kAll;
  vtd::IotlbInvalidate masked = d;
  masked.address = Iova(d.address.value() & BitMask(config_.guest_caps.max_guest_width() - 1, 0));
  return masked.range();
}

void SessionImpl::Invalidate(const vtd::IotlbInvalidate& d, SyncRun& run) {
  ++stats_.invalidations[static_cast<size_t>(d.granularity)];
  run.leaf_hint = d.leaf_hint;
  const DomainId did = MaskDomain(d.domain_id);
  const IovaRange range = RangeOf(d);
  const auto matches = [&](DomainId other) {
    return d.granularity == Granularity::kGlobal || other == did;
  };
  if (config_.strategy != Strategy::kWalk) {
    for (const auto& shadow : shadows_) {
      if (matches(shadow->guest_table().domain_id)) SyncShadow(*shadow, range, run);
    }
    return;
  }
  // QEMU vtd_iotlb_page_invalidate_notify: every device's context entry is read to find its domain.
  Synced synced;
  for (auto& [sid, device] : devices_) {
    const GuestContext context =
        registers_.translation_enabled ? ReadContext(sid, run.cost) : GuestContext{};
    if (context.table != device->guest_table || device->shadow == nullptr) {
      // Changed without a context-cache invalidation: taken up now rather than mixed with the old.
      Refresh(*device, context, synced, run);
    } else if (matches(context.table.domain_id)) {
      SyncShadow(*device->shadow, range, run);
    }
  }
}

void SessionImpl::Invalidate(const vtd::ContextCacheInvalidate& d, SyncRun& run) {
  if (!registers_.translation_enabled) return;
  const DomainId did = MaskDomain(d.domain_id);
  // FM masks the low function bits (6.5.2.1); the domain id of a device-selective one is not
  // needed.
  const auto function_mask = static_cast<uint16_t>(~((1u << d.function_mask) - 1));
  Moves affected;
  for (auto& [sid, device] : devices_) {
    if (d.granularity == Granularity::kPageOrDevice &&
        (sid.value() & function_mask) != (d.source_id.value() & function_mask)) {
      continue;
    }
    const GuestContext context = ReadContext(sid, run.cost);
    if (d.granularity == Granularity::kDomain) {
      // Under CM an absent context entry is cached under domain 0 (6.1).
      const bool was = device->guest_table.kind == GuestTable::Kind::kNone
                           ? did == DomainId(0)
                           : device->guest_table.domain_id == did;
      const bool is =
          context.table.kind != GuestTable::Kind::kNone && context.table.domain_id == did;
      if (!was && !is) continue;
    }
    affected.emplace_back(device.get(), context);
  }
  RefreshMovedFirst(std::move(affected), run);
}

void SessionImpl::Invalidate(const vtd::DeviceTlbInvalidate& d, SyncRun& run) {
  const auto it = devices_.find(d.source_id);
  if (it == devices_.end() || !it->second->has_device_tlb) return;
  it->second->tlb.Drop(d.range());
  ++run.cost.iotlb_invalidations;
}

}  // namespace viommu
