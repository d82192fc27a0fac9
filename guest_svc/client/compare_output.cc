#include "guest_svc/client/compare_output.h"

#include <cstdio>

#include "absl/strings/str_cat.h"
#include "guest_svc/client/command.h"
#include "guest_svc/client/compare_document.h"
#include "guest_svc/client/output.h"
#include "guest_svc/client/report.h"
#include "guest_svc/client/sensitivity.h"

namespace viommu::client {

int Publish(const std::string& program, const Comparison& comparison, const OutputFiles& files) {
  // With --json=- standard output is the document's.
  std::FILE* out = files.json == "-" ? stderr : stdout;
  std::fprintf(out, "%s, seed %llu, cost preset %s\n\n%s\n", comparison.input.c_str(),
               static_cast<unsigned long long>(comparison.seed),
               comparison.cost_preset.name().c_str(), ToTable(comparison).c_str());
  std::fprintf(out, "%s\n", Verdict(comparison).c_str());
  for (const std::string& sentence : Answer(comparison)) {
    std::fprintf(out, "%s\n", sentence.c_str());
  }
  std::fprintf(out, "\n");
  const auto sensitivity =
      files.sensitivity ? ComputeSensitivity(comparison) : std::vector<PairSensitivity>();
  if (files.sensitivity) std::fputs(ToText(sensitivity).c_str(), out);
  for (const std::string& note : comparison.notes) std::fprintf(out, "Note: %s\n", note.c_str());
  if (!files.json.empty()) {
    Json json = ToJson(comparison);
    if (files.sensitivity) json["sensitivity"] = ToJson(sensitivity);
    if (absl::Status s = WriteJson(files.json, json); !s.ok()) return Fail(program, s);
  }
  if (!files.report.empty()) {
    if (absl::Status s = WriteFile(files.report, ToHtml(comparison)); !s.ok()) {
      return Fail(program, s);
    }
    std::fprintf(out, "Report: %s\n", files.report.c_str());
  }
  if (const uint64_t mismatches = ShadowMismatches(comparison); mismatches != 0) {
    return Fail(program, absl::InternalError(absl::StrCat(
                             Grouped(mismatches), " pages of shadow and reference walk differ")));
  }
  return kExitOk;
}

}  // namespace viommu::client
