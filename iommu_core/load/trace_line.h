// One line of ftrace or perf text, taken apart.
#ifndef VIOMMU_IOMMU_CORE_LOAD_TRACE_LINE_H_
#define VIOMMU_IOMMU_CORE_LOAD_TRACE_LINE_H_

#include <cstdint>
#include <optional>

#include "absl/strings/string_view.h"

namespace viommu {

// Views into the line.
struct TraceLine {
  absl::string_view comm;
  int64_t pid = 0;
  uint32_t cpu = 0;
  uint64_t time_ns = 0;
  absl::string_view event;  // without its subsystem
  absl::string_view text;   // after "event: "
};

// The lines that Linux's trace_output.c, `perf script` and `trace-cmd report` print:
//   "  kworker/u4:2-32      [001] d..2.   107.451977: map: IOMMU: iova=…"
//   "  (udev-worker)-532  (  532) [010] .....     4.878076: map: …"      with
//   record-tgid "  fio   231 [000]    30.738045:   iommu:map: IOMMU: iova=…"
//   perf script
// `comm` may hold anything, so the line is anchored on "pid [cpu]" before a timestamp. nullopt: not
// such a line.
std::optional<TraceLine> ParseTraceLine(absl::string_view line);

// The number after `key` (written with its '='), hexadecimal with 0x and decimal without; nullopt:
// no such key, or no number there.
std::optional<uint64_t> NumberField(absl::string_view text, absl::string_view key);

// "iova=0x… - 0x…": the second number; nullopt where the kernel prints none (before v5.17).
std::optional<uint64_t> RangeEnd(absl::string_view text);

// "0000:00:03.0" or "00:03.0" to a requester id; nullopt for other names and other PCI segments.
std::optional<uint16_t> ParseBdf(absl::string_view name);

}  // namespace viommu

#endif  // VIOMMU_IOMMU_CORE_LOAD_TRACE_LINE_H_
