#include "iommu_core/load/runner.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"

namespace viommu {
namespace {

constexpr uint64_t kProgressEvery = 1024;
// A list longer than this is no scatter-gather list but a source that never ends one.
constexpr size_t kMaxListSegments = 4096;
constexpr int kDmaMaskBits = 64;
// How long a driver goes on mapping before it rings its device's doorbell.
constexpr uint64_t kMapBurstNs = 12'000;

// The errors after which nothing that follows can work.
bool EndsRun(const absl::Status& status) {
  return absl::IsUnavailable(status) || absl::IsDeadlineExceeded(status);
}

// A scatter-gather list of which some lines have come.
struct OpenList {
  std::vector<Segment> segments;
  Iova first;
};

class Run {
 public:
  Run(LoadSource& source, GuestMachine& machine, VirtualClock& clock, const RunOptions& options)
      : source_(source),
        machine_(machine),
        clock_(clock),
        options_(options),
        vcpu_ready_ns_(source.vcpus(), 0),
        lists_(source.vcpus()),
        gathered_unmaps_(source.vcpus()) {}

  absl::StatusOr<RunResult> Execute() {
    machine_.ResetStats();
    const auto wall_start = std::chrono::steady_clock::now();
    uint64_t done = 0;
    std::optional<uint64_t> first_ns;
    uint64_t end_ns = 0;
    while (std::optional<LoadOp> op = source_.Next(vcpu_ready_ns_)) {
      if (op->cpu >= vcpu_ready_ns_.size()) {
        return absl::InternalError("the load names a CPU that it does not have");
      }
      if (absl::Status s = AdvanceTo(op->time_ns); !s.ok()) return s;
      if (!first_ns) first_ns = clock_.NowNs();
      absl::Status status = Dispatch(*op);
      if (EndsRun(status)) return status;
      if (!resident_.ok()) return resident_;
      if (!status.ok()) ++result_.failed_ops;
      end_ns = std::max({end_ns, clock_.NowNs(), vcpu_ready_ns_[op->cpu]});
      if (++done % kProgressEvery == 0) {
        if (options_.cancelled && options_.cancelled()) return absl::CancelledError("cancelled");
        if (options_.progress) options_.progress(done, source_.total_ops());
      }
    }
    // Timers that fall due while the last operation still runs belong to the run.
    if (absl::Status s = AdvanceTo(end_ns); !s.ok()) return s;
    if (absl::Status s = machine_.SyncMaps(); EndsRun(s)) return s;
    if (options_.progress) options_.progress(done, source_.total_ops());
    result_.wall_seconds =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - wall_start).count() -
        resident_wall_seconds_;
    result_.virtual_seconds = first_ns ? 1e-9 * static_cast<double>(end_ns - *first_ns) : 0;
    return Total();
  }

 private:
  // Moves the clock to `time_ns`, running the timers on the way each at its own moment.
  absl::Status AdvanceTo(uint64_t time_ns) {
    for (;;) {
      const std::optional<uint64_t> timer = machine_.NextTimerNs();
      // A driver maps a burst and then tells its device about it: merged map-time invalidations
      // wait for the burst's end and no longer.
      if (maps_open_since_ns_ && *maps_open_since_ns_ + kMapBurstNs <= time_ns &&
          (!timer || *maps_open_since_ns_ + kMapBurstNs <= *timer)) {
        clock_.AdvanceTo(*maps_open_since_ns_ + kMapBurstNs);
        maps_open_since_ns_.reset();
        absl::Status synced = machine_.SyncMaps();
        if (EndsRun(synced)) return synced;
        if (!synced.ok()) ++result_.failed_ops;
        continue;
      }
      if (!timer || *timer > time_ns) break;
      clock_.AdvanceTo(*timer);
      absl::Status status = machine_.RunTimers();
      if (EndsRun(status)) return status;
      if (!status.ok()) ++result_.failed_ops;
      // A timer that did not move on would hold the clock for ever.
      const std::optional<uint64_t> next = machine_.NextTimerNs();
      if (next && *next <= *timer && !status.ok()) break;
    }
    clock_.AdvanceTo(time_ns);
    return absl::OkStatus();
  }

  absl::StatusOr<uint32_t> DomainOf(uint32_t index) {
    const auto it = domains_.find(index);
    if (it != domains_.end()) return it->second;
    absl::StatusOr<uint32_t> made = machine_.CreateDomain(kDmaMaskBits);
    if (made.ok()) domains_[index] = *made;
    return made;
  }

