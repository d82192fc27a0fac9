// viommu status: the sessions of a hypervisor.
#include <cstdio>

#include "absl/strings/str_cat.h"
#include "guest_svc/client/command.h"
#include "guest_svc/client/output.h"
#include "guest_svc/client/shared_flags.h"
#include "guest_svc/client/workload_client.h"
#include "svc_common/conversions.h"
#include "viommu/v1/hypervisor_service.grpc.pb.h"

namespace viommu::client {
namespace {

constexpr char kProgram[] = "viommu status";
constexpr char kExamples[] =
    "  viommu status --hypervisor=unix:/tmp/viommu-hypervisor.sock\n"
    "  viommu status --hypervisor=127.0.0.1:7002 --json=-\n";
constexpr auto kDeadline = std::chrono::seconds(10);

Json ToJson(const v1::ListSessionsResponse& list) {
  Json sessions = Json::array();
  for (const v1::Session& s : list.sessions()) {
    sessions.push_back({{"session_id", s.session_id()},
                        {"guest_instance_id", s.guest_instance_id()},
                        {"strategy", s.strategy()},
                        {"connected", s.connected()},
                        {"completed_sequence", s.completed_sequence()},
                        {"devices", s.device_count()},
                        {"domains", s.domain_count()},
                        {"guest_ram_bytes", s.guest_ram_bytes()},
                        {"live_pages", s.live_page_count()},
                        {"pinned_bytes", s.pinned_bytes()},
                        {"pinned_bytes_max", s.pinned_bytes_max()},
                        {"shadow_table_pages", s.shadow_table_page_count()},
                        {"bookkeeping_bytes", s.bookkeeping_bytes()},
                        {"refused_pages", s.refused_page_count()},
                        {"descriptors", s.cost().descriptor_count()},
                        {"ptes_read", s.cost().ptes_read()},
                        {"ptes_changed", s.cost().ptes_changed()},
                        {"dma_maps", s.cost().dma_maps()},
                        {"dma_unmaps", s.cost().dma_unmaps()},
                        {"shadow_mismatches", s.cost().shadow_mismatches()},
                        {"stale_dma_hits", s.stale_dma_hits()},
                        {"remote_pages", s.cost().remote_pages()},
                        {"remote_bytes", s.cost().remote_bytes()},
                        {"remote_round_trips", s.cost().remote_round_trips()},
                        {"work_slices", s.work_slice_count()},
                        {"turn_waits", s.turn_wait_count()},
                        {"work_wall_seconds", static_cast<double>(s.work_wall_ns()) / 1e9},
                        {"busy_wall_seconds", static_cast<double>(s.busy_wall_ns()) / 1e9}});
  }
  Json json;
  json["schema"] = "viommu.status.v1";
  json["sessions"] = std::move(sessions);
  return json;
}

}  // namespace

int RunStatus(const Args& args) {
  std::string hypervisor;
  std::string json;
  TlsFlags tls;
  FlagSet flags(kProgram, "sessions, live pages, pins and costs so far");
  flags.AddString("hypervisor", &hypervisor, "address of hypervisor_svc");
  AddJsonFlag(flags, &json, "viommu.status.v1");
  tls.AddTo(flags);
  if (const auto exit_code = ParseArgs(flags, kExamples, args)) return *exit_code;
  if (hypervisor.empty()) {
    return Fail(
        kProgram,
        absl::InvalidArgumentError(
            "--hypervisor is needed: the address that hypervisor_svc printed as READY grpc="));
  }
  const auto channel = Connect(hypervisor, tls);
  if (!channel.ok()) return Fail(kProgram, channel.status());
  const auto stub = v1::HypervisorService::NewStub(*channel);
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + kDeadline);
  v1::ListSessionsResponse list;
  const absl::Status status =
      FromGrpcStatus(stub->ListSessions(&context, v1::ListSessionsRequest(), &list));
  if (!status.ok()) return Fail(kProgram, status);
  if (!json.empty()) {
    if (absl::Status s = WriteJson(json, ToJson(list)); !s.ok()) return Fail(kProgram, s);
    if (json == "-") return kExitOk;
  }
  if (list.sessions().empty()) {
    std::printf("no sessions\n");
    return kExitOk;
  }
  TextTable table({"session", "strategy", "stream", "devices", "domains", "live pages",
                   "pinned MiB", "table pages", "refused", "descriptors", "entries read", "changed",
                   "stale hits", "mismatches", "work ms", "slices", "turn waits", "remote pages"});
  for (const v1::Session& s : list.sessions()) {
    table.Add(
        {s.session_id().substr(0, 8), s.strategy(), s.connected() ? "up" : "down",
         absl::StrCat(s.device_count()), absl::StrCat(s.domain_count()),
         Grouped(s.live_page_count()), Grouped(s.pinned_bytes() >> 20),
         Grouped(s.shadow_table_page_count()), Grouped(s.refused_page_count()),
         Grouped(s.cost().descriptor_count()), Grouped(s.cost().ptes_read()),
         Grouped(s.cost().ptes_changed()), Grouped(s.stale_dma_hits()),
         Grouped(s.cost().shadow_mismatches()), Grouped(s.work_wall_ns() / 1'000'000),
         Grouped(s.work_slice_count()), Grouped(s.turn_wait_count()),
         s.memory_kind() == v1::GUEST_MEMORY_KIND_REMOTE ? Grouped(s.cost().remote_pages()) : "-"});
  }
  std::fputs(table.ToString().c_str(), stdout);
  return kExitOk;
}

}  // namespace viommu::client
