// viommu compare: one row per policy x strategy x live pages x vcpus.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "guest_svc/client/command.h"
#include "guest_svc/client/compare_output.h"
#include "guest_svc/client/comparison.h"
#include "guest_svc/client/load_input.h"
#include "guest_svc/client/output.h"
#include "guest_svc/client/service_pair.h"
#include "guest_svc/client/shared_flags.h"
#include "guest_svc/client/workload_client.h"
#include "iommu_core/dma/guest_config.h"
#include "iommu_core/shadow/hypervisor_session.h"
#include "svc_common/service_host.h"

namespace viommu::client {
namespace {

constexpr char kProgram[] = "viommu compare";
constexpr char kExamples[] =
    "  viommu compare --trace=tests/data/linux/6.1_cmon_strict1_r4k/trace.txt.gz\n"
    "  viommu compare --workload=mixed --policies=strict,lazy --live_pages=1024,65536 --json=-\n"
    "  viommu compare --trace=t.gz --report=viommu-report.html --cost_preset=in-kernel-trap\n"
    "  viommu compare --workload=nvme-4k-rr --live_pages=4096,65536 --sensitivity\n"
    "  viommu compare --workload=rr --vcpus=1,2,4 --guest=127.0.0.1:7001 "
    "--hypervisor=127.0.0.1:7002\n";
constexpr uint64_t kMaxLivePages = uint64_t{1} << 24;

struct Options : RunFlags {
  std::string workload;
  std::string policies = "strict,lazy,lazy-single,lazy-psi";
  std::string strategies = "walk,walk-shared";
  std::string live_pages = "1024,16384,131072";
  std::string vcpus;
  uint64_t ops = 20'000;
  uint64_t seed = 1;
  std::string map_sync = "each";
  std::string hint = "never";
  std::string report;
  std::string json;
  std::string shard;
  std::string hypervisor;
  bool sensitivity = false;

