// Reads what Linux's own tracing recorded of a map/unmap stream:
// `tracefs/trace`, perf or trace-cmd text, gzip'd or not.
#ifndef VIOMMU_IOMMU_CORE_LOAD_TRACE_PARSER_H_
#define VIOMMU_IOMMU_CORE_LOAD_TRACE_PARSER_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "iommu_core/load/load_op.h"

namespace viommu {

// A longer trace is refused: 80 bytes of memory an operation.
inline constexpr uint64_t kMaxTraceOps = uint64_t{1} << 25;
inline constexpr uint32_t kMaxTraceDomains = 4096;
// Two maps of one CPU and domain at adjoining IOVAs are one scatter-gather list (one
// iotlb_sync_map) if the second starts less than this after the first ended: in the recorded runs
// the pieces of a list are 1-10 us apart, a list and its successor 11 us and more. The start is the
// kprobe line's time where there is one, else the tracepoint's, which is after the map and may be
// too late.
inline constexpr uint64_t kListGapNs = 12'000;
// Where the recording has the kernel's own qi_submit lines, they say where a list ends (nothing
// else of them is used), and its pieces may be further apart: in a guest under two emulators they
// are hundreds of microseconds, and VFIO unpins pages between two unmaps.
inline constexpr uint64_t kSyncedListGapNs = 1'000'000'000;

struct TraceOptions {
  // Take a trace from which events were lost: its unmaps may not find their maps.
  bool allow_lost_events = false;
};

struct TraceInfo {
  uint32_t cpus = 1;  // highest CPU seen, plus one
  uint32_t domains = 0;
  uint32_t devices = 0;              // distinct requester ids attached
  bool names_domains = false;        // the kprobe lines were there
  std::optional<bool> caching_mode;  // of the recorded unit; needs qi_submit lines
  std::optional<bool> hint;          // the kernel sets IH at unmap; needs qi_submit lines
  uint32_t lazy_domains = 0;         // turned to DMA-FQ in a run that was strict elsewhere
  uint64_t first_ns = 0;
  uint64_t last_ns = 0;
  uint64_t guest_pa_end = 0;  // first byte past the highest page mapped
  uint64_t iova_end = 0;      // first byte past the highest page named
  uint64_t maps = 0;          // lines, not lists
  uint64_t unmaps = 0;
  uint64_t lists = 0;        // map-time invalidations they stand for
  uint64_t lost_events = 0;  // that the kernel says it dropped
  uint64_t lines = 0;
  uint64_t skipped = 0;  // lines of other events
};

struct Trace {
  std::vector<LoadOp> ops;  // in the kernel's order
  TraceInfo info;
};

// `iommu:map`/`unmap` give the facts. Where the recording also has kprobes on __iommu_map,
// __iommu_unmap, intel_iommu_attach_device and intel_iommu_domain_free (kmap, kunmap, kattach,
// kdomfree), these name the domain, and each tracepoint line belongs to the kprobe line of the same
// task before it. Without them the trace is one domain with one device. Domain index: order of
// first mention; a freed pointer that comes back is a new domain. InvalidArgument, with the line:
// no trace text, a damaged or cut line, a truncated file (the kernel's own "entries-in-buffer"
// header says how many lines there must be), lost events, no map or unmap at all.
absl::StatusOr<Trace> ReadTrace(const std::string& path, const TraceOptions& options = {});

}  // namespace viommu

#endif  // VIOMMU_IOMMU_CORE_LOAD_TRACE_PARSER_H_
