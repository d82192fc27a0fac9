// viommu load: drives a running guest in real time.
#include <atomic>
#include <chrono>
#include <cstdio>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/time.h"
#include "guest_svc/client/command.h"
#include "guest_svc/client/latency_histogram.h"
#include "guest_svc/client/output.h"
#include "guest_svc/client/service_pair.h"
#include "guest_svc/client/shared_flags.h"
#include "guest_svc/client/workload_client.h"
#include "iommu_core/load/workloads.h"
#include "svc_common/conversions.h"

namespace viommu::client {
namespace {

constexpr char kProgram[] = "viommu load";
constexpr char kExamples[] =
    "  viommu load --guest=unix:/tmp/viommu-guest.sock --duration=30s\n"
    "  viommu load --guest=127.0.0.1:7001 --workload=nic-rx-classic --concurrency=8 --rate=20000\n";
constexpr uint32_t kMaxConcurrency = 256;
constexpr auto kCallDeadline = std::chrono::seconds(30);
// For tidying up where the guest has stopped answering: tried, not waited for.
constexpr auto kLeavingDeadline = std::chrono::seconds(1);
using Clock = std::chrono::steady_clock;

struct Options {
  std::string guest;
  std::string workload = "nvme-4k-rr";
  std::string duration = "30s";
  uint32_t concurrency = 1;
  uint64_t rate = 0;
  uint64_t seed = 1;
  std::string json;
  TlsFlags tls;

  void AddTo(FlagSet& flags) {
    flags.AddString("guest", &guest, "address of guest_svc");
    flags.AddString("workload", &workload, "sizes, directions and buffers in flight");
    flags.AddString("duration", &duration, "how long, e.g. 30s, 5m");
    flags.AddNumber("concurrency", &concurrency, 1, kMaxConcurrency,
                    "callers, each with a device and a domain of its own");
    flags.AddNumber("rate", &rate, 0, 100'000'000,
                    "operations a second over all callers; 0: as many as they can");
    flags.AddNumber("seed", &seed, 0, ~uint64_t{0}, "seed of the workload");
    AddJsonFlag(flags, &json, "the summary");
    tls.AddTo(flags);
  }
};

// What the callers share.
struct Shared {
  LatencyHistogram maps;
  LatencyHistogram unmaps;
  std::atomic<uint64_t> errors{0};
  std::atomic<bool> stop{false};
  std::mutex mutex;
  absl::Status fatal;  // the first error after which no call can work; under mutex

  void Fatal(const absl::Status& status) {
    std::lock_guard<std::mutex> lock(mutex);
    if (fatal.ok()) fatal = status;
    stop = true;
  }
};

class Caller {
 public:
  Caller(v1::GuestService::Stub& guest, const Options& options, uint32_t index,
         uint32_t first_source_id, Shared& shared)
      : guest_(guest),
        options_(options),
        index_(index),
        source_id_(first_source_id + index),
        shared_(shared) {}

  void Run() {
    absl::Status status = SetUp();
    if (status.ok()) status = Loop();
    if (!status.ok()) {
      shared_.Fatal(status);
      deadline_ = kLeavingDeadline;
    }
    TearDown();
  }

 private:
  template <typename Request, typename Response>
  absl::Status Call(grpc::Status (v1::GuestService::Stub::*method)(grpc::ClientContext*,
                                                                   const Request&, Response*),
                    const Request& request, Response* response) {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + deadline_);
    return FromGrpcStatus((guest_.*method)(&context, request, response));
  }

  absl::Status SetUp() {
    v1::CreateDomainRequest create;
    v1::Domain domain;
    absl::Status status = Call(&v1::GuestService::Stub::CreateDomain, create, &domain);
    if (!status.ok()) return status;
    domain_ = domain.domain();
    created_ = true;
    v1::AttachDeviceRequest attach;
    attach.set_domain(domain_);
    attach.set_source_id(source_id_);
    v1::AttachDeviceResponse attached;
    status = Call(&v1::GuestService::Stub::AttachDevice, attach, &attached);
    attached_ = status.ok();
    return status;
  }

