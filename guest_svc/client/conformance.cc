#include "guest_svc/client/conformance.h"

#include <algorithm>
#include <map>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "guest_svc/client/conformance_machine.h"
#include "guest_svc/client/conformance_score.h"
#include "guest_svc/client/conformance_shadow.h"
#include "iommu_core/load/line_reader.h"
#include "iommu_core/vtd/registers.h"

namespace viommu::conformance {
namespace {

// A recorded case is some tens of kilobytes.
constexpr size_t kMaxCaseBytes = size_t{8} << 20;

struct DepartureText {
  Departure departure;
  const char* name;
};
constexpr DepartureText kDepartures[] = {
    {Departure::kIotlbHitNoFault, "iotlb-hit-insufficient-permission-no-fault"},
    {Departure::kReservedAndPermission, "rsvd-and-perm"},
    {Departure::kContextReservedIgnoresFpd, "fpd-with-0xb"},
    {Departure::kLargePageOverInterruptRange, "large-page-overlaps-fee"},
    {Departure::kIotlbBySourceId, "iotlb-by-source-id"},
    {Departure::kContextDomainAsGlobal, "context-domain-as-global"},
    {Departure::kIqeClearDoesNotResume, "iqe-clear-does-not-resume"},
    {Departure::kDeviceTlbWithoutDt, "device-tlb-without-dt"},
    {Departure::kEmptyWait, "wait-without-sw-if-fn"},
    {Departure::kQueueDisableRefused, "queue-disable-refused"},
    {Departure::kRegisterInvalidationUnderQueue, "register-invalidation-under-queue"},
    {Departure::kNoQueueErrorRecord, "no-iqercd"},
    {Departure::kNoWideQueue, "no-wide-queue"},
    {Departure::kTableModeIgnored, "ttm-ignored"},
    {Departure::kShadowSplitResidue, "split-or-subtree-residue"},
    {Departure::kShadowReservedStays, "reserved-bit-entry-not-unmapped"},
    {Departure::kShadowNarrowedStays, "agaw-narrowed-keeps-old-mapping"},
};

struct StepDifference {
  size_t step = 0;
  std::string text;
  std::set<Departure> departures;  // that may explain it; empty: none
};

// Everything in which our unit differs from the recording.
std::vector<StepDifference> Differences(const Case& recorded, bool qemu_quirks) {
  SparseMemory memory = MachineMemory();
  Machine machine(recorded.address_width, qemu_quirks, memory, nullptr);
  QueueDepartures queue(machine.unit().caps());
  SeenTranslations history;
  std::vector<StepDifference> out;
  // The departure behind a fault record that no step has cleared since.
  std::optional<Departure> standing;
  for (size_t i = 0; i < recorded.steps.size(); ++i) {
    const Step& step = recorded.steps[i];
    queue.Observe(step, machine.unit().Read32(vtd::kGsts), machine.unit().Read32(vtd::kFsts));
    const Observation seen = machine.Run(step);
    auto text = Difference(step, seen, history);
    history.Remember(step);
    if (text) {
      StepDifference difference{i, absl::StrCat("step ", i, ": ", *text), queue.touched()};
      // Where an access goes follows from what the queue has done; whether it faults does not.
      const auto access = AccessDeparture(step, seen);
      if (access && (*access != Departure::kIotlbBySourceId || queue.touched().empty())) {
        difference.departures = {*access};
        standing = access;
      } else if (standing) {
        difference.departures.insert(*standing);
      }
      out.push_back(std::move(difference));
    }
    const bool cleared = step.op == Op::kClearFaults || (step.op == Op::kDma && !step.keep);
    if (cleared) standing.reset();
  }
  return out;
}

Verdict Judge(const Case& recorded, std::vector<StepDifference> differences,
              const ConformanceOptions& options) {
  Verdict verdict;
  verdict.case_id = recorded.id;
  if (differences.empty()) return verdict;
  verdict.first_difference = differences.front().text;
  verdict.kind = Verdict::Kind::kFailed;
  if (options.qemu_quirks) return verdict;
  // Documented only if each difference runs into a departure and reproducing QEMU's departures
  // gives the recording whole.
  for (const StepDifference& d : differences) {
    if (d.departures.empty()) {
      verdict.first_difference = d.text;
      verdict.departures.clear();
      return verdict;
    }
    verdict.departures.insert(d.departures.begin(), d.departures.end());
  }
  const auto reproduced = Differences(recorded, /*qemu_quirks=*/true);
  if (!reproduced.empty()) {
    verdict.departures.clear();
    absl::StrAppend(&verdict.first_difference, "; with quirks ", reproduced.front().text);
    return verdict;
  }
  verdict.kind = Verdict::Kind::kDeparts;
  return verdict;
}

// The shadow cases have two sides: what QEMU did, which its rules must explain, and what our
// session does, which is held to the guest's tables in either mode.
Verdict RunShadowCase(const Case& recorded, const ConformanceOptions& options) {
  Verdict verdict;
  verdict.case_id = recorded.id;
  if (auto text = SessionDifference(recorded)) {
    verdict.kind = Verdict::Kind::kFailed;
    verdict.first_difference = *std::move(text);
    return verdict;
  }
  if (auto text = QemuShadowDifference(recorded)) {
    verdict.kind = Verdict::Kind::kFailed;
    verdict.first_difference = absl::StrCat("QEMU's rules: ", *text);
    return verdict;
  }
  if (options.qemu_quirks) return verdict;
  ShadowDepartures found = RecordedShadowDepartures(recorded);
  if (!found.unnamed.empty()) {
    verdict.kind = Verdict::Kind::kFailed;
    verdict.first_difference = std::move(found.unnamed);
  } else if (!found.departures.empty()) {
    verdict.kind = Verdict::Kind::kDeparts;
    verdict.first_difference = std::move(found.first);
    verdict.departures = std::move(found.departures);
  }
  return verdict;
}

}  // namespace

absl::string_view DepartureName(Departure departure) {
  for (const DepartureText& d : kDepartures) {
    if (d.departure == departure) return d.name;
  }
  return "unknown";
}

uint64_t FileReport::Count(Verdict::Kind kind) const {
  return static_cast<uint64_t>(std::count_if(verdicts.begin(), verdicts.end(),
                                             [&](const Verdict& v) { return v.kind == kind; }));
}

Verdict RunCase(const Case& recorded, const ConformanceOptions& options) {
  if (IsShadowCase(recorded)) return RunShadowCase(recorded, options);
  return Judge(recorded, Differences(recorded, options.qemu_quirks), options);
}

absl::StatusOr<FileReport> RunFile(const std::string& path, const ConformanceOptions& options) {
  auto lines = LineReader::Open(path, kMaxCaseBytes);
  if (!lines.ok()) return lines.status();
  FileReport report{path, {}};
  absl::string_view line;
  while ((*lines)->Next(&line)) {
    if (line.empty()) continue;
    const auto recorded = ParseCase(line);
    if (!recorded.ok()) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ":", (*lines)->line_number(), ": ", recorded.status().message()));
    }
    report.verdicts.push_back(RunCase(*recorded, options));
  }
  if (!(*lines)->status().ok()) return (*lines)->status();
  if (report.verdicts.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": holds no case"));
  }
  return report;
}