  absl::Status Dispatch(const LoadOp& op) {
    absl::StatusOr<uint32_t> domain = DomainOf(op.domain);
    if (!domain.ok()) return domain.status();
    switch (op.kind) {
      case LoadOp::Kind::kMap:
        return Map(op, *domain);
      case LoadOp::Kind::kUnmap:
        return Unmap(op, *domain);
      case LoadOp::Kind::kAttach: {
        absl::StatusOr<DomainId> did =
            machine_.AttachDevice(*domain, op.source_id, 0, op.device_tlb);
        if (!did.ok()) return did.status();
        devices_[op.source_id.value()] = op.domain;
        if (op.domain == source_.busiest_domain()) resident_ = BuildResident(*domain);
        return resident_;
      }
      case LoadOp::Kind::kDetach:
        devices_.erase(op.source_id.value());
        return machine_.DetachDevice(op.source_id);
      case LoadOp::Kind::kDomainFree:
        return Free(op, *domain);
      case LoadOp::Kind::kMakeLazy:
        return machine_.MakeLazy(*domain);
    }
    return absl::OkStatus();
  }

  absl::Status Map(const LoadOp& op, uint32_t domain) {
    OpenList& list = lists_[op.cpu];
    if (list.segments.empty()) list.first = op.iova;
    list.segments.push_back({op.guest_pa, op.size_bytes});
    if (op.list_continues && list.segments.size() < kMaxListSegments) return absl::OkStatus();
    absl::Status status;
    if (op.choose_iova) {
      absl::StatusOr<Iova> iova = machine_.Map(domain, list.segments, op.access, op.cpu);
      status = iova.status();
      if (iova.ok()) mapped_[op.tag] = *iova;
    } else {
      status = machine_.MapAt(domain, list.first, list.segments, op.access, op.cpu);
    }
    list.segments.clear();
    if (!maps_open_since_ns_) maps_open_since_ns_ = clock_.NowNs();
    Spend(op.cpu);
    return status;
  }

  absl::Status Unmap(const LoadOp& op, uint32_t domain) {
    Iova iova = op.iova;
    if (op.choose_iova) {
      const auto it = mapped_.find(op.tag);
      if (it == mapped_.end()) return absl::FailedPreconditionError("its map had failed");
      iova = it->second;
      mapped_.erase(it);
    }
    IovaRange& gathered = gathered_unmaps_[op.cpu];
    if (gathered.empty()) gathered.first = iova;
    gathered.end = iova + op.size_bytes;
    if (op.list_continues) return absl::OkStatus();
    const IovaRange range = std::exchange(gathered, IovaRange{});
    iova = range.first;
    const auto start = std::chrono::steady_clock::now();
    absl::StatusOr<UnmapOutcome> outcome =
        machine_.Unmap(domain, range.first, range.size_bytes(), op.cpu);
    unmap_wall_ns_.push_back(static_cast<uint32_t>(std::min<int64_t>(
        std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now() -
                                                             start)
            .count(),
        ~uint32_t{0})));
    Spend(op.cpu);
    if (!outcome.ok()) return outcome.status();
    // A read: what is mapped for a device can be read in second-stage tables that Linux writes.
    if (options_.touch_after_unmap) machine_.QueueTouch(domain, iova, false);
    return absl::OkStatus();
  }

  absl::Status Free(const LoadOp& op, uint32_t domain) {
    // Linux frees a domain after its devices left; a trace may not show them leaving.
    absl::Status first;
    for (auto it = devices_.begin(); it != devices_.end();) {
      if (it->second != op.domain) {
        ++it;
        continue;
      }
      absl::Status status = machine_.DetachDevice(SourceId(it->first));
      if (first.ok()) first = status;
      devices_.erase(it++);
    }
    domains_.erase(op.domain);
    absl::Status status = machine_.DeleteDomain(domain);
    return first.ok() ? status : first;
  }

  void Spend(uint16_t cpu) {
    // A recorded time already holds what the recorded machine took.
    if (source_.fixed_times()) return;
    vcpu_ready_ns_[cpu] =
        clock_.NowNs() + static_cast<uint64_t>(std::llround(machine_.last_op_modelled_ns()));
  }

  // Its cost is kept out of the totals: the counts so far are set aside and the counters start
  // again after it.
  absl::Status BuildResident(uint32_t domain) {
    if (resident_built_ || options_.live_pages == 0) return absl::OkStatus();
    resident_built_ = true;
    const std::optional<Iova> place = source_.ResidentPlace(
        options_.live_pages * kPageSize, Iova(uint64_t{1} << options_.address_width));
    if (!place) {
      return absl::ResourceExhaustedError("no address space is free for the resident live set");
    }
    const auto start = std::chrono::steady_clock::now();
    before_ = machine_.stats();
    absl::Status status = machine_.MapResident(domain, *place, options_.live_pages);
    machine_.ResetStats();
    resident_wall_seconds_ =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    if (status.ok()) return status;
    return absl::Status(status.code(),
                        "the resident live set cannot be built: " + std::string(status.message()));
  }

