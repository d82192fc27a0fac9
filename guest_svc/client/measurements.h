// What users measure on their own machines, read: dma_map_benchmark and QEMU's trace log.
#ifndef VIOMMU_GUEST_SVC_CLIENT_MEASUREMENTS_H_
#define VIOMMU_GUEST_SVC_CLIENT_MEASUREMENTS_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace viommu::client {

// Nanoseconds of one kind of event; never empty when it is used.
class Samples {
 public:
  void Add(double ns) { values_.push_back(ns); }
  bool empty() const { return values_.empty(); }
  size_t size() const { return values_.size(); }
  // The value below which `part` (0 to 1) of the samples lie.
  double Percentile(double part) const;

 private:
  std::vector<double> values_;
};

// tools/dma/dma_map_benchmark of the kernel: mean latency of a map and an unmap of one page.
struct BenchmarkResult {
  Samples map_ns;  // one for each run in the file
  Samples unmap_ns;
};

// Its text, one or more runs. NotFound; InvalidArgument: no run in it, or one with several threads
// (their times contain waiting for each other) or several pages, with the options to use instead.
absl::StatusOr<BenchmarkResult> ReadBenchmark(const std::string& path);

// QEMU's `-d trace:vtd_*,trace:vfio_iommu_map_notify -msg timestamp=on -D FILE`.
struct QemuLog {
  Samples map_ns;             // a container map call: notification to the next line of its thread
  Samples unmap_ns;           // an unmap call
  Samples flush_page_ns;      // a domain or global flush less its container calls, per mapped page
  bool pages_traced = false;  // flush_page_ns contains a line of log for each page
};

// Text, gzip'd or not. `live_pages` is how many pages were mapped during domain flushes whose walk
// was not traced page by page; 0: such flushes are left out. InvalidArgument: no timestamps, no
// event that says anything, a damaged file.
absl::StatusOr<QemuLog> ReadQemuLog(const std::string& path, uint64_t live_pages);

}  // namespace viommu::client

#endif  // VIOMMU_GUEST_SVC_CLIENT_MEASUREMENTS_H_
