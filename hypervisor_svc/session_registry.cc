#include "hypervisor_svc/session_registry.h"

#include <spdlog/spdlog.h>

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "iommu_core/base/errors.h"
#include "svc_common/conversions.h"
#include "svc_common/random_id.h"

namespace viommu {
namespace {

// How often broken sessions are looked at; a session is released at most this long after its time.
constexpr std::chrono::milliseconds kReapInterval{20};
constexpr size_t kMaxIdLength = 64;

}  // namespace

void AddStats(const SessionStats& from, SessionStats& to) {
  to.cost += from.cost;
  to.live_pages += from.live_pages;
  to.pinned_pages += from.pinned_pages;
  to.pinned_pages_max = std::max(to.pinned_pages_max, from.pinned_pages_max);
  to.shadow_table_pages += from.shadow_table_pages;
  to.bookkeeping_bytes += from.bookkeeping_bytes;
  to.refused_pages += from.refused_pages;
  to.dma_entries_max = std::max(to.dma_entries_max, from.dma_entries_max);
  to.iotlb_hits += from.iotlb_hits;
  to.iotlb_misses += from.iotlb_misses;
  for (PullCounts SessionStats::*counts : {&SessionStats::pulled, &SessionStats::oracle_pulled}) {
    (to.*counts).pages += (from.*counts).pages;
    (to.*counts).bytes += (from.*counts).bytes;
    (to.*counts).round_trips += (from.*counts).round_trips;
  }
  to.stale_dma_hits += from.stale_dma_hits;
  for (size_t i = 0; i < std::size(to.faults); ++i) to.faults[i] += from.faults[i];
  to.faults_dropped += from.faults_dropped;
  to.work_refused += from.work_refused;
  to.shadows_refused += from.shadows_refused;
  for (size_t i = 0; i < std::size(to.invalidations); ++i) {
    to.invalidations[i] += from.invalidations[i];
  }
  to.devices += from.devices;
  to.domains += from.domains;
}

SessionRegistry::SessionRegistry(const HypervisorOptions& options, CoreFactory factory)
    : options_(options),
      factory_(std::move(factory)),
      instance_id_(RandomId()),
      reaper_([this] { ReapUntilStopped(); }) {}

SessionRegistry::~SessionRegistry() {
  reaper_stop_.Stop();
  reaper_.join();
  for (const std::shared_ptr<GuestSession>& session : ListAll()) Close(session);
}

absl::StatusOr<std::shared_ptr<GuestSession>> SessionRegistry::Make(const v1::OpenSession& open,
                                                                    const std::string& identity) {
  SessionConfig config = options_.session;
  config.guest_caps = {open.guest_cap(), open.guest_ecap()};
  config.guest_haw_bits = static_cast<int>(open.guest_haw_bits());
  config.guest_ram_bytes = open.guest_ram_bytes();
  config.dirty_log_base = open.dirty_log_base();
  if (open.guest_haw_bits() != 39 && open.guest_haw_bits() != 48) {
    return absl::InvalidArgumentError("guest_haw_bits is 39 or 48");
  }
  if (!open.strategy().empty()) {
    const absl::StatusOr<Strategy> strategy = ParseStrategy(open.strategy());
    if (!strategy.ok()) return strategy.status();
    config.strategy = *strategy;
  }
  if (!open.verify().empty()) {
    const absl::StatusOr<Verify> verify = ParseVerify(open.verify());
    if (!verify.ok()) return verify.status();
    if (static_cast<int>(*verify) > static_cast<int>(options_.session.verify)) {
      return WithReason(
          absl::PermissionDeniedError(absl::StrCat("verify=", open.verify(),
                                                   " is more than this hypervisor allows (start "
                                                   "hypervisor_svc with --verify=",
                                                   open.verify(), ")")),
          "VERIFY_NOT_ALLOWED");
    }
    config.verify = *verify;
  }
  if (open.guest_ram_bytes() == 0 || !IsAligned(open.guest_ram_bytes(), kPageSize)) {
    return absl::InvalidArgumentError("guest_ram_bytes is a positive multiple of 4096");
  }
  if (open.guest_ram_bytes() > options_.max_guest_ram_bytes) {
    return errors::LimitReached("--max_guest_ram_bytes", options_.max_guest_ram_bytes);
  }
  std::shared_ptr<RemoteGuest> remote;
  const absl::StatusOr<std::shared_ptr<PhysicalMemory>> memory =
      open.memory_kind() == v1::GUEST_MEMORY_KIND_REMOTE ? Remote(open, config, remote)
                                                         : Shared(open);
  if (!memory.ok()) return memory.status();

  {
    absl::MutexLock lock(&mu_);
    if (sessions_.size() + being_made_ >= options_.max_sessions) {
      return errors::LimitReached("--max_sessions", options_.max_sessions);
    }
    ++being_made_;
  }
  absl::StatusOr<std::unique_ptr<HypervisorSession>> core = factory_(config, **memory);
  if (!core.ok()) {
    absl::MutexLock lock(&mu_);
    --being_made_;
    return core.status();
  }
  SessionInfo info;
  info.id = RandomId();
  info.guest_instance_id = open.guest_instance_id();
  info.peer_identity = identity;
  info.strategy = config.strategy;
  info.guest_ram_bytes = open.guest_ram_bytes();
  info.memory_kind = open.memory_kind();
  info.max_outstanding_batches = options_.max_outstanding_batches;
  info.max_batch_descriptors = options_.max_batch_descriptors;
  info.max_faults_retained = options_.session.max_faults_retained;
  auto session = std::make_shared<GuestSession>(std::move(info), *memory, std::move(remote),
                                                *std::move(core), counters_);
  absl::MutexLock lock(&mu_);
  --being_made_;
  sessions_.push_back(session);
  return session;
}

absl::StatusOr<std::shared_ptr<PhysicalMemory>> SessionRegistry::Shared(
    const v1::OpenSession& open) {
  if (open.memory_kind() != v1::GUEST_MEMORY_KIND_SHARED) {
    return absl::InvalidArgumentError("memory_kind is GUEST_MEMORY_KIND_SHARED or _REMOTE");
  }
  MemoryBroker* const broker = memory_.load();
  if (broker == nullptr) return absl::UnavailableError("the hypervisor is starting");
  std::shared_ptr<SharedMemory> memory = broker->Find(open.memory_token());
  if (memory == nullptr) {
    return WithReason(absl::FailedPreconditionError(absl::StrCat(
                          "no region has this memory token; ask ", broker->path(), " for one")),
                      "UNKNOWN_MEMORY");
  }
  if (memory->size_bytes() != open.guest_ram_bytes()) {
    return absl::InvalidArgumentError(absl::StrCat("guest_ram_bytes is ", open.guest_ram_bytes(),
                                                   " but the region has ", memory->size_bytes()));
  }
  return memory;
}

absl::StatusOr<std::shared_ptr<PhysicalMemory>> SessionRegistry::Remote(
    const v1::OpenSession& open, const SessionConfig& config,
    std::shared_ptr<RemoteGuest>& remote) {
  if (config.strategy == Strategy::kDirtyLog) {
    return WithReason(
        absl::FailedPreconditionError(
            "strategy dirty-log goes by a log in memory that guest and hypervisor share; use "
            "snapshot for a guest with --memory=remote"),
        "DIRTY_LOG_NOT_SHARED");
  }
  RemoteMemory::Limits limits;
  limits.pages_per_refresh = options_.max_remote_pages_per_invalidation;
  remote = std::make_shared<RemoteGuest>();
  remote->pages = std::make_shared<GuestPages>(
      std::chrono::milliseconds(options_.remote_page_timeout_ms), counters_);
  auto memory = RemoteMemory::Create(open.guest_ram_bytes(), *remote->pages, limits);
  if (!memory.ok()) return memory.status();
  remote->memory = *std::move(memory);
  return std::shared_ptr<PhysicalMemory>(remote, remote->memory.get());
}

absl::StatusOr<std::shared_ptr<GuestSession>> SessionRegistry::Open(
    const v1::OpenSession& open, const std::string& identity, std::shared_ptr<StreamHandle> stream,
    std::vector<v1::InvalidateResponse>& out) {
  if (open.guest_instance_id().empty() || open.guest_instance_id().size() > kMaxIdLength) {
    return absl::InvalidArgumentError("guest_instance_id has 1 to 64 characters");
  }
  if (open.stream_epoch() == 0) return absl::InvalidArgumentError("stream epochs start at 1");
  std::shared_ptr<GuestSession> session;
  if (!open.session_id().empty()) {
    const absl::StatusOr<std::shared_ptr<GuestSession>> found = Find(open.session_id(), identity);
    if (found.ok()) {
      session = *found;
      if (session->info().guest_instance_id != open.guest_instance_id()) {
        return WithReason(absl::PermissionDeniedError("the session belongs to another guest"),
                          "FOREIGN_SESSION");
      }
    }
  }
  const bool made = session == nullptr;
  if (made) {
    absl::StatusOr<std::shared_ptr<GuestSession>> fresh = Make(open, identity);
    if (!fresh.ok()) return fresh.status();
    session = *std::move(fresh);
  }
  std::vector<v1::InvalidateResponse> first(1);
  const absl::Status attached = session->Attach(
      open, std::move(stream), /*replaces_unknown=*/made && !open.session_id().empty(), first);
  if (!attached.ok()) return attached;
  v1::SessionOpened* opened = first.front().mutable_opened();
  opened->set_session_id(session->info().id);
  opened->set_hypervisor_instance_id(instance_id_);
  opened->set_resume_sequence(session->progress().completed_sequence + 1);
  opened->set_strategy(std::string(StrategyName(session->info().strategy)));
  for (const v1::InvalidateResponse& next : first) {
    if (next.has_reset_required()) opened->set_reset_follows(true);
  }
  v1::SessionLimits* limits = opened->mutable_limits();
  limits->set_max_outstanding_batches(options_.max_outstanding_batches);
  limits->set_max_batch_descriptors(options_.max_batch_descriptors);
  limits->set_max_devices(options_.session.max_devices);
  limits->set_max_domains(options_.session.max_domains);
  limits->set_time_to_live_ms(options_.session_ttl_ms);
  out.insert(out.end(), std::make_move_iterator(first.begin()),
             std::make_move_iterator(first.end()));
  return session;
}

void SessionRegistry::Close(const std::shared_ptr<GuestSession>& session) {
  {
    absl::MutexLock lock(&mu_);
    const auto found = std::find(sessions_.begin(), sessions_.end(), session);
    if (found == sessions_.end()) return;
    sessions_.erase(found);
  }
  SessionStats last = session->End();
  last.live_pages = last.pinned_pages = last.shadow_table_pages = last.bookkeeping_bytes = 0;
  last.refused_pages = last.dma_entries_max = 0;
  last.devices = last.domains = 0;
  absl::MutexLock lock(&mu_);
  AddStats(last, retired_.stats);
  retired_.batches += session->progress().batches;
  retired_.slices += session->work().slices.load(std::memory_order_relaxed);
  retired_.turns_waited += session->work().turns_waited.load(std::memory_order_relaxed);
}

absl::StatusOr<std::shared_ptr<GuestSession>> SessionRegistry::Find(const std::string& id,
                                                                    const std::string& identity) {
  absl::MutexLock lock(&mu_);
  for (const std::shared_ptr<GuestSession>& session : sessions_) {
    if (session->info().id == id && session->info().peer_identity == identity) return session;
  }
  return WithReason(
      absl::NotFoundError(absl::StrCat("no session '", id.substr(0, kMaxIdLength),
                                       "' here (it ended, or the hypervisor was restarted)")),
      "UNKNOWN_SESSION");
}

std::vector<std::shared_ptr<GuestSession>> SessionRegistry::List(const std::string& identity) {
  std::vector<std::shared_ptr<GuestSession>> out = ListAll();
  std::erase_if(out, [&](const auto& s) { return s->info().peer_identity != identity; });
  return out;
}

std::vector<std::shared_ptr<GuestSession>> SessionRegistry::ListAll() {
  absl::MutexLock lock(&mu_);
  return sessions_;
}

uint64_t SessionRegistry::memory_requests_refused() const {
  const MemoryBroker* const broker = memory_.load();
  return broker == nullptr ? 0 : broker->refused();
}

SessionRegistry::Retired SessionRegistry::retired() {
  absl::MutexLock lock(&mu_);
  return retired_;
}

void SessionRegistry::ReapUntilStopped() {
  const auto ttl = std::chrono::milliseconds(options_.session_ttl_ms);
  while (!reaper_stop_.WaitFor(kReapInterval)) {
    for (const std::shared_ptr<GuestSession>& session : ListAll()) {
      const SteadyTime since = session->progress().disconnected_at;
      if (since == SteadyTime::max() || std::chrono::steady_clock::now() - since < ttl) continue;
      // Its last walk ends first; other sessions need not wait for that.
      if (session->work().BusyWallNs() != 0) continue;
      spdlog::warn(
          "session {}: its guest did not come back within {} ms; devices blocked, memory "
          "released",
          session->info().id, options_.session_ttl_ms);
      Close(session);
    }
  }
}

}  // namespace viommu