  // The workload's operations in its order; when they happen is this loop's business.
  absl::Status Loop() {
    auto source =
        MakeWorkload(options_.workload, {.seed = options_.seed + index_, .ops = ~uint64_t{0} >> 2});
    if (!source.ok()) return source.status();
    const std::vector<uint64_t> ready(1, 0);
    const Clock::time_point start = Clock::now();
    uint64_t done = 0;
    uint64_t list_bytes = 0;
    while (!shared_.stop.load(std::memory_order_relaxed)) {
      const std::optional<LoadOp> op = (*source)->Next(ready);
      if (!op) break;
      if (op->kind == LoadOp::Kind::kAttach) continue;
      if (op->kind == LoadOp::Kind::kMap) {
        list_bytes += op->size_bytes;
        if (op->list_continues) continue;
      }
      if (options_.rate != 0) {
        const double share = static_cast<double>(options_.rate) / options_.concurrency;
        const Clock::time_point due =
            start + std::chrono::duration_cast<Clock::duration>(
                        std::chrono::duration<double>(static_cast<double>(done) / share));
        while (Clock::now() < due && !shared_.stop.load(std::memory_order_relaxed)) {
          std::this_thread::sleep_until(std::min(due, Clock::now() + kNap));
        }
      }
      ++done;
      absl::Status status =
          op->kind == LoadOp::Kind::kMap ? Map(*op, std::exchange(list_bytes, 0)) : Unmap(op->tag);
      if (absl::IsUnavailable(status) || absl::IsDeadlineExceeded(status) ||
          absl::IsUnauthenticated(status) || absl::IsPermissionDenied(status)) {
        return status;
      }
      if (!status.ok()) shared_.errors.fetch_add(1, std::memory_order_relaxed);
    }
    return absl::OkStatus();
  }

  absl::Status Map(const LoadOp& op, uint64_t size_bytes) {
    v1::MapRequest request;
    request.set_domain(domain_);
    request.set_access(ToProto(op.access));
    request.set_allocate_bytes(size_bytes);
    v1::MapResponse response;
    const Clock::time_point start = Clock::now();
    absl::Status status = Call(&v1::GuestService::Stub::Map, request, &response);
    if (!status.ok()) return status;
    shared_.maps.Record(
        static_cast<uint64_t>((Clock::now() - start) / std::chrono::nanoseconds(1)));
    mapped_[op.tag] = {response.iova(), response.size_bytes()};
    return status;
  }

  absl::Status Unmap(uint64_t tag) {
    const auto it = mapped_.find(tag);
    if (it == mapped_.end()) return absl::OkStatus();  // its map was counted as an error
    v1::UnmapRequest request;
    request.set_domain(domain_);
    request.set_iova(it->second.first);
    request.set_size_bytes(it->second.second);
    mapped_.erase(it);
    v1::UnmapResponse response;
    const Clock::time_point start = Clock::now();
    absl::Status status = Call(&v1::GuestService::Stub::Unmap, request, &response);
    if (!status.ok()) return status;
    shared_.unmaps.Record(
        static_cast<uint64_t>((Clock::now() - start) / std::chrono::nanoseconds(1)));
    return status;
  }

  // Leaves nothing behind in the guest; what fails here has been reported by now.
  void TearDown() {
    while (!mapped_.empty()) {
      if (!Unmap(mapped_.begin()->first).ok()) break;
    }
    if (attached_) {
      v1::DetachDeviceRequest request;
      request.set_source_id(source_id_);
      v1::DetachDeviceResponse response;
      (void)Call(&v1::GuestService::Stub::DetachDevice, request, &response).ok();
    }
    if (created_) {
      v1::DeleteDomainRequest request;
      request.set_domain(domain_);
      v1::DeleteDomainResponse response;
      (void)Call(&v1::GuestService::Stub::DeleteDomain, request, &response).ok();
    }
  }

  static constexpr auto kNap = std::chrono::milliseconds(50);