std::string ToText(std::span<const FileReport> reports, bool verbose) {
  std::string out;
  uint64_t passed = 0, failed = 0, departed = 0;
  std::map<Departure, uint64_t> by_departure;
  for (const FileReport& report : reports) {
    const uint64_t p = report.Count(Verdict::Kind::kPassed);
    const uint64_t f = report.Count(Verdict::Kind::kFailed);
    const uint64_t d = report.Count(Verdict::Kind::kDeparts);
    absl::StrAppendFormat(&out, "%s: %d passed, %d failed", report.path, p, f);
    if (d > 0) absl::StrAppendFormat(&out, ", %d depart as documented", d);
    out += "\n";
    passed += p;
    failed += f;
    departed += d;
    for (const Verdict& v : report.verdicts) {
      for (const Departure departure : v.departures) ++by_departure[departure];
      if (!verbose || v.kind == Verdict::Kind::kPassed) continue;
      absl::StrAppendFormat(&out, "  %s %s: %s\n", v.case_id,
                            v.kind == Verdict::Kind::kFailed ? "failed" : "departs",
                            v.first_difference);
    }
  }
  if (departed > 0) {
    absl::StrAppendFormat(&out, "%d depart as documented", departed);
    const char* separator = " (";
    for (const auto& [departure, count] : by_departure) {
      absl::StrAppendFormat(&out, "%s%s %d", separator, DepartureName(departure), count);
      separator = ", ";
    }
    out += ")\n";
  }
  absl::StrAppendFormat(&out, "%d passed, %d failed\n", passed, failed);
  return out;
}

}  // namespace viommu::conformance