  absl::StatusOr<RunResult> Total() {
    const GuestStats after = machine_.stats();
    // The clock stands still: what is stale now is aged up to the end of the run by flushing it
    // here. The flush itself is in no count but the exposure's and the oracle's.
    if (absl::StatusOr<uint64_t> flushed = machine_.FlushDeferred(); !flushed.ok()) {
      if (EndsRun(flushed.status())) return flushed.status();
      ++result_.failed_ops;
    }
    const GuestStats closed = machine_.stats();

    RunResult& r = result_;
    r.maps = before_.maps + after.maps;
    r.unmaps = before_.unmaps + after.unmaps;
    r.pages_mapped = before_.pages_mapped + after.pages_mapped;
    r.pages_unmapped = before_.pages_unmapped + after.pages_unmapped;
    r.map_updates = before_.map_updates + after.map_updates;
    r.unmap_updates = before_.unmap_updates + after.unmap_updates;
    r.exits = before_.submissions + after.submissions;
    r.descriptors_iotlb_page = before_.descriptors_iotlb_page + after.descriptors_iotlb_page;
    r.descriptors_iotlb_domain = before_.descriptors_iotlb_domain + after.descriptors_iotlb_domain;
    r.descriptors_iotlb_global = before_.descriptors_iotlb_global + after.descriptors_iotlb_global;
    r.descriptors_context = before_.descriptors_context + after.descriptors_context;
    r.descriptors_device_tlb = before_.descriptors_device_tlb + after.descriptors_device_tlb;
    r.descriptors_wait = before_.descriptors_wait + after.descriptors_wait;
    r.flushes_full = before_.flushes_full + after.flushes_full;
    r.flushes_timeout = before_.flushes_timeout + after.flushes_timeout;
    r.flushes_sync = before_.flushes_sync + after.flushes_sync;
    r.sync = before_.sync;
    r.sync += after.sync;
    r.sync.shadow_mismatches = before_.sync.shadow_mismatches + closed.sync.shadow_mismatches;
    r.sync.verified_pages = before_.sync.verified_pages + closed.sync.verified_pages;
    r.stale_page_seconds = before_.stale_page_seconds + closed.stale_page_seconds;
    r.stale_age_max_seconds = std::max(before_.stale_age_max_seconds, closed.stale_age_max_seconds);
    r.stale_dma_hits = before_.stale_dma_hits + closed.stale_dma_hits;
    r.reused_while_stale_pages = before_.reused_while_stale_pages + after.reused_while_stale_pages;
    r.modelled = before_.modelled;
    r.modelled += after.modelled;
    r.modelled_ns_total = r.modelled.total();
    r.wall_ns_per_unmap_p50 = Percentile(0.50);
    r.wall_ns_per_unmap_p99 = Percentile(0.99);
    return r;
  }

  // Nearest rank; reorders the samples.
  double Percentile(double fraction) {
    if (unmap_wall_ns_.empty()) return 0;
    const double rank = std::ceil(fraction * static_cast<double>(unmap_wall_ns_.size()));
    const auto nth = unmap_wall_ns_.begin() + static_cast<std::ptrdiff_t>(std::max(rank, 1.0)) - 1;
    std::nth_element(unmap_wall_ns_.begin(), nth, unmap_wall_ns_.end());
    return *nth;
  }

  LoadSource& source_;
  GuestMachine& machine_;
  VirtualClock& clock_;
  const RunOptions& options_;
  RunResult result_;
  GuestStats before_;  // counts up to the building of the resident set
  bool resident_built_ = false;
  std::optional<uint64_t> maps_open_since_ns_;  // the first map since the last SyncMaps
  absl::Status resident_;                       // an error ends the run: without the set it answers
                                                // another question
  double resident_wall_seconds_ = 0;
  std::vector<uint64_t> vcpu_ready_ns_;
  std::vector<OpenList> lists_;                      // by vCPU
  std::vector<IovaRange> gathered_unmaps_;           // by CPU
  absl::flat_hash_map<uint32_t, uint32_t> domains_;  // index of the load -> handle of the machine
  absl::flat_hash_map<uint16_t, uint32_t> devices_;  // attached requester id -> index
  absl::flat_hash_map<uint64_t, Iova> mapped_;       // tag -> IOVA that its map got
  std::vector<uint32_t> unmap_wall_ns_;
};

}  // namespace

absl::StatusOr<RunResult> RunLoad(LoadSource& source, GuestMachine& machine, VirtualClock& clock,
                                  const RunOptions& options) {
  return Run(source, machine, clock, options).Execute();
}

}  // namespace viommu
