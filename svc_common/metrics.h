// What both services need to expose metrics: an endpoint, a histogram cheap enough for the hot
// path, and helpers to build families from totals that the core already keeps (mirrored at scrape).
#ifndef VIOMMU_SVC_COMMON_METRICS_H_
#define VIOMMU_SVC_COMMON_METRICS_H_

#include <prometheus/collectable.h>
#include <prometheus/exposer.h>
#include <prometheus/metric_family.h>

#include <array>
#include <atomic>
#include <bit>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace viommu {

// Wall times by powers of two from 1 us to 17 s. Thread-safe; Observe is three relaxed additions
// (prometheus-cpp's histogram takes a lock and a search).
class WallHistogram {
 public:
  static constexpr int kBuckets = 25;  // upper bounds 2^i us; the last catches everything above

  void Observe(uint64_t wall_ns) {
    const uint64_t us = (wall_ns + 999) / 1000;
    const int bucket = us <= 1 ? 0 : std::min(kBuckets, static_cast<int>(std::bit_width(us - 1)));
    counts_[bucket].fetch_add(1, std::memory_order_relaxed);
    sum_ns_.fetch_add(wall_ns, std::memory_order_relaxed);
  }
  prometheus::ClientMetric Snapshot() const;

 private:
  std::array<std::atomic<uint64_t>, kBuckets + 1> counts_{};
  std::atomic<uint64_t> sum_ns_{0};
};

using MetricLabels = std::vector<std::pair<std::string, std::string>>;

// One family, filled sample by sample.
class FamilyBuilder {
 public:
  FamilyBuilder(std::string name, std::string help, prometheus::MetricType type);
  FamilyBuilder& Add(const MetricLabels& labels, double value);
  FamilyBuilder& Add(const MetricLabels& labels, const WallHistogram& histogram);
  prometheus::MetricFamily Build() && { return std::move(family_); }

 private:
  prometheus::MetricFamily family_;
};

prometheus::MetricFamily CounterFamily(std::string name, std::string help, double value);
prometheus::MetricFamily GaugeFamily(std::string name, std::string help, double value);
// viommu_tls_handshakes_failed_total of this process.
prometheus::MetricFamily TlsFamily();

// Serves /metrics over HTTP.
class MetricsEndpoint {
 public:
  // `address` is HOST:PORT (port 0: pick one). Unavailable: cannot listen there.
  static absl::StatusOr<std::unique_ptr<MetricsEndpoint>> Start(const std::string& address);
  void Register(const std::shared_ptr<prometheus::Collectable>& collectable) {
    exposer_->RegisterCollectable(collectable);
  }
  const std::string& address() const { return address_; }

 private:
  MetricsEndpoint(std::unique_ptr<prometheus::Exposer> exposer, std::string address)
      : exposer_(std::move(exposer)), address_(std::move(address)) {}

  const std::unique_ptr<prometheus::Exposer> exposer_;
  const std::string address_;
};

}  // namespace viommu

#endif  // VIOMMU_SVC_COMMON_METRICS_H_