  void AddTo(FlagSet& flags) {
    flags.AddString("workload", &workload, "synthetic load instead of a trace");
    flags.AddString("policies", &policies, "guest policies, comma-separated");
    flags.AddString("strategies", &strategies, "hypervisor strategies, comma-separated");
    flags.AddString("live_pages", &live_pages,
                    "resident 4K pages beside the load, comma-separated");
    flags.AddString("vcpus", &vcpus,
                    "vCPUs, comma-separated; empty: the trace's own, 1 for a workload");
    flags.AddNumber("ops", &ops, 1, uint64_t{1} << 32, "map/unmap pairs of a workload");
    flags.AddNumber("seed", &seed, 0, ~uint64_t{0}, "seed of a workload");
    flags.AddString("map_sync", &map_sync, "map-time invalidations: each or merged");
    flags.AddString("ih", &hint, "invalidation hint at unmap: never or linux-6.12");
    flags.AddString("report", &report, "write a self-contained HTML report here");
    AddJsonFlag(flags, &json, "viommu.compare.v1");
    flags.AddBool("sensitivity", &sensitivity,
                  "how far each constant of the preset can move the answer, low to high end");
    flags.AddString("shard", &shard,
                    "I/N: run every N-th row only, from the I-th (0 is the first); `viommu merge` "
                    "joins the parts' JSON");
    flags.AddString("hypervisor", &hypervisor,
                    "the hypervisor_svc behind --guest; must answer before the run starts");
    RunFlags::AddTo(flags);
  }
};

// "I/N": rows whose number modulo N is I.
absl::Status ReadShard(const std::string& text, ComparePlan& plan) {
  if (text.empty()) return absl::OkStatus();
  const size_t slash = text.find('/');
  const auto shard = ParseNumber(text.substr(0, slash));
  const auto shards = slash == std::string::npos ? shard : ParseNumber(text.substr(slash + 1));
  if (slash == std::string::npos || !shard.ok() || !shards.ok() || *shard >= *shards) {
    return absl::InvalidArgumentError(
        absl::StrCat("--shard: '", text, "' is not I/N with I below N, e.g. 0/4"));
  }
  plan.shard = *shard;
  plan.shards = *shards;
  return absl::OkStatus();
}

absl::StatusOr<ComparePlan> MakePlan(const Options& options, const LoadInput& input) {
  ComparePlan plan;
  plan.ops = options.ops;
  plan.hz = options.hz;
  plan.map_sync = options.map_sync;
  plan.hint = options.hint;
  if (absl::Status s = ReadShard(options.shard, plan); !s.ok()) return s;
  const auto policies = SplitList(options.policies);
  if (!policies.ok()) return policies.status();
  plan.policies = *policies;
  for (const std::string& name : plan.policies) {
    if (auto policy = ParsePolicy(name); !policy.ok()) return policy.status();
  }
  const auto strategies = SplitList(options.strategies);
  if (!strategies.ok()) return strategies.status();
  plan.strategies = *strategies;
  for (const std::string& name : plan.strategies) {
    if (auto strategy = ParseStrategy(name); !strategy.ok()) return strategy.status();
  }
  if (auto sync = ParseMapSync(options.map_sync); !sync.ok()) return sync.status();
  if (auto hint = ParseHintMode(options.hint); !hint.ok()) return hint.status();
  if (!options.verify.empty()) {
    if (auto verify = ParseVerify(options.verify); !verify.ok()) return verify.status();
  }
  const auto live = SplitNumbers(options.live_pages);
  if (!live.ok()) return live.status();
  plan.live_pages = *live;
  for (uint64_t pages : plan.live_pages) {
    if (pages > kMaxLivePages) {
      return absl::InvalidArgumentError(
          absl::StrCat("--live_pages: ", pages, " is more than ", kMaxLivePages));
    }
  }
  const uint32_t trace_cpus = input.trace.info.cpus;
  if (options.vcpus.empty()) {
    plan.vcpus = {trace_cpus};
  } else {
    const auto vcpus = SplitNumbers(options.vcpus);
    if (!vcpus.ok()) return vcpus.status();
    plan.vcpus = *vcpus;
    for (uint64_t n : plan.vcpus) {
      if (n < trace_cpus || n > kMaxVcpus) {
        return absl::InvalidArgumentError(
            absl::StrCat("--vcpus: ", n, " is not between ", trace_cpus, " and ", kMaxVcpus));
      }
    }
  }
  std::sort(plan.live_pages.begin(), plan.live_pages.end());
  return plan;
}

std::vector<std::string> Notes(const Options& options, const LoadInput& input,
                               const ComparePlan& plan, bool private_pair) {
  std::vector<std::string> notes;
  if (std::any_of(plan.policies.begin(), plan.policies.end(), [](const std::string& name) {
        return DecidePolicy(*ParsePolicy(name), false, {true}).effective != *ParsePolicy(name);
      })) {
    notes.push_back(
        "Caching mode would make every domain strict (Linux since 5.11); the lazy policies run as "
        "if DMA-FQ had been written to the group's type.");
  }
  if (private_pair) {
    notes.push_back(absl::StrCat("The private pair's DMA container has ", Grouped(kPairEntryLimit),
                                 " entries; VFIO's own limit of 65,535 would refuse maps of a "
                                 "larger live set."));
  }
  if (!input.trace.ops.empty()) {
    notes.push_back(
        "The trace runs as its drivers' calls: which IOVA a buffer gets is decided by the policy's "
        "own allocator state, times and sizes are the recorded ones.");
    if (input.recorded_domains > 0) {
      notes.push_back(
          absl::StrCat(input.recorded_domains,
                       input.recorded_domains == 1 ? " domain keeps its" : " domains keep their",
                       " recorded IOVAs, since unmaps do not pair with whole maps."));
    }
    if (input.trace.info.lost_events > 0) {
      notes.push_back(absl::StrCat("The kernel lost ", Grouped(input.trace.info.lost_events),
                                   " events of this trace."));
    }
  }
  if (plan.shards > 1) {
    notes.push_back(absl::StrCat("Sharded over ", plan.shards, " runs."));
  }
  if (!options.verify.empty()) notes.push_back(absl::StrCat("Oracle: ", options.verify, "."));
  notes.push_back(
      "Modelled time is exact counts times the preset's constants on a virtual clock; it is no "
      "measurement of a hypervisor.");
  return notes;
}

v1::WorkloadSpec SpecOf(const Options& options, const PlannedRow& row,
                        const v1::CostPreset& preset) {
  v1::WorkloadSpec spec;
  spec.set_policy(row.policy);
  spec.set_strategy(row.strategy);
  spec.set_live_pages(row.live_pages);
  spec.set_vcpus(static_cast<uint32_t>(row.vcpus));
  spec.set_op_count(options.ops);
  spec.set_seed(options.seed);
  spec.set_map_sync(options.map_sync);
  spec.set_force_lazy(true);
  spec.set_hz(options.hz);
  spec.set_hint(options.hint);
  *spec.mutable_cost_preset() = preset;
  spec.set_verify(options.verify);
  spec.set_touch_after_unmap(true);
  return spec;
}

absl::Status RunRows(const Options& options, const LoadInput& input,
                     v1::GuestService::StubInterface& guest, ServicePair* pair,
                     Comparison& comparison) {
  const std::vector<PlannedRow> rows = RowsOf(comparison.plan);
  Progress progress(kProgram);
  const auto start = std::chrono::steady_clock::now();
  const auto since = [](std::chrono::steady_clock::time_point from) {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - from).count();
  };
  for (const PlannedRow& row : rows) {
    const std::string name =
        absl::StrFormat("row %d of %d, %s x %s, %s live pages", comparison.rows.size() + 1,
                        rows.size(), row.policy, row.strategy, Grouped(row.live_pages));
    const auto row_start = std::chrono::steady_clock::now();
    progress.Say(absl::StrCat(name, ": mapping the live pages"));
    WorkloadCallbacks callbacks;
    callbacks.progress = [&](uint64_t done, uint64_t all) {
      const double part =
          all == 0 ? 0 : std::min(1.0, static_cast<double>(done) / static_cast<double>(all));
      // Rows count alike: what the next ones take is not known.
      const double of_all =
          (static_cast<double>(comparison.rows.size()) + part) / static_cast<double>(rows.size());
      progress.Say(absl::StrFormat("%s: %.0f %%, %s operations/s%s", name, 100 * part,
                                   Short(static_cast<double>(done) / since(row_start)),
                                   Remaining(of_all, since(start))));
    };
    absl::StatusOr<v1::WorkloadResult> result =
        RunWorkload(guest, SpecOf(options, row, comparison.cost_preset), input, callbacks);
    if (!result.ok()) {
      if (pair != nullptr) {
        if (absl::Status ended = pair->Check(); !ended.ok()) return ended;
      }
      return absl::Status(result.status().code(),
                          absl::StrCat(name, ": ", result.status().message()));
    }
    if (result->policy() != row.policy) {
      return absl::FailedPreconditionError(absl::StrCat(name, ": the guest ran `", result->policy(),
                                                        "` instead; this row would mislead"));
    }
    comparison.rows.push_back({row.policy, row.strategy, row.live_pages,
                               static_cast<uint32_t>(row.vcpus), *std::move(result)});
  }
  return absl::OkStatus();
}

absl::Status Run(const Options& options, Comparison& comparison) {
  const auto input =
      ReadInput(options.trace, options.workload, TraceUse::kDriverCalls, options.allow_lost_events);
  if (!input.ok()) return input.status();
  const auto plan = MakePlan(options, *input);
  if (!plan.ok()) return plan.status();
  auto preset = FindCostPreset(options.cost_preset);
  if (!preset.ok()) return preset.status();
  comparison.input = input->name;
  comparison.seed = options.seed;
  comparison.cost_preset = *std::move(preset);
  comparison.version = BuildVersion();
  comparison.plan = *plan;

  std::unique_ptr<ServicePair> pair;
  std::string address = options.guest;
  if (address.empty()) {
    if (!options.hypervisor.empty()) {
      return absl::InvalidArgumentError("--hypervisor without --guest");
    }
    PairOptions pair_options;
    pair_options.hypervisor_flags = {absl::StrCat("--dma_entry_limit=", kPairEntryLimit)};
    // A session may ask for less verifying than its server does, never for more.
    if (!options.verify.empty()) {
      pair_options.hypervisor_flags.push_back(absl::StrCat("--verify=", options.verify));
    }
    auto started = ServicePair::Start(pair_options);
    if (!started.ok()) return started.status();
    pair = *std::move(started);
    address = pair->guest_address();
  }
  if (!options.hypervisor.empty()) {
    if (auto hypervisor = Connect(options.hypervisor, options.tls); !hypervisor.ok()) {
      return hypervisor.status();
    }
  }
  comparison.notes = Notes(options, *input, *plan, pair != nullptr);
  const auto channel = Connect(address, options.tls);
  if (!channel.ok()) return channel.status();
  const auto guest = v1::GuestService::NewStub(*channel);
  return RunRows(options, *input, *guest, pair.get(), comparison);
}

}  // namespace

int RunCompare(const Args& args) {
  Options options;
  FlagSet flags(kProgram, "what each invalidation policy costs under each hypervisor strategy");
  options.AddTo(flags);
  if (const auto exit_code = ParseArgs(flags, kExamples, args)) return *exit_code;
  Comparison comparison;
  comparison.command = QuoteCommand(kProgram, args);
  if (absl::Status status = Run(options, comparison); !status.ok()) return Fail(kProgram, status);

  return Publish(kProgram, comparison, {options.json, options.report, options.sensitivity});
}

}  // namespace viommu::client
