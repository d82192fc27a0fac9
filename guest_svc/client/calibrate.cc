// viommu calibrate: a cost preset from a user's own measurements.
#include <google/protobuf/text_format.h>

#include <algorithm>
#include <cstdio>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "guest_svc/client/calibration.h"
#include "guest_svc/client/command.h"
#include "guest_svc/client/output.h"
#include "guest_svc/client/shared_flags.h"
#include "guest_svc/client/workload_client.h"

namespace viommu::client {
namespace {

constexpr char kProgram[] = "viommu calibrate";
constexpr char kExamples[] =
    "  viommu calibrate --strict=strict.txt --lazy=lazy.txt --out=mine.textproto\n"
    "  viommu calibrate --qemu_log=qemu.log --live_pages=65536 --name=lab7 --out=lab7.textproto\n"
    "  viommu compare --workload=mixed --cost_preset=lab7.textproto\n"
    "Record them (deploy/docs/record-a-trace.md has more):\n"
    "  dma_map_benchmark -t 1 -g 1 -s 10 > strict.txt      # in the guest, iommu.strict=1\n"
    "  dma_map_benchmark -t 1 -g 1 -s 10 > lazy.txt        # in the guest, iommu.strict=0\n"
    "  qemu-system-x86_64 ... -msg timestamp=on -D qemu.log \\\n"
    "    -d trace:vtd_inv_desc*,trace:vtd_inv_qi_head,trace:vfio_iommu_map_notify\n";

struct Options {
  std::string strict;
  std::string lazy;
  std::string qemu_log;
  uint64_t live_pages = 0;
  std::string base_preset = "qemu-trap";
  std::string name = "calibrated";
  std::string out;
  std::string json;
};

absl::StatusOr<Measurements> ReadAll(const Options& options) {
  Measurements measured;
  if (!options.strict.empty()) {
    auto result = ReadBenchmark(options.strict);
    if (!result.ok()) return result.status();
    measured.strict = *std::move(result);
  }
  if (!options.lazy.empty()) {
    auto result = ReadBenchmark(options.lazy);
    if (!result.ok()) return result.status();
    measured.lazy = *std::move(result);
  }
  if (!options.qemu_log.empty()) {
    auto log = ReadQemuLog(options.qemu_log, options.live_pages);
    if (!log.ok()) return log.status();
    measured.qemu_log = *std::move(log);
  }
  return measured;
}

// The text proto that --cost_preset takes.
absl::StatusOr<std::string> ToText(const v1::CostPreset& preset) {
  std::string text;
  if (!google::protobuf::TextFormat::PrintToString(preset, &text)) {
    return absl::InternalError("the preset cannot be printed");
  }
  return absl::StrCat(
      "# Made by `viommu calibrate`. Nanoseconds per event; low and high are the 10th and "
      "90th percentile\n# of what was measured.\n",
      text);
}

double ValueOf(const v1::CostPreset& preset, const std::string& name) {
  for (const v1::CostConstant& c : preset.constants()) {
    if (c.name() == name) return c.value_ns();
  }
  return 0;
}

bool Changed(const Calibration& calibration, const std::string& name) {
  return std::find(calibration.changed.begin(), calibration.changed.end(), name) !=
         calibration.changed.end();
}

}  // namespace

int RunCalibrate(const Args& args) {
  Options options;
  FlagSet flags(kProgram, "turns measurements of your own machine into a cost preset");
  flags.AddString("strict", &options.strict, "output of dma_map_benchmark in a strict guest");
  flags.AddString("lazy", &options.lazy, "output of dma_map_benchmark in a lazy guest");
  flags.AddString("qemu_log", &options.qemu_log, "QEMU's trace log with timestamps, gzip'd or not");
  flags.AddNumber("live_pages", &options.live_pages, 0, uint64_t{1} << 40,
                  "pages that were mapped during the log's domain flushes; needed unless the log "
                  "traces vtd_page_walk_one*");
  flags.AddString("base_preset", &options.base_preset,
                  "the kind of machine that was measured; its constants stand where nothing was: "
                  "name or path");
  flags.AddString("name", &options.name, "name of the new preset");
  flags.AddString("out", &options.out, "write the preset here; - for standard output");
  AddJsonFlag(flags, &options.json, "viommu.calibrate.v1");
  if (const auto exit_code = ParseArgs(flags, kExamples, args)) return *exit_code;
  if (options.out.empty() && options.json.empty()) {
    return Fail(kProgram, absl::InvalidArgumentError("--out is needed: where the preset goes"));
  }
  const auto base = FindCostPreset(options.base_preset);
  if (!base.ok()) return Fail(kProgram, base.status());
  const auto measured = ReadAll(options);
  if (!measured.ok()) return Fail(kProgram, measured.status());
  const auto calibration = Calibrate(*base, options.name, *measured);
  if (!calibration.ok()) return Fail(kProgram, calibration.status());

  TextTable table({"constant", "was", "now", "low", "high", "from"});
  Json constants = Json::array();
  for (const v1::CostConstant& c : calibration->preset.constants()) {
    const double was = ValueOf(*base, c.name());
    const bool changed = Changed(*calibration, c.name());
    table.Add({c.name(), Duration(was), Duration(c.value_ns()), Duration(c.low_ns()),
               Duration(c.high_ns()),
               changed ? c.source() : absl::StrCat(base->name(), ", unchanged")});
    constants.push_back({{"name", c.name()},
                         {"was_ns", was},
                         {"value_ns", c.value_ns()},
                         {"low_ns", c.low_ns()},
                         {"high_ns", c.high_ns()},
                         {"measured", changed},
                         {"source", c.source()}});
  }
  const bool to_stdout = options.out == "-" || options.json == "-";
  std::fputs(table.ToString().c_str(), to_stdout ? stderr : stdout);
  if (!options.out.empty()) {
    const auto text = ToText(calibration->preset);
    if (!text.ok()) return Fail(kProgram, text.status());
    if (absl::Status s = WriteFile(options.out, *text); !s.ok()) return Fail(kProgram, s);
    if (!to_stdout) {
      std::printf("\n%s written; use it with --cost_preset=%s\n", options.out.c_str(),
                  options.out.c_str());
    }
  }
  if (!options.json.empty()) {
    Json json;
    json["schema"] = "viommu.calibrate.v1";
    json["name"] = calibration->preset.name();
    json["base_preset"] = base->name();
    json["constants"] = std::move(constants);
    if (absl::Status s = WriteJson(options.json, json); !s.ok()) return Fail(kProgram, s);
  }
  return kExitOk;
}

}  // namespace viommu::client
