#include "guest_svc/workload_service.h"

#include <chrono>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "guest_svc/guest_memory.h"
#include "guest_svc/remote_sink.h"
#include "iommu_core/base/clock.h"
#include "iommu_core/base/errors.h"
#include "iommu_core/load/trace_source.h"
#include "iommu_core/load/workloads.h"
#include "iommu_core/mem/dirty_log.h"
#include "svc_common/conversions.h"
#include "svc_common/steady_deadline.h"

namespace viommu {
namespace {

constexpr absl::Duration kRunInvalidationTimeout = absl::Minutes(5);

constexpr const char* kTraceName = "trace";
// Tables of the load itself; a resident page adds its entry and its share of table pages.
constexpr uint64_t kTableBytes = uint64_t{64} << 20;
constexpr uint64_t kTableBytesPerLivePage = 16;
constexpr uint64_t kMaxLivePages = uint64_t{1} << 26;  // 256 GiB of mappings
constexpr uint64_t kMaxOps = uint64_t{1} << 32;
constexpr uint64_t kSpareBytes = uint64_t{2} << 20;  // below the buffers, and rounding
// Descriptor words of one message: 1 MiB.
constexpr int kDescriptorWords = 1 << 17;
constexpr std::chrono::milliseconds kProgressInterval{200};
constexpr std::chrono::seconds kSessionTimeout{30};

void FillResult(const RunResult& result, v1::WorkloadResult* out) {
  out->set_maps(result.maps);
  out->set_unmaps(result.unmaps);
  out->set_pages_mapped(result.pages_mapped);
  out->set_pages_unmapped(result.pages_unmapped);
  out->set_map_updates(result.map_updates);
  out->set_unmap_updates(result.unmap_updates);
  out->set_exits(result.exits);
  out->set_descriptors_iotlb_page(result.descriptors_iotlb_page);
  out->set_descriptors_iotlb_domain(result.descriptors_iotlb_domain);
  out->set_descriptors_iotlb_global(result.descriptors_iotlb_global);
  out->set_descriptors_context(result.descriptors_context);
  out->set_descriptors_device_tlb(result.descriptors_device_tlb);
  out->set_descriptors_wait(result.descriptors_wait);
  out->set_flushes_full(result.flushes_full);
  out->set_flushes_timeout(result.flushes_timeout);
  out->set_flushes_sync(result.flushes_sync);
  *out->mutable_sync() = ToProto(result.sync);
  out->set_stale_page_seconds(result.stale_page_seconds);
  out->set_stale_age_max_seconds(result.stale_age_max_seconds);
  out->set_stale_dma_hits(result.stale_dma_hits);
  out->set_reused_while_stale_pages(result.reused_while_stale_pages);
  out->set_modelled_guest_ns(result.modelled.guest_ns);
  out->set_modelled_exit_ns(result.modelled.exit_ns);
  out->set_modelled_walk_ns(result.modelled.walk_ns);
  out->set_modelled_dma_ns(result.modelled.dma_ns);
  out->set_modelled_hw_ns(result.modelled.hw_ns);
  out->set_modelled_wait_ns(result.modelled.wait_ns);
  out->set_modelled_ns_total(result.modelled_ns_total);
  out->set_virtual_seconds(result.virtual_seconds);
  out->set_wall_seconds(result.wall_seconds);
  out->set_wall_ns_per_unmap_p50(result.wall_ns_per_unmap_p50);
  out->set_wall_ns_per_unmap_p99(result.wall_ns_per_unmap_p99);
  out->set_failed_ops(result.failed_ops);
}

}  // namespace

absl::Status AppendTrace(const v1::TraceChunk& chunk, uint64_t max_ops, std::vector<LoadOp>* ops) {
  const int n = chunk.kind_size();
  if (chunk.time_ns_size() != n || chunk.cpu_size() != n || chunk.domain_size() != n ||
      chunk.iova_size() != n || chunk.guest_pa_size() != n || chunk.size_bytes_size() != n ||
      chunk.flags_size() != n || chunk.source_id_size() != n ||
      (chunk.tag_size() != n && chunk.tag_size() != 0)) {
    return errors::Invalid("the columns of a trace chunk have different lengths");
  }
  if (ops->size() + static_cast<uint64_t>(n) > max_ops) {
    return errors::LimitReached("--max_trace_ops", max_ops);
  }
  for (int i = 0; i < n; ++i) {
    const uint64_t last_time = ops->empty() ? 0 : ops->back().time_ns;
    if (chunk.kind(i) > static_cast<uint32_t>(LoadOp::Kind::kMakeLazy) ||
        chunk.cpu(i) >= kMaxVcpus || chunk.source_id(i) > 0xffff || chunk.flags(i) > 31 ||
        chunk.size_bytes(i) > ~chunk.guest_pa(i) || chunk.size_bytes(i) > ~chunk.iova(i) ||
        chunk.time_ns(i) < last_time) {
      return errors::Invalid(
          absl::StrCat("operation ", ops->size(), " of the trace is out of range or out of order"));
    }
    const uint32_t flags = chunk.flags(i);
    LoadOp& op = ops->emplace_back();
    op.kind = static_cast<LoadOp::Kind>(chunk.kind(i));
    op.access = {(flags & 1) != 0, (flags & 2) != 0};
    op.list_continues = (flags & 4) != 0;
    op.choose_iova = (flags & 8) != 0;
    op.device_tlb = (flags & 16) != 0;
    op.cpu = static_cast<uint16_t>(chunk.cpu(i));
    op.source_id = SourceId(static_cast<uint16_t>(chunk.source_id(i)));
    op.domain = chunk.domain(i);
    op.time_ns = chunk.time_ns(i);
    op.iova = Iova(chunk.iova(i));
    op.guest_pa = GuestPhys(chunk.guest_pa(i));
    op.size_bytes = chunk.size_bytes(i);
    if (chunk.tag_size() != 0) op.tag = chunk.tag(i);
  }
  return absl::OkStatus();
}

absl::StatusOr<GuestConfig> RunConfig(const v1::WorkloadSpec& spec, const GuestConfig& server,
                                      const LoadSource& source) {
  GuestConfig config = server;
  config.force_lazy = spec.force_lazy();
  // On the virtual clock nobody waits: only a hypervisor that is gone may end a run.
  config.invalidation_timeout = kRunInvalidationTimeout;
  config.vcpus = source.vcpus();
  config.iommu_caching_mode = {!spec.no_caching_mode()};
  if (!spec.policy().empty()) {
    const absl::StatusOr<Policy> policy = ParsePolicy(spec.policy());
    if (!policy.ok()) return policy.status();
    config.policy = *policy;
  }
  if (!spec.map_sync().empty()) {
    const absl::StatusOr<MapSync> map_sync = ParseMapSync(spec.map_sync());
    if (!map_sync.ok()) return map_sync.status();
    config.map_sync = *map_sync;
  }
  if (!spec.hint().empty()) {
    const absl::StatusOr<HintMode> hint = ParseHintMode(spec.hint());
    if (!hint.ok()) return hint.status();
    config.hint = *hint;
  }
  if (spec.has_cost_preset()) {
    absl::StatusOr<CostModel> model = FromProto(spec.cost_preset());
    if (!model.ok()) return model.status();
    config.cost_model = *std::move(model);
  }
  if (spec.hz() != 0) config.hz = spec.hz();
  if (spec.address_width() != 0) config.address_width = static_cast<int>(spec.address_width());
  if (spec.live_pages() > kMaxLivePages) {
    return errors::Invalid(absl::StrCat("live_pages is at most ", kMaxLivePages));
  }
  config.table_region_bytes =
      AlignUp(kTableBytes + spec.live_pages() * kTableBytesPerLivePage, kPageSize);
  // Every resident page is a guest page of its own.
  config.ram_bytes =
      AlignUp(std::max(source.ram_bytes(), spec.live_pages() * kPageSize), kPageSize) +
      kSpareBytes + config.table_region_bytes;
  config.ram_bytes =
      AlignUp(config.ram_bytes + DirtyLogBytes(config.ram_bytes) * 2, uint64_t{1} << 20);
  if (absl::Status status = CheckConfig(config); !status.ok()) return status;
  return config;
}

absl::Status WorkloadService::Run(grpc::ServerContext& context, Stream& stream) {
  absl::Cleanup leave = [this] { --runs_; };
  if (++runs_ > options_.max_runs) return errors::LimitReached("--max_runs", options_.max_runs);
  v1::RunWorkloadRequest request;
  if (!stream.Read(&request) || !request.has_spec()) {
    return errors::Invalid("the first message of a run is its spec");
  }
  const v1::WorkloadSpec spec = request.spec();
  std::vector<LoadOp> ops;
  while (stream.Read(&request)) {
    if (!request.has_trace() || spec.workload() != kTraceName) {
      return errors::Invalid("after the spec come trace chunks, if the workload is \"trace\"");
    }
    if (absl::Status s = AppendTrace(request.trace(), options_.max_trace_ops, &ops); !s.ok()) {
      return s;
    }
  }
  if (spec.vcpus() > kMaxVcpus)
    return errors::Invalid(absl::StrCat("at most ", kMaxVcpus, " vcpus"));
  if (spec.workload() == kTraceName) {
    if (ops.empty()) return errors::Invalid("the trace has no operations");
    uint32_t cpus = 0;
    for (const LoadOp& op : ops) cpus = std::max<uint32_t>(cpus, op.cpu + 1);
    if (spec.vcpus() != 0 && spec.vcpus() < cpus) {
      return errors::Invalid(absl::StrCat("the trace has ", cpus, " vcpus"));
    }
    TraceSource source(std::move(ops), spec.vcpus());
    return RunSpec(context, stream, spec, source);
  }
  WorkloadParams params;
  params.seed = spec.seed();
  if (spec.op_count() > kMaxOps) return errors::Invalid("op_count is at most 2^32");
  if (spec.op_count() != 0) params.ops = spec.op_count();
  if (spec.vcpus() != 0) params.vcpus = spec.vcpus();
  const absl::StatusOr<std::unique_ptr<LoadSource>> source = MakeWorkload(spec.workload(), params);
  if (!source.ok()) return source.status();
  return RunSpec(context, stream, spec, **source);
}

absl::Status WorkloadService::RunSpec(grpc::ServerContext& context, Stream& stream,
                                      const v1::WorkloadSpec& spec, LoadSource& source) {
  absl::StatusOr<GuestConfig> config = RunConfig(spec, options_.machine, source);
  if (!config.ok()) return config.status();
  if (config->ram_bytes > options_.max_run_ram_bytes) {
    return errors::LimitReached("--max_run_ram_bytes", options_.max_run_ram_bytes);
  }
  absl::StatusOr<std::unique_ptr<GuestMemory>> memory =
      GuestMemory::Create(options_.remote_memory, memory_socket_, config->ram_bytes);
  if (!memory.ok()) return memory.status();
  RemoteSinkOptions sink_options;
  sink_options.hypervisor = options_.hypervisor;
  sink_options.caps = GuestCapabilities(*config, 0);
  sink_options.haw_bits = config->address_width;
  sink_options.dirty_log_base = DirtyLogBase(*config, 0).value();
  sink_options.strategy = spec.strategy().empty() ? options_.hypervisor_strategy : spec.strategy();
  sink_options.verify = spec.verify();
  sink_options.recover = false;
  sink_options.wait_spin = std::chrono::microseconds(options_.wait_spin_us);
  RemoteSink sink(channel_, **memory, metrics_, sink_options);
  if (absl::Status status = sink.Open(); !status.ok()) return status;
  absl::Cleanup close = [&sink] { sink.Close().IgnoreError(); };  // else its time to live ends it

  VirtualClock clock;
  auto machine = GuestMachine::Create(*config, **memory, clock, {&sink});
  if (!machine.ok()) return machine.status();
  v1::RunWorkloadResponse log;
  if (spec.return_descriptors()) {
    (*machine)->set_descriptor_hook([&](std::span<const vtd::RawDescriptor> descriptors) {
      for (const vtd::RawDescriptor& d : descriptors) {
        log.mutable_descriptors()->add_words(d.qw0);
        log.mutable_descriptors()->add_words(d.qw1);
      }
      if (log.descriptors().words_size() < kDescriptorWords) return;
      stream.Write(log);  // a failed write shows as a cancelled call
      log.Clear();
    });
  }
  RunOptions run;
  run.live_pages = spec.live_pages();
  run.touch_after_unmap = spec.touch_after_unmap();
  run.address_width = config->address_width;
  auto last_progress = std::chrono::steady_clock::now();
  run.progress = [&](uint64_t done, uint64_t total) {
    const auto now = std::chrono::steady_clock::now();
    if (now - last_progress < kProgressInterval) return;
    last_progress = now;
    v1::RunWorkloadResponse response;
    response.mutable_progress()->set_done_op_count(done);
    response.mutable_progress()->set_total_op_count(total);
    stream.Write(response);
  };
  run.cancelled = [&] { return context.IsCancelled() || draining_.load(); };
  const absl::StatusOr<RunResult> result = RunLoad(source, **machine, clock, run);
  if (!result.ok()) return result.status();
  if (log.has_descriptors()) stream.Write(log);

  v1::Session session;
  {
    v1::GetSessionRequest request;
    request.set_session_id(sink.state().session_id);
    grpc::ClientContext call;
    call.set_deadline(GrpcDeadline(std::chrono::steady_clock::now() + kSessionTimeout));
    const grpc::Status status =
        v1::HypervisorService::NewStub(channel_)->GetSession(&call, request, &session);
    if (!status.ok()) return FromGrpcStatus(status);
  }
  v1::RunWorkloadResponse response;
  v1::WorkloadResult* out = response.mutable_result();
  FillResult(*result, out);
  out->set_policy(std::string(PolicyName((*machine)->policy().effective)));
  out->set_strategy(sink.state().strategy);
  out->set_pinned_pages_max(session.pinned_bytes_max() / kPageSize);
  out->set_refused_pages(session.refused_page_count());
  out->set_iotlb_hits(session.iotlb_hits());
  out->set_iotlb_misses(session.iotlb_misses());
  out->set_live_pages(spec.live_pages());
  out->set_vcpus(config->vcpus);
  out->set_session_id(session.session_id());
  if (!stream.Write(response)) return absl::CancelledError("the caller is gone");
  return absl::OkStatus();
}

}  // namespace viommu