  v1::GuestService::Stub& guest_;
  const Options& options_;
  const uint32_t index_;
  const uint32_t source_id_;
  Shared& shared_;
  std::chrono::seconds deadline_ = kCallDeadline;
  uint32_t domain_ = 0;
  bool created_ = false;
  bool attached_ = false;
  absl::flat_hash_map<uint64_t, std::pair<uint64_t, uint64_t>> mapped_;  // tag -> iova, bytes
};

std::string Percentiles(const LatencyHistogram::Counts& counts) {
  const auto at = [&](double p) {
    return Duration(static_cast<double>(LatencyHistogram::Percentile(counts, p)));
  };
  return absl::StrCat("p50 ", at(0.5), ", p99 ", at(0.99));
}

Json Summary(const LatencyHistogram::Counts& counts, double seconds) {
  const auto at = [&](double p) { return LatencyHistogram::Percentile(counts, p); };
  const uint64_t total = LatencyHistogram::Total(counts);
  return {{"count", total},          {"per_second", static_cast<double>(total) / seconds},
          {"wall_ns_p50", at(0.5)},  {"wall_ns_p90", at(0.9)},
          {"wall_ns_p99", at(0.99)}, {"wall_ns_p999", at(0.999)},
          {"wall_ns_max", at(1)}};
}

// Says how it goes until the time is over or somebody stops it; returns the seconds it took.
double Watch(Shared& shared, absl::Duration duration) {
  Progress progress(kProgram);
  const Clock::time_point start = Clock::now();
  const Clock::time_point end = start + absl::ToChronoNanoseconds(duration);
  auto maps = shared.maps.Snapshot();
  auto unmaps = shared.unmaps.Snapshot();
  Clock::time_point last = start;
  while (Clock::now() < end && !shared.stop) {
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
    const Clock::time_point now = Clock::now();
    if (now - last < std::chrono::seconds(1)) continue;
    const double seconds = std::chrono::duration<double>(now - last).count();
    const auto new_maps = shared.maps.Snapshot();
    const auto new_unmaps = shared.unmaps.Snapshot();
    const auto map_part = LatencyHistogram::Difference(new_maps, maps);
    const auto unmap_part = LatencyHistogram::Difference(new_unmaps, unmaps);
    progress.Say(
        absl::StrFormat("%s left: %s maps/s (%s), %s unmaps/s (%s), %d errors",
                        LongDuration(std::chrono::duration<double>(end - now).count()),
                        Short(static_cast<double>(LatencyHistogram::Total(map_part)) / seconds),
                        Percentiles(map_part),
                        Short(static_cast<double>(LatencyHistogram::Total(unmap_part)) / seconds),
                        Percentiles(unmap_part), shared.errors.load()));
    maps = new_maps;
    unmaps = new_unmaps;
    last = now;
  }
  shared.stop = true;
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// A bus that nothing else is likely to use: two load commands on one guest must not share devices.
uint32_t FirstSourceId() {
  const auto now = static_cast<uint64_t>(Clock::now().time_since_epoch().count());
  return static_cast<uint32_t>(0x40 + now / 1000 % 0xb0) << 8;
}

}  // namespace

int RunLoadCommand(const Args& args) {
  Options options;
  FlagSet flags(kProgram, "real-time load on a running guest");
  options.AddTo(flags);
  if (const auto exit_code = ParseArgs(flags, kExamples, args)) return *exit_code;
  if (options.guest.empty()) {
    return Fail(kProgram,
                absl::InvalidArgumentError(
                    "--guest is needed: the address that guest_svc printed as READY grpc="));
  }
  absl::Duration duration;
  if (!absl::ParseDuration(options.duration, &duration) || duration <= absl::ZeroDuration()) {
    return Fail(kProgram, absl::InvalidArgumentError(absl::StrCat("--duration: '", options.duration,
                                                                  "' is no duration like 30s")));
  }
  if (auto source = MakeWorkload(options.workload, {}); !source.ok()) {
    return Fail(kProgram, source.status());
  }
  const auto channel = Connect(options.guest, options.tls);
  if (!channel.ok()) return Fail(kProgram, channel.status());
  const auto guest = v1::GuestService::NewStub(*channel);

  Shared shared;
  OnFirstSignal([&shared] { shared.stop = true; });
  const uint32_t first_source_id = FirstSourceId();
  std::vector<std::unique_ptr<Caller>> callers;
  std::vector<std::thread> threads;
  for (uint32_t i = 0; i < options.concurrency; ++i) {
    callers.push_back(std::make_unique<Caller>(*guest, options, i, first_source_id, shared));
    threads.emplace_back([caller = callers.back().get()] { caller->Run(); });
  }
  const double seconds = Watch(shared, duration);
  const auto maps = shared.maps.Snapshot();
  const auto unmaps = shared.unmaps.Snapshot();
  for (std::thread& thread : threads) thread.join();
  OnFirstSignal(nullptr);

  std::FILE* out = options.json == "-" ? stderr : stdout;
  TextTable table({"call", "count", "per second", "p50", "p90", "p99", "p99.9", "max"});
  for (const auto& [name, counts] : {std::pair{"map", &maps}, std::pair{"unmap", &unmaps}}) {
    const auto at = [&, latencies = counts](double p) {
      return Duration(static_cast<double>(LatencyHistogram::Percentile(*latencies, p)));
    };
    const uint64_t total = LatencyHistogram::Total(*counts);
    table.Add({name, Grouped(total), Short(static_cast<double>(total) / seconds), at(0.5), at(0.9),
               at(0.99), at(0.999), at(1)});
  }
  std::fprintf(out, "%s on %s for %.1f s, %u callers, %s errors (wall times, gRPC included)\n%s",
               options.workload.c_str(), options.guest.c_str(), seconds, options.concurrency,
               Grouped(shared.errors).c_str(), table.ToString().c_str());
  if (!options.json.empty()) {
    Json json;
    json["schema"] = "viommu.load.v1";
    json["workload"] = options.workload;
    json["concurrency"] = options.concurrency;
    json["wall_seconds"] = seconds;
    json["errors"] = shared.errors.load();
    json["map"] = Summary(maps, seconds);
    json["unmap"] = Summary(unmaps, seconds);
    if (absl::Status s = WriteJson(options.json, json); !s.ok()) return Fail(kProgram, s);
  }
  std::lock_guard<std::mutex> lock(shared.mutex);
  if (absl::IsUnavailable(shared.fatal)) {
    return Fail(kProgram, absl::UnavailableError(absl::StrCat("lost the guest at ", options.guest,
                                                              ": ", shared.fatal.message())));
  }
  if (!shared.fatal.ok()) return Fail(kProgram, shared.fatal);
  return kExitOk;
}

}  // namespace viommu::client
