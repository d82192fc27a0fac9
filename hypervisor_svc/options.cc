#include "hypervisor_svc/options.h"

#include <algorithm>
#include <thread>

#include "absl/status/status.h"
#include "svc_common/cost_presets.h"

namespace viommu {

uint32_t HypervisorOptions::DefaultConcurrentWalks() {
  return std::max(2u, std::thread::hardware_concurrency()) - 1;
}

void HypervisorOptions::AddTo(FlagSet& flags) {
  host.AddTo(flags);
  flags.AddString("memory_socket", &memory_socket,
                  "unix socket that hands guests their memory; empty: PATH.mem beside a unix "
                  "--listen, else mem-PORT.sock in the runtime folder");
  flags.AddCustom(
      "strategy", std::string(StrategyName(session.strategy)),
      [this](const std::string& value) {
        const absl::StatusOr<Strategy> strategy = ParseStrategy(value);
        if (strategy.ok()) session.strategy = *strategy;
        return strategy.status();
      },
      "how an invalidation is synchronised: walk, walk-shared, snapshot, dirty-log or nested");
  flags.AddCustom(
      "verify", "sampled",
      [this](const std::string& value) {
        const absl::StatusOr<Verify> verify = ParseVerify(value);
        if (verify.ok()) session.verify = *verify;
        return verify.status();
      },
      "how often shadow and reference walk are compared: off, sampled or full; sessions may ask "
      "for less");
  flags.AddCustom(
      "host_page", "4k",
      [this](const std::string& value) {
        if (value == "4k") {
          session.host_page_shift = 12;
        } else if (value == "2m") {
          session.host_page_shift = 21;
        } else if (value == "1g") {
          session.host_page_shift = 30;
        } else {
          return absl::InvalidArgumentError("4k, 2m or 1g");
        }
        return absl::OkStatus();
      },
      "granule of the guest-to-host memory map: 4k, 2m or 1g");
  flags.AddNumber("dma_entry_limit", &session.dma_entry_limit, 1, ~uint64_t{0},
                  "mappings that one DMA container holds (VFIO type1 dma_entry_limit)");
  flags.AddNumber("pin_limit_bytes", &session.pin_limit_bytes, 0, ~uint64_t{0},
                  "bytes that one session may pin (RLIMIT_MEMLOCK)");
  flags.AddNumber("iotlb_entries", &session.iotlb_entries, 8, 1u << 20,
                  "entries of the modelled physical IOTLB");
  flags.AddCustom(
      "cost_preset", cost_model.preset_name,
      [this](const std::string& value) {
        absl::StatusOr<CostModel> model = LoadCostModel(value);
        if (model.ok()) cost_model = *std::move(model);
        return model.status();
      },
      "constants of modelled time: a preset's name, or a text proto file with a '/' in its path");
  flags.AddBool("debug_calls", &debug_calls, "allow calls that show a session's mappings");

  flags.AddNumber("max_sessions", &max_sessions, 1, 4096, "sessions at once");
  flags.AddNumber("max_guest_ram_bytes", &max_guest_ram_bytes, kPageSize, uint64_t{1} << 46,
                  "memory of one guest");
  flags.AddNumber("max_devices", &session.max_devices, 1, 65536, "devices of one session");
  flags.AddNumber("max_domains", &session.max_domains, 1, 65536, "shadows of one session");
  flags.AddNumber("max_outstanding_batches", &max_outstanding_batches, 1, 4096,
                  "unanswered batches of one session");
  flags.AddNumber("max_batch_descriptors", &max_batch_descriptors, 256, 4096,
                  "descriptors in one batch");
  flags.AddNumber("max_message_bytes", &host.max_message_bytes, 64 << 10, kMaxMessageBytes,
                  "bytes in one message that is received");
  flags.AddNumber("session_ttl_ms", &session_ttl_ms, 10, 3'600'000,
                  "how long a session outlives its broken stream before its devices are blocked "
                  "and its memory is released");
  flags.AddNumber("max_work_per_invalidation", &session.max_work_per_invalidation, 512,
                  ~uint64_t{0}, "guest table entries read for one invalidation");
  flags.AddNumber("max_shadow_table_pages", &session.max_shadow_table_pages, 16, ~uint64_t{0},
                  "physical table pages of one session");
  flags.AddNumber("max_faults_retained", &session.max_faults_retained, 1, 1u << 20,
                  "faults kept for a session's slow readers; further ones are counted as dropped");
  flags.AddNumber("max_fault_watchers", &max_fault_watchers, 1, 1024, "WatchFaults calls at once");
  flags.AddNumber("concurrent_walks", &concurrent_walks, 1, 1024,
                  "long walks that run at once; further ones take turns with them");
  flags.AddNumber("open_timeout_ms", &open_timeout_ms, 10, 3'600'000,
                  "how long a stream may take to open a session");
  flags.AddNumber("remote_page_timeout_ms", &remote_page_timeout_ms, 10, 3'600'000,
                  "how long a remote guest may take to answer for its memory before its stream "
                  "ends");
  flags.AddNumber("max_remote_pages_per_invalidation", &max_remote_pages_per_invalidation, 1,
                  uint64_t{1} << 40, "pages copied from a remote guest for one request");
}

}  // namespace viommu
