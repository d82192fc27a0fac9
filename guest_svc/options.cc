#include "guest_svc/options.h"

#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/time.h"
#include "svc_common/cost_presets.h"

namespace viommu {

void GuestOptions::AddTo(FlagSet& flags) {
  host.AddTo(flags);
  flags.AddString("hypervisor", &hypervisor, "gRPC address of hypervisor_svc");
  flags.AddString("memory_socket", &memory_socket,
                  "unix socket where hypervisor_svc hands out memory; empty: derived from "
                  "--hypervisor as hypervisor_svc derives it from --listen");
  flags.AddCustom(
      "policy", std::string(PolicyName(machine.policy)),
      [this](const std::string& value) {
        const absl::StatusOr<Policy> policy = ParsePolicy(value);
        if (policy.ok()) machine.policy = *policy;
        return policy.status();
      },
      "when an unmap is invalidated: passthrough, strict, lazy, lazy-single, lazy-psi, "
      "lazy-psi-batched or adaptive");
  flags.AddCustom(
      "map_sync", "each",
      [this](const std::string& value) {
        const absl::StatusOr<MapSync> map_sync = ParseMapSync(value);
        if (map_sync.ok()) machine.map_sync = *map_sync;
        return map_sync.status();
      },
      "how maps are invalidated under caching mode: each or merged");
  flags.AddBool("force_lazy", &machine.force_lazy,
                "keep a lazy policy under caching mode, as writing DMA-FQ to a group's type does");
  flags.AddCustom(
      "stale_age_bound", absl::FormatDuration(machine.stale_age_bound),
      [this](const std::string& value) {
        absl::Duration bound;
        if (!absl::ParseDuration(value, &bound) || bound < kMinStaleAgeBound ||
            bound > kMaxStaleAgeBound) {
          return absl::InvalidArgumentError("1ms to 10s");
        }
        machine.stale_age_bound = bound;
        return absl::OkStatus();
      },
      "policy adaptive: how long after its unmap a page may stay within a device's reach");
  flags.AddNumber("vcpus", &machine.vcpus, 1, kMaxVcpus, "virtual CPUs");
  flags.AddNumber("hz", &machine.hz, 24, 10'000, "guest tick, Hz");
  flags.AddNumber("ram_bytes", &machine.ram_bytes, kMinRamBytes, uint64_t{1} << 46,
                  "guest memory, page multiple");
  flags.AddCustom(
      "address_width", absl::StrCat(machine.address_width),
      [this](const std::string& value) {
        if (value != "39" && value != "48") return absl::InvalidArgumentError("39 or 48");
        machine.address_width = value == "39" ? 39 : 48;
        return absl::OkStatus();
      },
      "bits of device address space: 39 (3 levels) or 48 (4 levels)");
  flags.AddCustom(
      "iommus", "cm",
      [this](const std::string& value) {
        const std::vector<std::string> kinds = absl::StrSplit(value, ',');
        std::vector<bool> caching_mode;
        for (const std::string& kind : kinds) {
          if (kind != "cm" && kind != "nocm") {
            return absl::InvalidArgumentError(
                absl::StrCat("'", kind, "': a comma-separated list of cm and nocm"));
          }
          caching_mode.push_back(kind == "cm");
        }
        if (caching_mode.size() > kMaxIommus) {
          return absl::InvalidArgumentError(absl::StrCat("at most ", kMaxIommus, " vIOMMUs"));
        }
        machine.iommu_caching_mode = std::move(caching_mode);
        return absl::OkStatus();
      },
      "one vIOMMU each, with (cm) or without (nocm) caching mode");
  flags.AddCustom(
      "memory", "shared",
      [this](const std::string& value) {
        if (value != "shared" && value != "remote") {
          return absl::InvalidArgumentError("shared or remote");
        }
        remote_memory = value == "remote";
        return absl::OkStatus();
      },
      "how the hypervisor reaches guest memory: shared (one host), or remote (pages are asked for "
      "over the stream; no --memory_socket is needed)");
  flags.AddString("strategy", &hypervisor_strategy,
                  "strategy to ask of the hypervisor; empty: its own");
  flags.AddCustom(
      "cost_preset", machine.cost_model.preset_name,
      [this](const std::string& value) {
        absl::StatusOr<CostModel> model = LoadCostModel(value);
        if (!model.ok()) return model.status();
        machine.cost_model = *std::move(model);
        return absl::OkStatus();
      },
      "constants of modelled time: a preset's name, or a text proto file with a '/' in its path");
  flags.AddNumber("wait_spin_us", &wait_spin_us, 0, 1000,
                  "how long a vCPU polls for a completion before it sleeps, us; less often where "
                  "completions take longer; 0: it never polls");
  flags.AddNumber("max_runs", &max_runs, 1, 256, "RunWorkload calls at once");
  flags.AddNumber("max_trace_ops", &max_trace_ops, 1, uint64_t{1} << 32,
                  "operations in the trace of one RunWorkload");
  flags.AddNumber("max_run_ram_bytes", &max_run_ram_bytes, kMinRamBytes, uint64_t{1} << 46,
                  "guest memory of one RunWorkload machine");
}

}  // namespace viommu
