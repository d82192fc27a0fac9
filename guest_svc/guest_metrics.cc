#include "guest_svc/guest_metrics.h"

#include <utility>

#include "svc_common/conversions.h"
#include "svc_common/service_host.h"

namespace viommu {
namespace {

constexpr std::array<const char*, 3> kOpNames = {"map", "unmap", "access"};

double Value(uint64_t count) { return static_cast<double>(count); }

// Codes that a healthy guest meets have a series from the start, the others once they happen.
bool Expected(size_t code) {
  return code == static_cast<size_t>(absl::StatusCode::kOk) ||
         code == static_cast<size_t>(absl::StatusCode::kUnavailable) ||
         code == static_cast<size_t>(absl::StatusCode::kDeadlineExceeded);
}

}  // namespace

void GuestMetrics::set_machine_stats(std::function<GuestStats()> stats) {
  absl::MutexLock lock(&mu_);
  machine_stats_ = std::move(stats);
}

std::vector<prometheus::MetricFamily> GuestMetrics::Collect() const {
  GuestStats stats;
  {
    absl::MutexLock lock(&mu_);
    if (machine_stats_) stats = machine_stats_();
  }
  using prometheus::MetricType;
  std::vector<prometheus::MetricFamily> out;
  FamilyBuilder ops("viommu_dma_ops_total", "Operations of load clients by outcome.",
                    MetricType::Counter);
  for (size_t op = 0; op < kOps; ++op) {
    for (size_t code = 0; code < kCodes; ++code) {
      const uint64_t count = ops_[op][code].load(std::memory_order_relaxed);
      if (count == 0 && !Expected(code)) continue;
      ops.Add({{"op", kOpNames[op]}, {"code", CodeLabel(static_cast<absl::StatusCode>(code))}},
              Value(count));
    }
  }
  out.push_back(std::move(ops).Build());
  out.push_back(GaugeFamily("viommu_iova_allocated_bytes", "IOVA space handed out now.",
                            Value(stats.iova_allocated_bytes)));
  out.push_back(GaugeFamily("viommu_iova_allocated_bytes_max",
                            "IOVA space handed out now in the domain that has most.",
                            Value(stats.iova_allocated_bytes_max)));
  out.push_back(GaugeFamily("viommu_flush_queue_entries",
                            "Unmapped ranges that wait for a flush now.",
                            Value(stats.flush_queue_entries)));
  FamilyBuilder flushes("viommu_flush_queue_flushes_total", "Flush-queue flushes by cause.",
                        MetricType::Counter);
  flushes.Add({{"reason", "full"}}, Value(stats.flushes_full))
      .Add({{"reason", "timeout"}}, Value(stats.flushes_timeout))
      .Add({{"reason", "sync"}}, Value(stats.flushes_sync));
  out.push_back(std::move(flushes).Build());
  FamilyBuilder descriptors("viommu_invalidation_descriptors_total",
                            "Invalidation descriptors submitted.", MetricType::Counter);
  descriptors.Add({{"type", "iotlb"}, {"granularity", "page"}}, Value(stats.descriptors_iotlb_page))
      .Add({{"type", "iotlb"}, {"granularity", "domain"}}, Value(stats.descriptors_iotlb_domain))
      .Add({{"type", "iotlb"}, {"granularity", "global"}}, Value(stats.descriptors_iotlb_global))
      .Add({{"type", "context"}, {"granularity", "any"}}, Value(stats.descriptors_context))
      .Add({{"type", "device_tlb"}, {"granularity", "page"}}, Value(stats.descriptors_device_tlb))
      .Add({{"type", "wait"}, {"granularity", "none"}}, Value(stats.descriptors_wait));
  out.push_back(std::move(descriptors).Build());
  out.push_back(CounterFamily("viommu_submissions_total",
                              "Doorbells: submissions that the hypervisor trapped.",
                              Value(stats.submissions)));
  FamilyBuilder ack("viommu_invalidation_ack_wall_seconds",
                    "Wall time from a doorbell's message to its completion.",
                    MetricType::Histogram);
  ack.Add({}, ack_wall_);
  out.push_back(std::move(ack).Build());
  out.push_back(GaugeFamily("viommu_stale_pages", "Pages unmapped and not yet revoked.",
                            Value(stats.stale_pages)));
  out.push_back(CounterFamily("viommu_stale_page_seconds_total",
                              "Pages times seconds between unmap and revocation.",
                              stats.stale_page_seconds));
  FamilyBuilder reconnects("viommu_stream_reconnects_total",
                           "Streams to the hypervisor that broke, by status.", MetricType::Counter);
  for (size_t code = 0; code < kCodes; ++code) {
    const uint64_t count = reconnects_[code].load(std::memory_order_relaxed);
    if (count == 0 && code != static_cast<size_t>(absl::StatusCode::kUnavailable)) continue;
    reconnects.Add({{"reason", CodeLabel(static_cast<absl::StatusCode>(code))}}, Value(count));
  }
  out.push_back(std::move(reconnects).Build());
  out.push_back(TlsFamily());
  FamilyBuilder build("viommu_build_info", "Always 1; the label names the build.",
                      MetricType::Gauge);
  build.Add({{"version", BuildVersion()}}, 1);
  out.push_back(std::move(build).Build());
  return out;
}

}  // namespace viommu
