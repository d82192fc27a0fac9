// viommu replay: a recorded map/unmap stream at its recorded IOVAs.
#include <algorithm>
#include <chrono>
#include <cinttypes>
#include <cstdio>
#include <memory>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "guest_svc/client/command.h"
#include "guest_svc/client/load_input.h"
#include "guest_svc/client/output.h"
#include "guest_svc/client/service_pair.h"
#include "guest_svc/client/shared_flags.h"
#include "guest_svc/client/workload_client.h"
#include "iommu_core/dma/guest_config.h"
#include "iommu_core/shadow/hypervisor_session.h"

namespace viommu::client {
namespace {

constexpr char kProgram[] = "viommu replay";
constexpr char kExamples[] =
    "  viommu replay --trace=tests/data/linux/6.1_cmon_strict1_r4k/trace.txt.gz\n"
    "  viommu replay --trace=t.gz --policy=strict --descriptors=descriptors.jsonl\n"
    "  viommu replay --trace=t.gz --policy=lazy --caching_mode=off --hz=1000 --json=-\n";
constexpr uint64_t kWidth39 = uint64_t{1} << 39;

struct Options : RunFlags {
  std::string policy = "strict";
  std::string strategy = "walk";
  std::string hint = "auto";
  std::string caching_mode = "auto";
  std::string descriptors;
  std::string json;
  uint64_t live_pages = 0;

  void AddTo(FlagSet& flags) {
    flags.AddString("policy", &policy, "guest policy");
    flags.AddString("strategy", &strategy, "hypervisor strategy");
    flags.AddString("ih", &hint,
                    "invalidation hint at unmap: never, linux-6.12, or auto: as the trace's own "
                    "qi_submit lines, else never");
    flags.AddString("caching_mode", &caching_mode,
                    "on, off, or auto: as the recorded unit had it, else on");
    flags.AddNumber("live_pages", &live_pages, 0, uint64_t{1} << 24,
                    "resident 4K pages in the busiest domain");
    flags.AddString(
        "descriptors", &descriptors,
        "write every submitted descriptor here, waits included, one JSON object a line");
    AddJsonFlag(flags, &json, "the counts");
    RunFlags::AddTo(flags);
  }
};

// Appends descriptors to a file as they come; the file is whole or absent at the end.
class DescriptorLog {
 public:
  absl::Status Open(const std::string& path) {
    path_ = path;
    if (path.empty()) return absl::OkStatus();
    partial_ = path + ".partial";
    file_ = std::fopen(partial_.c_str(), "wb");
    if (file_ == nullptr) {
      return absl::InvalidArgumentError(absl::StrCat("cannot write ", path));
    }
    return absl::OkStatus();
  }
  ~DescriptorLog() {
    if (file_ == nullptr) return;
    std::fclose(file_);
    std::remove(partial_.c_str());
  }
  void Write(std::span<const uint64_t> words) {
    for (size_t i = 0; i + 1 < words.size(); i += 2) {
      if (file_ == nullptr) continue;
      std::fprintf(file_, "{\"n\":%" PRIu64 ",\"lo\":\"0x%" PRIx64 "\",\"hi\":\"0x%" PRIx64 "\"}\n",
                   count_++, words[i], words[i + 1]);
    }
  }
  absl::Status Close() {
    if (file_ == nullptr) return absl::OkStatus();
    const bool failed = std::ferror(file_) != 0;
    const bool closed = std::fclose(std::exchange(file_, nullptr)) == 0;
    if (failed || !closed || std::rename(partial_.c_str(), path_.c_str()) != 0) {
      return absl::FailedPreconditionError(absl::StrCat("cannot write ", path_));
    }
    return absl::OkStatus();
  }

