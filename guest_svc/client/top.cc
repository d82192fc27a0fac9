// viommu top: the sessions of a hypervisor, live.
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "guest_svc/client/command.h"
#include "guest_svc/client/service_pair.h"
#include "guest_svc/client/shared_flags.h"
#include "guest_svc/client/top_table.h"
#include "guest_svc/client/workload_client.h"
#include "svc_common/conversions.h"
#include "viommu/v1/guest_service.grpc.pb.h"
#include "viommu/v1/hypervisor_service.grpc.pb.h"

namespace viommu::client {
namespace {

constexpr char kProgram[] = "viommu top";
constexpr char kExamples[] =
    "  viommu top --hypervisor=unix:/tmp/viommu-hypervisor.sock\n"
    "  viommu top --hypervisor=127.0.0.1:7001 --guest=127.0.0.1:7002,127.0.0.1:7003\n"
    "  viommu top --hypervisor=127.0.0.1:7001 --once --interval=1s --json=-\n";
constexpr auto kDeadline = std::chrono::seconds(10);
constexpr auto kNap = std::chrono::milliseconds(50);
using Clock = std::chrono::steady_clock;

struct Options {
  std::string hypervisor;
  std::string guest;
  std::string interval = "2s";
  std::string cost_preset = "qemu-trap";
  bool once = false;
  std::string json;
  TlsFlags tls;
};

class Services {
 public:
  static absl::StatusOr<Services> Reach(const Options& options) {
    Services out;
    const auto channel = Connect(options.hypervisor, options.tls);
    if (!channel.ok()) return channel.status();
    out.hypervisor_ = v1::HypervisorService::NewStub(*channel);
    if (options.guest.empty()) return out;
    const auto guests = SplitList(options.guest);
    if (!guests.ok()) return guests.status();
    for (const std::string& address : *guests) {
      const auto guest = Connect(address, options.tls);
      if (!guest.ok()) return guest.status();
      out.guests_.push_back(v1::GuestService::NewStub(*guest));
    }
    return out;
  }

  absl::StatusOr<TopSample> Look() const {
    TopSample sample;
    sample.seconds = std::chrono::duration<double>(Clock::now().time_since_epoch()).count();
    {
      grpc::ClientContext context;
      context.set_deadline(std::chrono::system_clock::now() + kDeadline);
      const absl::Status status = FromGrpcStatus(
          hypervisor_->ListSessions(&context, v1::ListSessionsRequest(), &sample.sessions));
      if (!status.ok()) return status;
    }
    for (const auto& guest : guests_) {
      grpc::ClientContext context;
      context.set_deadline(std::chrono::system_clock::now() + kDeadline);
      // A guest that has gone shows as a session without a policy.
      v1::GuestStatus status;
      if (guest->GetStatus(&context, v1::GetStatusRequest(), &status).ok()) {
        sample.guests.push_back(std::move(status));
      }
    }
    return sample;
  }

 private:
  std::unique_ptr<v1::HypervisorService::Stub> hypervisor_;
  std::vector<std::unique_ptr<v1::GuestService::Stub>> guests_;
};

void Show(const Options& options, const std::vector<TopRow>& rows) {
  const bool terminal = isatty(STDOUT_FILENO) != 0 && !options.once;
  if (terminal) std::fputs("\033[H\033[J", stdout);
  if (!options.once) {
    std::printf("%s  %s, sessions: %zu, modelled by %s\n",
                absl::FormatTime("%H:%M:%S", absl::Now(), absl::LocalTimeZone()).c_str(),
                options.hypervisor.c_str(), rows.size(), options.cost_preset.c_str());
  }
  std::printf("%s%s", ToText(rows).c_str(), terminal ? "\nCtrl-C ends.\n" : "");
  std::fflush(stdout);
}

int Watch(const Options& options, const Services& services, const CostModel& model,
          absl::Duration interval) {
  std::atomic<bool> stop{false};
  OnFirstSignal([&stop] { stop = true; });
  auto before = services.Look();
  while (before.ok() && !stop) {
    const Clock::time_point due = Clock::now() + absl::ToChronoNanoseconds(interval);
    while (Clock::now() < due && !stop) {
      std::this_thread::sleep_for(std::min<Clock::duration>(kNap, due - Clock::now()));
    }
    if (stop) break;
    auto now = services.Look();
    if (now.ok()) {
      const std::vector<TopRow> rows = TopRows(*before, *now, model);
      if (options.json != "-") Show(options, rows);
      if (!options.json.empty()) {
        if (absl::Status s = WriteJson(options.json, ToJson(rows)); !s.ok()) {
          now = s;
        }
      }
    }
    before = std::move(now);
    if (options.once) break;
  }
  OnFirstSignal(nullptr);
  return before.ok() ? kExitOk : Fail(kProgram, before.status());
}

}  // namespace

int RunTop(const Args& args) {
  Options options;
  FlagSet flags(kProgram,
                "sessions of a running hypervisor, again and again: policies, cost per unmap, "
                "stale pages");
  flags.AddString("hypervisor", &options.hypervisor, "address of hypervisor_svc");
  flags.AddString("guest", &options.guest,
                  "addresses of guest_svc, comma-separated: adds policy, unmaps and stale pages");
  flags.AddString("interval", &options.interval, "between two looks, e.g. 500ms, 2s");
  flags.AddBool("once", &options.once, "two looks, one table, then end");
  AddCostPresetFlag(flags, &options.cost_preset);
  AddJsonFlag(flags, &options.json, "viommu.top.v1 (with --once)");
  options.tls.AddTo(flags);
  if (const auto exit_code = ParseArgs(flags, kExamples, args)) return *exit_code;
  if (options.hypervisor.empty()) {
    return Fail(kProgram, absl::InvalidArgumentError("--hypervisor is needed: the address that "
                                                     "hypervisor_svc printed as READY grpc="));
  }
  absl::Duration interval;
  if (!absl::ParseDuration(options.interval, &interval) || interval < absl::Milliseconds(50)) {
    return Fail(kProgram, absl::InvalidArgumentError(absl::StrCat("--interval: '", options.interval,
                                                                  "' is no duration of at least "
                                                                  "50ms, like 2s")));
  }
  if (!options.json.empty() && !options.once) {
    return Fail(kProgram, absl::InvalidArgumentError("--json needs --once"));
  }
  const auto preset = FindCostPreset(options.cost_preset);
  if (!preset.ok()) return Fail(kProgram, preset.status());
  const auto model = FromProto(*preset);
  if (!model.ok()) return Fail(kProgram, model.status());
  const auto services = Services::Reach(options);
  if (!services.ok()) return Fail(kProgram, services.status());
  return Watch(options, *services, *model, interval);
}

}  // namespace viommu::client
