// Replays recorded VT-d cases against our unit and says case by case whether it behaves as
// recorded.
#ifndef VIOMMU_GUEST_SVC_CLIENT_CONFORMANCE_H_
#define VIOMMU_GUEST_SVC_CLIENT_CONFORMANCE_H_

#include <cstdint>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "guest_svc/client/conformance_case.h"

namespace viommu::conformance {

// Where QEMU's intel-iommu departs from the specification: the rows of iommu_core/hw/README.md.
enum class Departure {
  kIotlbHitNoFault,
  kReservedAndPermission,
  kContextReservedIgnoresFpd,
  kLargePageOverInterruptRange,
  kIotlbBySourceId,
  kContextDomainAsGlobal,
  kIqeClearDoesNotResume,
  kDeviceTlbWithoutDt,
  kEmptyWait,
  kQueueDisableRefused,
  kRegisterInvalidationUnderQueue,
  kNoQueueErrorRecord,
  kNoWideQueue,
  kTableModeIgnored,
  kShadowSplitResidue,
  kShadowReservedStays,
  kShadowNarrowedStays,
};
// Its id in that table.
absl::string_view DepartureName(Departure departure);

struct ConformanceOptions {
  // Reproduce QEMU's departures: every recorded case must then pass. Otherwise the specification is
  // followed, and a case may differ only where it touches a departure.
  bool qemu_quirks = false;
};

struct Verdict {
  enum class Kind { kPassed, kFailed, kDeparts };
  Kind kind = Kind::kPassed;
  std::string case_id;
  std::string first_difference;    // empty if passed
  std::set<Departure> departures;  // that explain every difference; kDeparts only
};

struct FileReport {
  std::string path;
  std::vector<Verdict> verdicts;
  uint64_t Count(Verdict::Kind kind) const;
};

Verdict RunCase(const Case& recorded, const ConformanceOptions& options);

// `path`: JSON lines, gzip'd or not. NotFound: cannot be read. InvalidArgument names file and line:
// malformed JSON, an unknown operation or field.
absl::StatusOr<FileReport> RunFile(const std::string& path, const ConformanceOptions& options);

// A line per file; the differences if `verbose`; "K depart as documented" where there are any, by
// departure; last "N passed, M failed".
std::string ToText(std::span<const FileReport> reports, bool verbose);

}  // namespace viommu::conformance

#endif  // VIOMMU_GUEST_SVC_CLIENT_CONFORMANCE_H_