 private:
  std::string path_;
  std::string partial_;
  std::FILE* file_ = nullptr;
  uint64_t count_ = 0;
};

// What the flags and the trace say together.
struct Settings {
  bool caching_mode = true;
  std::string hint = "never";
  std::string verify;  // as --verify, but off where it can say nothing
  std::vector<std::string> notes;
};

absl::StatusOr<Settings> Decide(const Options& options, const TraceInfo& info) {
  Settings settings;
  const auto policy = ParsePolicy(options.policy);
  if (!policy.ok()) return policy.status();
  if (auto strategy = ParseStrategy(options.strategy); !strategy.ok()) return strategy.status();
  if (!options.verify.empty()) {
    if (auto verify = ParseVerify(options.verify); !verify.ok()) return verify.status();
  }
  if (options.caching_mode == "auto") {
    settings.caching_mode = info.caching_mode.value_or(true);
  } else if (options.caching_mode == "on" || options.caching_mode == "off") {
    settings.caching_mode = options.caching_mode == "on";
  } else {
    return absl::InvalidArgumentError(
        absl::StrCat("--caching_mode: '", options.caching_mode, "' is not auto, on or off"));
  }
  if (options.hint == "auto") {
    settings.hint = info.hint.value_or(false) ? "linux-6.12" : "never";
  } else if (auto hint = ParseHintMode(options.hint); hint.ok()) {
    settings.hint = options.hint;
  } else {
    return hint.status();
  }
  const PolicyDecision decision = DecidePolicy(*policy, false, {settings.caching_mode});
  if (decision.effective != decision.requested) {
    settings.notes.push_back(absl::StrCat(
        "caching mode would make `", options.policy,
        "` strict (Linux since 5.11); run as if DMA-FQ had been written to the group's type"));
  }
  settings.verify = options.verify;
  if (!settings.caching_mode) {
    if (!options.verify.empty() && options.verify != "off") {
      return absl::InvalidArgumentError(
          "--verify needs caching mode: without it a hypervisor is not told about maps, and no "
          "shadow can equal the guest's tables");
    }
    settings.verify = "off";
    settings.notes.push_back(
        "without caching mode a hypervisor is not told about maps: the guest's side counts, the "
        "shadow cannot follow and is not verified");
  }
  return settings;
}

Json ToJson(const Options& options, const Settings& settings, const LoadInput& input,
            const v1::WorkloadResult& r) {
  const TraceInfo& info = input.trace.info;
  Json json;
  json["schema"] = "viommu.replay.v1";
  json["input"] = input.name;
  json["policy"] = r.policy();
  json["strategy"] = r.strategy();
  json["hz"] = options.hz;
  json["ih"] = settings.hint;
  json["caching_mode"] = settings.caching_mode;
  json["notes"] = settings.notes;
  json["trace"] = {
      {"lines", info.lines},   {"map_lines", info.maps},          {"lists", info.lists},
      {"unmaps", info.unmaps}, {"domains", info.domains},         {"devices", info.devices},
      {"cpus", info.cpus},     {"lost_events", info.lost_events}, {"skipped_lines", info.skipped}};
  json["maps"] = r.maps();
  json["unmaps"] = r.unmaps();
  json["failed_ops"] = r.failed_ops();
  json["exits"] = r.exits();
  json["descriptors"] = {{"iotlb_page", r.descriptors_iotlb_page()},
                         {"iotlb_domain", r.descriptors_iotlb_domain()},
                         {"iotlb_global", r.descriptors_iotlb_global()},
                         {"context", r.descriptors_context()},
                         {"device_tlb", r.descriptors_device_tlb()},
                         {"wait", r.descriptors_wait()}};
  json["flushes"] = {
      {"full", r.flushes_full()}, {"timeout", r.flushes_timeout()}, {"sync", r.flushes_sync()}};
  json["ptes_read"] = r.sync().ptes_read();
  json["ptes_changed"] = r.sync().ptes_changed();
  json["shadow_mismatches"] = r.sync().shadow_mismatches();
  json["verified_pages"] = r.sync().verified_pages();
  json["remote_pages"] = r.sync().remote_pages();
  json["remote_bytes"] = r.sync().remote_bytes();
  json["remote_round_trips"] = r.sync().remote_round_trips();
  json["stale_page_seconds"] = r.stale_page_seconds();
  json["stale_age_max_seconds"] = r.stale_age_max_seconds();
  json["stale_dma_hits"] = r.stale_dma_hits();
  json["reused_while_stale_pages"] = r.reused_while_stale_pages();
  json["modelled_ns_total"] = r.modelled_ns_total();
  json["virtual_seconds"] = r.virtual_seconds();
  json["wall_seconds"] = r.wall_seconds();
  return json;
}

void Print(std::FILE* out, const Options& options, const Settings& settings, const LoadInput& input,
           const v1::WorkloadResult& r) {
  const TraceInfo& info = input.trace.info;
  std::fprintf(out, "%s: %s lines, %u domains, %u devices, %u CPUs, %s\n", input.name.c_str(),
               Grouped(info.lines).c_str(), info.domains, info.devices, info.cpus,
               info.names_domains ? "domains named" : "one domain (no kprobe lines)");
  std::fprintf(out, "policy %s, strategy %s, caching mode %s, hint %s, %u Hz\n\n",
               r.policy().c_str(), r.strategy().c_str(), settings.caching_mode ? "on" : "off",
               settings.hint.c_str(), options.hz);
  TextTable table({"what", "count"});
  const auto add = [&](const char* name, uint64_t value) { table.Add({name, Grouped(value)}); };
  add("maps (lists)", r.maps());
  add("unmaps", r.unmaps());
  add("operations that failed", r.failed_ops());
  add("submissions (exits)", r.exits());
  add("page-selective invalidations", r.descriptors_iotlb_page());
  add("domain-selective invalidations", r.descriptors_iotlb_domain());
  add("global invalidations", r.descriptors_iotlb_global());
  add("context invalidations", r.descriptors_context());
  add("device-TLB invalidations", r.descriptors_device_tlb());
  add("waits", r.descriptors_wait());
  add("flushes, ring full", r.flushes_full());
  add("flushes, timer", r.flushes_timeout());
  add("guest entries read", r.sync().ptes_read());
  add("shadow entries changed", r.sync().ptes_changed());
  add("pages that differ from the reference walk", r.sync().shadow_mismatches());
  add("stale accesses that succeeded", r.stale_dma_hits());
  add("pages reused while stale", r.reused_while_stale_pages());
  std::fputs(table.ToString().c_str(), out);
  std::fprintf(out, "\nexposure: %s page seconds, oldest %s; modelled: %s (preset %s)\n",
               Short(r.stale_page_seconds()).c_str(),
               Duration(r.stale_age_max_seconds() * 1e9).c_str(),
               Duration(r.modelled_ns_total()).c_str(), options.cost_preset.c_str());
  for (const std::string& note : settings.notes) std::fprintf(out, "Note: %s.\n", note.c_str());
}

absl::StatusOr<v1::WorkloadResult> Run(const Options& options, const LoadInput& input,
                                       const Settings& settings) {
  auto preset = FindCostPreset(options.cost_preset);
  if (!preset.ok()) return preset.status();
  DescriptorLog log;
  if (absl::Status s = log.Open(options.descriptors); !s.ok()) return s;
  std::unique_ptr<ServicePair> pair;
  std::string address = options.guest;
  if (address.empty()) {
    PairOptions pair_options;
    pair_options.hypervisor_flags = {absl::StrCat("--dma_entry_limit=", kPairEntryLimit)};
    if (!settings.verify.empty()) {
      pair_options.hypervisor_flags.push_back(absl::StrCat("--verify=", settings.verify));
    }
    auto started = ServicePair::Start(pair_options);
    if (!started.ok()) return started.status();
    pair = *std::move(started);
    address = pair->guest_address();
  }
  const auto channel = Connect(address, options.tls);
  if (!channel.ok()) return channel.status();
  const auto guest = v1::GuestService::NewStub(*channel);
  v1::WorkloadSpec spec;
  spec.set_policy(options.policy);
  spec.set_strategy(options.strategy);
  spec.set_live_pages(options.live_pages);
  spec.set_force_lazy(true);
  spec.set_hz(options.hz);
  spec.set_hint(settings.hint);
  *spec.mutable_cost_preset() = *std::move(preset);
  spec.set_verify(settings.verify);
  spec.set_return_descriptors(!options.descriptors.empty());
  spec.set_address_width(input.trace.info.iova_end > kWidth39 ? 48 : 0);
  spec.set_touch_after_unmap(true);
  spec.set_no_caching_mode(!settings.caching_mode);
  Progress progress(kProgram);
  const auto start = std::chrono::steady_clock::now();
  WorkloadCallbacks callbacks;
  callbacks.progress = [&](uint64_t done, uint64_t total) {
    if (total == 0) return;
    const double part = std::min(1.0, static_cast<double>(done) / static_cast<double>(total));
    const double seconds =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    progress.Say(absl::StrFormat("%.0f %%, %s operations/s%s", 100 * part,
                                 Short(static_cast<double>(done) / seconds),
                                 Remaining(part, seconds)));
  };
  callbacks.descriptors = [&](std::span<const uint64_t> words) { log.Write(words); };
  auto result = RunWorkload(*guest, spec, input, callbacks);
  if (!result.ok()) {
    if (pair != nullptr) {
      if (absl::Status ended = pair->Check(); !ended.ok()) return ended;
    }
    return result.status();
  }
  if (absl::Status s = log.Close(); !s.ok()) return s;
  return result;
}

}  // namespace

int RunReplay(const Args& args) {
  Options options;
  FlagSet flags(kProgram, "replays a recorded map/unmap stream at its recorded times and IOVAs");
  options.AddTo(flags);
  if (const auto exit_code = ParseArgs(flags, kExamples, args)) return *exit_code;
  if (options.trace.empty()) {
    return Fail(kProgram,
                absl::InvalidArgumentError(
                    "--trace is needed; deploy/docs/record-a-trace.md says how to record one"));
  }
  const auto input =
      ReadInput(options.trace, "", TraceUse::kRecordedIovas, options.allow_lost_events);
  if (!input.ok()) return Fail(kProgram, input.status());
  const auto settings = Decide(options, input->trace.info);
  if (!settings.ok()) return Fail(kProgram, settings.status());
  const auto result = Run(options, *input, *settings);
  if (!result.ok()) return Fail(kProgram, result.status());
  Print(options.json == "-" ? stderr : stdout, options, *settings, *input, *result);
  if (!options.json.empty()) {
    absl::Status s = WriteJson(options.json, ToJson(options, *settings, *input, *result));
    if (!s.ok()) return Fail(kProgram, s);
  }
  if (const uint64_t mismatches = result->sync().shadow_mismatches(); mismatches != 0) {
    return Fail(kProgram, absl::InternalError(absl::StrCat(
                              Grouped(mismatches), " pages of shadow and reference walk differ")));
  }
  return kExitOk;
}

}  // namespace viommu::client
