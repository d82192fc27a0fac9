// What the wire and both services add to a bare gRPC stream of the same shape. The hypervisor is
// the real hypervisor_svc in a process of its own, on a unix socket; the floor's server is a
// process of its own too. Both clients run in this process, on the benchmark's thread: for the
// services, that is guest_svc's machine, virtual unit and stream end. Floor and subject take turns
// in blocks of one run. Nothing is pinned.
#include <benchmark/benchmark.h>
#include <grpcpp/create_channel.h>
#include <stdlib.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "guest_svc/spin_wait.h"
#include "svc_common/service_host.h"
#include "tests/bench/wire_floor.h"
#include "tests/bench/wire_guest.h"

namespace viommu {
namespace {

using Steady = std::chrono::steady_clock;

constexpr int kBlock = 64;         // round trips of one side before the other's turn
constexpr int kMessages = 256;     // messages of one side before the other's turn
constexpr int kDescriptors = 256;  // in one message
constexpr int kWindow = 32;        // messages unanswered
constexpr int kTurnMs = 200;       // of 2 guests, then of many

double NsSince(Steady::time_point start) {
  return static_cast<double>(
      std::chrono::duration_cast<std::chrono::nanoseconds>(Steady::now() - start).count());
}

double Percentile(std::vector<double>& samples, double p) {
  const auto at =
      samples.begin() + static_cast<ptrdiff_t>(static_cast<double>(samples.size() - 1) * p);
  std::nth_element(samples.begin(), at, samples.end());
  return *at;
}

// Both servers, each a process, in a folder that goes with them.
class Servers {
 public:
  explicit Servers(std::vector<std::string> hypervisor_flags = {}) {
    char folder[] = "/tmp/viommu-bench-XXXXXX";
    if (mkdtemp(folder) == nullptr) std::abort();
    folder_ = folder;
    floor_ = std::make_unique<BenchProcess>(
        std::vector<std::string>{SelfPath(), "--floor_server=" + floor_address()});
    std::vector<std::string> args = {BinFolder() + "/hypervisor_svc",
                                     "--listen=" + hypervisor_address(), "--metrics=off"};
    args.insert(args.end(), hypervisor_flags.begin(), hypervisor_flags.end());
    hypervisor_ = std::make_unique<BenchProcess>(std::move(args));
    if (floor_->ReadLine() != "READY" || hypervisor_->ReadLine().empty()) std::abort();
  }
  ~Servers() {
    hypervisor_.reset();
    floor_.reset();
    std::filesystem::remove_all(folder_);
  }

  std::string floor_address() const { return "unix:" + folder_ + "/floor.sock"; }
  std::string hypervisor_address() const { return "unix:" + folder_ + "/hv.sock"; }
  std::string memory_socket() const { return folder_ + "/hv.sock.mem"; }
  const BenchProcess& hypervisor() const { return *hypervisor_; }
  std::unique_ptr<FloorClient> Floor() const {
    return std::make_unique<FloorClient>(grpc::CreateCustomChannel(
        floor_address(), grpc::InsecureChannelCredentials(), ClientChannelArguments()));
  }

