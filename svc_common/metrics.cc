#include "svc_common/metrics.h"

#include <exception>
#include <limits>

#include "absl/strings/str_cat.h"
#include "svc_common/address.h"
#include "svc_common/logging.h"

namespace viommu {
namespace {

std::vector<prometheus::ClientMetric::Label> Labels(const MetricLabels& labels) {
  std::vector<prometheus::ClientMetric::Label> out;
  out.reserve(labels.size());
  for (const auto& [name, value] : labels) out.push_back({name, value});
  return out;
}

}  // namespace

prometheus::ClientMetric WallHistogram::Snapshot() const {
  prometheus::ClientMetric metric;
  uint64_t total = 0;
  double bound = 1e-6;
  for (int i = 0; i <= kBuckets; ++i, bound *= 2) {
    total += counts_[i].load(std::memory_order_relaxed);
    metric.histogram.bucket.push_back(
        {total, i == kBuckets ? std::numeric_limits<double>::infinity() : bound});
  }
  metric.histogram.sample_count = total;
  metric.histogram.sample_sum = static_cast<double>(sum_ns_.load(std::memory_order_relaxed)) / 1e9;
  return metric;
}

FamilyBuilder::FamilyBuilder(std::string name, std::string help, prometheus::MetricType type) {
  family_.name = std::move(name);
  family_.help = std::move(help);
  family_.type = type;
}

FamilyBuilder& FamilyBuilder::Add(const MetricLabels& labels, double value) {
  prometheus::ClientMetric& metric = family_.metric.emplace_back();
  metric.label = Labels(labels);
  if (family_.type == prometheus::MetricType::Counter) {
    metric.counter.value = value;
  } else {
    metric.gauge.value = value;
  }
  return *this;
}

FamilyBuilder& FamilyBuilder::Add(const MetricLabels& labels, const WallHistogram& histogram) {
  prometheus::ClientMetric& metric = family_.metric.emplace_back(histogram.Snapshot());
  metric.label = Labels(labels);
  return *this;
}

prometheus::MetricFamily CounterFamily(std::string name, std::string help, double value) {
  return std::move(FamilyBuilder(std::move(name), std::move(help), prometheus::MetricType::Counter)
                       .Add({}, value))
      .Build();
}

prometheus::MetricFamily TlsFamily() {
  return CounterFamily("viommu_tls_handshakes_failed_total",
                       "TLS handshakes that failed, as server or as client.",
                       static_cast<double>(TlsHandshakesFailed()));
}

prometheus::MetricFamily GaugeFamily(std::string name, std::string help, double value) {
  return std::move(FamilyBuilder(std::move(name), std::move(help), prometheus::MetricType::Gauge)
                       .Add({}, value))
      .Build();
}

absl::StatusOr<std::unique_ptr<MetricsEndpoint>> MetricsEndpoint::Start(
    const std::string& address) {
  absl::StatusOr<Address> parsed = ParseAddress(address);
  if (!parsed.ok()) return parsed.status();
  if (parsed->is_unix()) {
    return absl::InvalidArgumentError("metrics are served over HOST:PORT only");
  }
  try {
    // Two threads: a stuck scraper does not keep the next one out.
    auto exposer = std::make_unique<prometheus::Exposer>(parsed->ToString(), 2);
    const std::vector<int> ports = exposer->GetListeningPorts();
    if (!ports.empty()) parsed->port = static_cast<uint16_t>(ports.front());
    return std::unique_ptr<MetricsEndpoint>(
        new MetricsEndpoint(std::move(exposer), parsed->ToString()));
  } catch (const std::exception&) {
    return absl::UnavailableError(absl::StrCat("cannot serve metrics on ", address,
                                               ": address in use or not of this machine"));
  }
}

}  // namespace viommu
