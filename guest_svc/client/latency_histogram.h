// Latencies of many threads, cheap to record and accurate to an eighth of a power of two.
#ifndef VIOMMU_GUEST_SVC_CLIENT_LATENCY_HISTOGRAM_H_
#define VIOMMU_GUEST_SVC_CLIENT_LATENCY_HISTOGRAM_H_

#include <array>
#include <atomic>
#include <bit>
#include <cmath>
#include <cstdint>

namespace viommu::client {

class LatencyHistogram {
 public:
  using Counts = std::array<uint64_t, 64 * 8>;

  // Thread-safe.
  void Record(uint64_t ns) { counts_[Bucket(ns)].fetch_add(1, std::memory_order_relaxed); }
  Counts Snapshot() const {
    Counts counts;
    for (size_t i = 0; i < counts.size(); ++i) {
      counts[i] = counts_[i].load(std::memory_order_relaxed);
    }
    return counts;
  }

  static Counts Difference(const Counts& later, const Counts& earlier) {
    Counts counts;
    for (size_t i = 0; i < counts.size(); ++i) counts[i] = later[i] - earlier[i];
    return counts;
  }
  static uint64_t Total(const Counts& counts) {
    uint64_t total = 0;
    for (uint64_t n : counts) total += n;
    return total;
  }
  // Upper bound of the bucket that holds the nearest rank, nanoseconds; 0 without samples.
  static uint64_t Percentile(const Counts& counts, double fraction) {
    const uint64_t total = Total(counts);
    if (total == 0) return 0;
    const auto rank = static_cast<uint64_t>(std::ceil(fraction * static_cast<double>(total)));
    uint64_t seen = 0;
    for (size_t i = 0; i < counts.size(); ++i) {
      seen += counts[i];
      if (seen >= rank && seen > 0) return UpperBound(i);
    }
    return UpperBound(counts.size() - 1);
  }

  static size_t Bucket(uint64_t ns) {
    if (ns < 8) return static_cast<size_t>(ns);
    const int exponent = static_cast<int>(std::bit_width(ns)) - 1;
    return static_cast<size_t>(exponent - 2) * 8 + ((ns >> (exponent - 3)) & 7);
  }
  static uint64_t UpperBound(size_t bucket) {
    if (bucket < 8) return bucket;
    const int exponent = static_cast<int>(bucket / 8) + 2;
    return (((bucket & 7) + 9) << (exponent - 3)) - 1;
  }

 private:
  std::array<std::atomic<uint64_t>, 64 * 8> counts_{};
};

}  // namespace viommu::client

#endif  // VIOMMU_GUEST_SVC_CLIENT_LATENCY_HISTOGRAM_H_