 private:
  std::string folder_;
  std::unique_ptr<BenchProcess> floor_;
  std::unique_ptr<BenchProcess> hypervisor_;
};

// Strict unmap of one page, entry cleared to completion taken in, against one ping-pong of two
// descriptors. Default flags of hypervisor_svc but the strategy.
void BM_StrictUnmap(benchmark::State& state, const char* strategy) {
  const Servers servers;
  const auto floor = servers.Floor();
  BenchGuest guest(servers.hypervisor_address(), servers.memory_socket(), strategy, 1024);
  const v1::InvalidateRequest request = FloorBatch(2);
  std::vector<double> floor_ns;
  std::vector<double> unmap_ns;
  for (auto _ : state) {
    double spent = 0;
    for (int i = 0; i < kBlock; ++i) {
      const auto start = Steady::now();
      floor->PingPong(request);
      floor_ns.push_back(NsSince(start));
    }
    for (int i = 0; i < kBlock; ++i) {
      const Iova iova = guest.MapOne();
      const auto start = Steady::now();
      guest.Unmap(iova);
      unmap_ns.push_back(NsSince(start));
      spent += unmap_ns.back();
    }
    state.SetIterationTime(spent / 1e9);
  }
  state.SetItemsProcessed(state.iterations() * kBlock);
  const double floor_p50 = Percentile(floor_ns, 0.5);
  const double p50 = Percentile(unmap_ns, 0.5);
  // Seconds, as other `per_` counters are.
  state.counters["per_ping_pong_p50"] = floor_p50 / 1e9;
  state.counters["per_unmap_p50"] = p50 / 1e9;
  state.counters["per_ping_pong_p99"] = Percentile(floor_ns, 0.99) / 1e9;
  state.counters["per_unmap_p99"] = Percentile(unmap_ns, 0.99) / 1e9;
  state.counters["ratio"] = p50 / floor_p50;
}
BENCHMARK_CAPTURE(BM_StrictUnmap, walk, "walk")->UseManualTime()->Unit(benchmark::kMicrosecond);
BENCHMARK_CAPTURE(BM_StrictUnmap, snapshot, "snapshot")
    ->UseManualTime()
    ->Unit(benchmark::kMicrosecond);

// 256 one-page invalidations in a message, pages unchanged, decoded and applied under `snapshot`
// with the oracle off, against the same messages read, added up and answered. The oracle is off
// because it walks the reference tables for every one of them.
void BM_Descriptors256(benchmark::State& state) {
  const Servers servers({"--verify=off"});
  const auto floor = servers.Floor();
  BenchGuest guest(servers.hypervisor_address(), servers.memory_socket(), "snapshot", 1 << 15);
  const v1::InvalidateRequest request = FloorBatch(kDescriptors);
  std::vector<double> floor_rate;
  std::vector<double> rate;
  constexpr double kPerTurn = double{kMessages} * kDescriptors;
  for (auto _ : state) {
    auto start = Steady::now();
    floor->Stream(request, kMessages, kWindow);
    floor_rate.push_back(kPerTurn / NsSince(start) * 1e9);
    start = Steady::now();
    guest.Invalidate(kMessages, kDescriptors, kWindow);
    const double ns = NsSince(start);
    rate.push_back(kPerTurn / ns * 1e9);
    state.SetIterationTime(ns / 1e9);
  }
  state.SetItemsProcessed(state.iterations() * kMessages * kDescriptors);
  const double floor_median = Percentile(floor_rate, 0.5);
  const double median = Percentile(rate, 0.5);
  state.counters["floor_descriptors_a_second"] = floor_median;
  state.counters["descriptors_a_second"] = median;
  state.counters["ratio"] = median / floor_median;
}
BENCHMARK(BM_Descriptors256)->UseManualTime()->Unit(benchmark::kMillisecond);

// `guests` processes, each with `args`, that count round trips for as long as they are told.
class Crowd {
 public:
  Crowd(size_t guests, const std::vector<std::string>& args) {
    for (size_t i = 0; i < guests; ++i) {
      guests_.push_back(std::make_unique<BenchProcess>(args));
      if (guests_.back()->ReadLine() != "READY") std::abort();
    }
  }
  // Round trips a second of all together.
  double Run() {
    const auto start = Steady::now();
    for (const auto& guest : guests_) guest->WriteLine(std::to_string(kTurnMs));
    double sum = 0;
    for (const auto& guest : guests_) sum += std::stod(guest->ReadLine());
    return sum / NsSince(start) * 1e9;
  }

