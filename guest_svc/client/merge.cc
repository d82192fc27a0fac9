// viommu merge: joins the JSON of a sharded `viommu compare` into one comparison.
#include <cstdio>
#include <utility>

#include "guest_svc/client/command.h"
#include "guest_svc/client/compare_document.h"
#include "guest_svc/client/compare_output.h"
#include "guest_svc/client/output.h"
#include "guest_svc/client/shared_flags.h"

namespace viommu::client {
namespace {

constexpr char kProgram[] = "viommu merge";
constexpr char kExamples[] =
    "  viommu compare --workload=mixed --shard=0/2 --json=0.json   # on one machine\n"
    "  viommu compare --workload=mixed --shard=1/2 --json=1.json   # on another\n"
    "  viommu merge --json=all.json --report=all.html 0.json 1.json\n";
constexpr uint64_t kMaxDocumentBytes = 256 << 20;

}  // namespace

int RunMerge(const Args& args) {
  OutputFiles out;
  FlagSet flags(kProgram, "joins the JSON files of a sharded `viommu compare` into one comparison");
  flags.AddString("report", &out.report, "write a self-contained HTML report here");
  AddJsonFlag(flags, &out.json, "viommu.compare.v1");
  flags.AddBool("sensitivity", &out.sensitivity,
                "how far each constant of the preset can move the answer");
  std::vector<std::string> files;
  if (const auto exit_code = ParseArgs(flags, kExamples, args, &files)) return *exit_code;
  if (files.empty()) {
    return Fail(kProgram, absl::InvalidArgumentError(
                              "no file to merge; give what `viommu compare --json=FILE` wrote"));
  }
  std::vector<NamedComparison> parts;
  for (const std::string& file : files) {
    const auto json = ReadJson(file, kMaxDocumentBytes);
    if (!json.ok()) return Fail(kProgram, json.status());
    auto comparison = ComparisonFromJson(*json, file);
    if (!comparison.ok()) return Fail(kProgram, comparison.status());
    parts.push_back({file, *std::move(comparison)});
  }
  auto merged = MergeComparisons(std::move(parts));
  if (!merged.ok()) return Fail(kProgram, merged.status());
  merged->command = QuoteCommand(kProgram, args);
  return Publish(kProgram, *merged, out);
}

}  // namespace viommu::client
