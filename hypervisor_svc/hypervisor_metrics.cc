#include "hypervisor_svc/hypervisor_metrics.h"

#include <utility>

#include "absl/strings/str_format.h"
#include "iommu_core/base/cost_model.h"
#include "svc_common/conversions.h"
#include "svc_common/service_host.h"

namespace viommu {
namespace {

constexpr double kNsPerSecond = 1e9;
constexpr int kFaultReasons = 0xd;  // legacy mode: 1 to 0xd

double Value(uint64_t count) { return static_cast<double>(count); }

}  // namespace

std::vector<prometheus::MetricFamily> HypervisorMetrics::Collect() const {
  const SessionRegistry::Retired retired = registry_.retired();
  SessionStats now = retired.stats;
  uint64_t batches = retired.batches;
  uint64_t slices = retired.slices;
  uint64_t turns_waited = retired.turns_waited;
  const auto sessions = registry_.ListAll();
  for (const auto& session : sessions) {
    AddStats(session->stats(), now);
    batches += session->progress().batches;
    slices += session->work().slices.load(std::memory_order_relaxed);
    turns_waited += session->work().turns_waited.load(std::memory_order_relaxed);
  }
  const CostModel& model = registry_.options().cost_model;
  ModelledCost modelled = PriceSync(model, now.cost);
  // PriceSync prices one submission; there were as many as batches.
  modelled.exit_ns += (Value(batches) - 1) * model.submission_ns;

  using prometheus::MetricType;
  std::vector<prometheus::MetricFamily> out;
  FamilyBuilder sync("viommu_sync_wall_seconds",
                     "Wall time of this program for one synchronisation.", MetricType::Histogram);
  HypervisorCounters& counters = registry_.counters();
  for (size_t trigger = 0; trigger < kSyncTriggerNames.size(); ++trigger) {
    for (int strategy = 0; strategy < kStrategies; ++strategy) {
      sync.Add({{"trigger", kSyncTriggerNames[trigger]},
                {"strategy", std::string(StrategyName(static_cast<Strategy>(strategy)))}},
               counters.sync_wall[trigger][strategy]);
    }
  }
  out.push_back(std::move(sync).Build());
  out.push_back(CounterFamily("viommu_sync_ptes_read_total", "Guest table entries read one by one.",
                              Value(now.cost.ptes_read)));
  out.push_back(CounterFamily("viommu_sync_bytes_read_total",
                              "Guest table bytes read, bulk compares included.",
                              Value(now.cost.bytes_read)));
  out.push_back(CounterFamily("viommu_sync_ptes_changed_total",
                              "Shadow entries set, cleared or replaced.",
                              Value(now.cost.ptes_changed)));
  FamilyBuilder maps("viommu_dma_maps_total", "DMA container map calls by outcome.",
                     MetricType::Counter);
  maps.Add({{"code", "ok"}}, Value(now.cost.dma_maps - now.cost.dma_map_failures))
      .Add({{"code", "resource_exhausted"}}, Value(now.cost.dma_map_failures));
  out.push_back(std::move(maps).Build());
  FamilyBuilder unmaps("viommu_dma_unmaps_total", "DMA container unmap calls by outcome.",
                       MetricType::Counter);
  unmaps.Add({{"code", "ok"}}, Value(now.cost.dma_unmaps));
  out.push_back(std::move(unmaps).Build());
  out.push_back(GaugeFamily("viommu_dma_entries_max",
                            "Mappings now in the DMA container that holds most.",
                            Value(now.dma_entries_max)));
  out.push_back(GaugeFamily("viommu_dma_entry_limit", "Mappings that one DMA container may hold.",
                            Value(registry_.options().session.dma_entry_limit)));
  out.push_back(GaugeFamily("viommu_pinned_bytes", "Guest memory pinned now.",
                            Value(now.pinned_pages * kPageSize)));
  out.push_back(GaugeFamily("viommu_shadow_table_pages", "Physical table pages in use.",
                            Value(now.shadow_table_pages)));
  out.push_back(GaugeFamily("viommu_refused_pages",
                            "Pages that a limit keeps out of the shadow now.",
                            Value(now.refused_pages)));
  out.push_back(CounterFamily("viommu_shadow_mismatches_total",
                              "Pages on which shadow and reference walk differed.",
                              Value(now.cost.shadow_mismatches)));
  out.push_back(CounterFamily("viommu_shadow_verified_pages_total",
                              "Pages on which shadow and reference walk were compared.",
                              Value(now.cost.verified_pages)));
  FamilyBuilder lookups("viommu_iotlb_lookups_total", "Lookups in the physical IOTLB.",
                        MetricType::Counter);
  lookups.Add({{"result", "hit"}}, Value(now.iotlb_hits))
      .Add({{"result", "miss"}}, Value(now.iotlb_misses));
  out.push_back(std::move(lookups).Build());
  FamilyBuilder invalidations("viommu_iotlb_invalidations_total",
                              "IOTLB invalidations asked for by guests.", MetricType::Counter);
  invalidations.Add({{"granularity", "global"}}, Value(now.invalidations[1]))
      .Add({{"granularity", "domain"}}, Value(now.invalidations[2]))
      .Add({{"granularity", "page"}}, Value(now.invalidations[3]));
  out.push_back(std::move(invalidations).Build());
  FamilyBuilder faults("viommu_dma_faults_total",
                       "Device accesses that the physical unit blocked, by VT-d fault reason.",
                       MetricType::Counter);
  for (int reason = 1; reason <= kFaultReasons; ++reason) {
    faults.Add({{"reason", absl::StrFormat("0x%x", reason)}}, Value(now.faults[reason]));
  }
  out.push_back(std::move(faults).Build());
  out.push_back(CounterFamily("viommu_dma_faults_dropped_total",
                              "Fault records lost because a session's window was full.",
                              Value(now.faults_dropped)));
  out.push_back(CounterFamily("viommu_stale_dma_hits_total",
                              "Device accesses that reached memory the guest no longer maps.",
                              Value(now.stale_dma_hits)));
  out.push_back(GaugeFamily("viommu_sessions", "Sessions now.", Value(sessions.size())));
  out.push_back(CounterFamily("viommu_sync_work_refused_total",
                              "Invalidations stopped at --max_work_per_invalidation.",
                              Value(now.work_refused)));
  out.push_back(CounterFamily("viommu_shadows_refused_total",
                              "Devices left blocked at --max_domains.",
                              Value(now.shadows_refused)));
  out.push_back(CounterFamily("viommu_work_slices_total",
                              "Slices of sessions' work, at whose end another may go first.",
                              Value(slices)));
  out.push_back(CounterFamily("viommu_walk_turn_waits_total",
                              "Times a long walk waited for the turns of other sessions' walks.",
                              Value(turns_waited)));
  FamilyBuilder refusals("viommu_stream_refusals_total",
                         "Messages of guests' streams that were refused, nothing of them applied.",
                         MetricType::Counter);
  for (const absl::StatusCode code :
       {absl::StatusCode::kInvalidArgument, absl::StatusCode::kPermissionDenied,
        absl::StatusCode::kResourceExhausted, absl::StatusCode::kFailedPrecondition,
        absl::StatusCode::kAborted, absl::StatusCode::kUnavailable, absl::StatusCode::kNotFound}) {
    refusals.Add({{"code", CodeLabel(code)}},
                 Value(counters.refusals[static_cast<size_t>(code)].load()));
  }
  out.push_back(std::move(refusals).Build());
  out.push_back(CounterFamily("viommu_memory_requests_refused_total",
                              "Requests on the memory socket that were answered with an error.",
                              Value(registry_.memory_requests_refused())));
  out.push_back(TlsFamily());
  FamilyBuilder resyncs("viommu_session_resyncs_total",
                        "Times a guest had to replay its whole state.", MetricType::Counter);
  for (size_t reason = 1; reason < kResyncNames.size(); ++reason) {
    resyncs.Add({{"reason", kResyncNames[reason]}}, Value(counters.resyncs[reason].load()));
  }
  out.push_back(std::move(resyncs).Build());
  FamilyBuilder pulled("viommu_remote_pages_total",
                       "Pages copied from guests on other hosts, by what they were for.",
                       MetricType::Counter);
  pulled.Add({{"use", "sync"}}, Value(now.cost.remote_pages))
      .Add({{"use", "device"}}, Value(now.pulled.pages - now.cost.remote_pages))
      .Add({{"use", "verify"}}, Value(now.oracle_pulled.pages));
  out.push_back(std::move(pulled).Build());
  FamilyBuilder remote_wait("viommu_remote_wait_wall_seconds",
                            "Wall time of one wait for the memory of a guest on another host.",
                            MetricType::Histogram);
  remote_wait.Add({}, counters.remote_wait_wall);
  out.push_back(std::move(remote_wait).Build());
  FamilyBuilder remote_failures("viommu_remote_failures_total",
                                "Streams ended because a guest on another host did not answer for "
                                "its memory, answered wrongly, or needed too many pages.",
                                MetricType::Counter);
  for (size_t reason = 0; reason < kRemoteFailureNames.size(); ++reason) {
    remote_failures.Add({{"reason", kRemoteFailureNames[reason]}},
                        Value(counters.remote_failures[reason].load()));
  }
  out.push_back(std::move(remote_failures).Build());
  FamilyBuilder seconds("viommu_modelled_seconds_total", "Counted work priced by --cost_preset.",
                        MetricType::Counter);
  seconds.Add({{"part", "exit"}}, modelled.exit_ns / kNsPerSecond)
      .Add({{"part", "walk"}}, modelled.walk_ns / kNsPerSecond)
      .Add({{"part", "dma"}}, modelled.dma_ns / kNsPerSecond)
      .Add({{"part", "hw"}}, modelled.hw_ns / kNsPerSecond);
  out.push_back(std::move(seconds).Build());
  FamilyBuilder build("viommu_build_info", "Always 1; the label names the build.",
                      MetricType::Gauge);
  build.Add({{"version", BuildVersion()}}, 1);
  out.push_back(std::move(build).Build());
  return out;
}

}  // namespace viommu