 private:
  std::vector<std::unique_ptr<BenchProcess>> guests_;
};

// Page-selective syncs of all guests together, each guest a process of its own with one
// outstanding, against two such guests on the same hypervisor; and the same with bare streams.
// `wait_spin`: the guests' --wait_spin_us. Two that poll use CPUs that 64 do not leave idle.
void BM_ManyGuests(benchmark::State& state, std::chrono::microseconds wait_spin) {
  const auto guests = static_cast<size_t>(state.range(0));
  const Servers servers({"--verify=off", "--max_sessions=" + std::to_string(guests + 2)});
  const std::vector<std::string> args = {SelfPath(), "--guest=" + servers.hypervisor_address(),
                                         servers.memory_socket(),
                                         std::to_string(wait_spin.count())};
  const std::vector<std::string> floor_args = {SelfPath(),
                                               "--floor_guest=" + servers.floor_address()};
  Crowd two(2, args);
  const auto memory_before = static_cast<double>(servers.hypervisor().Status("VmRSS"));
  Crowd many(guests, args);
  const auto memory = static_cast<double>(servers.hypervisor().Status("VmRSS"));
  Crowd floor_two(2, floor_args);
  Crowd floor_many(guests, floor_args);

  std::vector<double> rate_two, rate, floor_rate_two, floor_rate;
  two.Run();
  many.Run();
  for (auto _ : state) {
    rate_two.push_back(two.Run());
    floor_rate_two.push_back(floor_two.Run());
    const auto start = Steady::now();
    rate.push_back(many.Run());
    state.SetIterationTime(NsSince(start) / 1e9);
    floor_rate.push_back(floor_many.Run());
  }
  const double median_two = Percentile(rate_two, 0.5);
  const double median = Percentile(rate, 0.5);
  const double floor_two_median = Percentile(floor_rate_two, 0.5);
  const double floor_median = Percentile(floor_rate, 0.5);
  state.counters["syncs_a_second_of_two"] = median_two;
  state.counters["syncs_a_second"] = median;
  state.counters["ratio"] = median / median_two;
  state.counters["bare_a_second_of_two"] = floor_two_median;
  state.counters["bare_a_second"] = floor_median;
  state.counters["bare_ratio"] = floor_median / floor_two_median;
  state.counters["hypervisor_kib"] = memory;
  state.counters["hypervisor_kib_per_guest"] =
      (memory - memory_before) / static_cast<double>(guests);
  state.counters["hypervisor_threads"] =
      static_cast<double>(servers.hypervisor().Status("Threads"));
}
BENCHMARK_CAPTURE(BM_ManyGuests, poll, kDefaultWaitSpin)
    ->Arg(64)
    ->Arg(256)
    ->Iterations(5)
    ->UseManualTime()
    ->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(BM_ManyGuests, sleep, std::chrono::microseconds(0))
    ->Arg(64)
    ->Iterations(5)
    ->UseManualTime()
    ->Unit(benchmark::kMillisecond);

// The value of `flag` in the arguments; empty: not there.
std::string FlagValue(int argc, char** argv, const std::string& flag) {
  for (int i = 1; i < argc; ++i) {
    if (std::strncmp(argv[i], flag.c_str(), flag.size()) == 0) return argv[i] + flag.size();
  }
  return "";
}

}  // namespace
}  // namespace viommu

int main(int argc, char** argv) {
  viommu::SkipLockOrderChecks();  // as both services do, for the floor's processes too
  if (const std::string address = viommu::FlagValue(argc, argv, "--floor_server=");
      !address.empty()) {
    viommu::ServeFloor(address);
  }
  if (const std::string address = viommu::FlagValue(argc, argv, "--guest="); !address.empty()) {
    if (argc != 4) return 2;
    return viommu::RunBenchGuest(address, argv[2], std::chrono::microseconds(std::stoi(argv[3])));
  }
  if (const std::string address = viommu::FlagValue(argc, argv, "--floor_guest=");
      !address.empty()) {
    return viommu::RunFloorGuest(address);
  }
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
