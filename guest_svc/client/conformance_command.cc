// viommu conformance: recorded VT-d cases against our unit.
#include <cstdio>
#include <vector>

#include "absl/strings/str_cat.h"
#include "guest_svc/client/command.h"
#include "guest_svc/client/conformance.h"
#include "guest_svc/client/output.h"
#include "guest_svc/client/shared_flags.h"

namespace viommu::client {
namespace {

constexpr char kProgram[] = "viommu conformance";
constexpr char kExamples[] =
    "  viommu conformance tests/data/qemu/*.jsonl.gz\n"
    "  viommu conformance --quirks=qemu --verbose translation-seed1.jsonl\n"
    "  viommu conformance --json=- invalidation-seed1.jsonl\n";

using conformance::FileReport;
using conformance::Verdict;

const char* KindName(Verdict::Kind kind) {
  switch (kind) {
    case Verdict::Kind::kPassed:
      return "passed";
    case Verdict::Kind::kFailed:
      return "failed";
    case Verdict::Kind::kDeparts:
      return "departs";
  }
  return "";
}

Json ToJson(const std::vector<FileReport>& reports, bool qemu_quirks) {
  Json files = Json::array();
  for (const FileReport& report : reports) {
    Json cases = Json::array();
    for (const Verdict& verdict : report.verdicts) {
      Json j = {{"id", verdict.case_id}, {"verdict", KindName(verdict.kind)}};
      if (!verdict.first_difference.empty()) j["first_difference"] = verdict.first_difference;
      for (conformance::Departure departure : verdict.departures) {
        j["departures"].push_back(std::string(conformance::DepartureName(departure)));
      }
      cases.push_back(std::move(j));
    }
    files.push_back({{"path", report.path},
                     {"passed", report.Count(Verdict::Kind::kPassed)},
                     {"failed", report.Count(Verdict::Kind::kFailed)},
                     {"departs", report.Count(Verdict::Kind::kDeparts)},
                     {"cases", std::move(cases)}});
  }
  Json json;
  json["schema"] = "viommu.conformance.v1";
  json["quirks"] = qemu_quirks ? "qemu" : "none";
  json["files"] = std::move(files);
  return json;
}

}  // namespace

int RunConformance(const Args& args) {
  std::string quirks = "none";
  bool verbose = false;
  std::string json;
  std::vector<std::string> files;
  FlagSet flags(kProgram, "replays recorded VT-d cases (JSON lines, gzip'd or not) on our unit");
  flags.AddString("quirks", &quirks,
                  "qemu: reproduce QEMU's departures from the specification; none: follow it");
  flags.AddBool("verbose", &verbose, "show the first difference of each case that differs");
  AddJsonFlag(flags, &json, "every verdict");
  if (const auto exit_code = ParseArgs(flags, kExamples, args, &files)) return *exit_code;
  if (quirks != "qemu" && quirks != "none") {
    return Fail(kProgram, absl::InvalidArgumentError(
                              absl::StrCat("--quirks: '", quirks, "' is neither qemu nor none")));
  }
  if (files.empty())
    return Fail(kProgram,
                absl::InvalidArgumentError("no file of cases given; tests/data/qemu has some"));
  std::vector<FileReport> reports;
  uint64_t failed = 0;
  for (const std::string& path : files) {
    auto report = conformance::RunFile(path, {.qemu_quirks = quirks == "qemu"});
    if (!report.ok()) return Fail(kProgram, report.status());
    failed += report->Count(Verdict::Kind::kFailed);
    reports.push_back(*std::move(report));
  }
  std::fputs(conformance::ToText(reports, verbose).c_str(), json == "-" ? stderr : stdout);
  if (!json.empty()) {
    if (absl::Status s = WriteJson(json, ToJson(reports, quirks == "qemu")); !s.ok()) {
      return Fail(kProgram, s);
    }
  }
  return failed == 0 ? kExitOk : kExitFailed;
}

}  // namespace viommu::client
