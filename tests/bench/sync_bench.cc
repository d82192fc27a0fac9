// What one domain flush, one page-selective flush and the first sync cost this implementation,
// beside the floor: reading the guest's tables and the last-seen copies once. Wall time of our own
// code.
#include <benchmark/benchmark.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "iommu_core/dma/guest_machine.h"
#include "iommu_core/load/in_process_sink.h"
#include "iommu_core/mem/shared_memory.h"
#include "iommu_core/shadow/hypervisor_session.h"
#include "iommu_core/vtd/second_stage_pte.h"

namespace viommu {
namespace {

constexpr Iova kResident(uint64_t{1} << 36);
const SourceId kDevice = MakeSourceId(0, 3, 0);

// A guest with `pages` single 4K mappings behind one device, in step with its hypervisor.
struct Bench {
  Bench(Strategy strategy, uint64_t pages) {
    config.force_lazy = true;
    config.policy = Policy::kLazy;
    config.table_region_bytes = (uint64_t{32} << 20) + pages * 16;
    const uint64_t ram = pages * kPageSize + config.table_region_bytes + (uint64_t{8} << 20);
    config.ram_bytes = AlignUp(ram + ram / 32, uint64_t{1} << 20);
    memory = *SharedMemory::Create(config.ram_bytes);
    SessionConfig s;
    s.guest_caps = GuestCapabilities(config, 0);
    s.guest_haw_bits = config.address_width;
    s.guest_ram_bytes = config.ram_bytes;
    s.strategy = strategy;
    s.verify = Verify::kOff;
    s.dma_entry_limit = uint64_t{1} << 24;
    s.dirty_log_base = DirtyLogBase(config).value();
    session = *HypervisorSession::Create(s, *memory);
    sink = std::make_unique<InProcessSink>(*session);
    machine = *GuestMachine::Create(config, *memory, clock, {sink.get()});
    domain = *machine->CreateDomain(64);
    did = *machine->AttachDevice(domain, kDevice, 0, false);
    if (absl::Status s2 = machine->MapResident(domain, kResident, pages); !s2.ok()) std::abort();
  }

  SinkCompletion Flush() {
    vtd::IotlbInvalidate d;
    d.granularity = vtd::Granularity::kDomain;
    d.domain_id = did;
    const vtd::RawDescriptor raw = vtd::Encode(d);
    return session->Apply({&raw, 1}, {}, false);
  }

  GuestConfig config;
  VirtualClock clock;
  std::unique_ptr<SharedMemory> memory;
  std::unique_ptr<HypervisorSession> session;
  std::unique_ptr<InProcessSink> sink;
  std::unique_ptr<GuestMachine> machine;
  uint32_t domain = 0;
  DomainId did;
};

Strategy StrategyOf(const benchmark::State& state) { return static_cast<Strategy>(state.range(0)); }

void PerEntry(benchmark::State& state, uint64_t entries) {
  state.SetLabel(std::string(StrategyName(StrategyOf(state))));
  state.counters["per_entry"] = benchmark::Counter(
      static_cast<double>(entries),
      benchmark::Counter::kIsIterationInvariantRate | benchmark::Counter::kInvert);
}

// The floor: two copies of the entries read once, 64 bytes at a time.
void BM_FloorReadBothCopies(benchmark::State& state) {
  const auto entries = static_cast<size_t>(state.range(0));
  std::vector<uint64_t> a(entries, 3);
  std::vector<uint64_t> b(entries, 3);
  for (auto _ : state) {
    uint64_t differ = 0;
    for (size_t i = 0; i < entries; ++i) differ |= a[i] ^ b[i];
    benchmark::DoNotOptimize(differ);
    benchmark::ClobberMemory();
  }
  state.counters["per_entry"] = benchmark::Counter(
      static_cast<double>(entries),
      benchmark::Counter::kIsIterationInvariantRate | benchmark::Counter::kInvert);
}
BENCHMARK(BM_FloorReadBothCopies)->Arg(1 << 18)->Arg(1 << 20);

void BM_DomainFlushUnchanged(benchmark::State& state) {
  Bench bench(StrategyOf(state), static_cast<uint64_t>(state.range(1)));
  for (auto _ : state) benchmark::DoNotOptimize(bench.Flush());
  PerEntry(state, static_cast<uint64_t>(state.range(1)));
}
BENCHMARK(BM_DomainFlushUnchanged)
    ->Args({static_cast<int>(Strategy::kWalk), 1 << 18})
    ->Args({static_cast<int>(Strategy::kWalkShared), 1 << 18})
    ->Args({static_cast<int>(Strategy::kSnapshot), 1 << 18})
    ->Args({static_cast<int>(Strategy::kSnapshot), 1 << 20})
    ->Args({static_cast<int>(Strategy::kDirtyLog), 1 << 18})
    ->Args({static_cast<int>(Strategy::kDirtyLog), 1 << 20})
    ->Unit(benchmark::kMicrosecond);

// One-page invalidations of pages that did not change, 200 in a batch.
void BM_PageFlushUnchanged(benchmark::State& state) {
  const auto pages = static_cast<uint64_t>(state.range(1));
  Bench bench(StrategyOf(state), pages);
  constexpr uint64_t kBatch = 200;
  std::vector<vtd::RawDescriptor> raw;
  for (uint64_t i = 0; i < kBatch; ++i) {
    vtd::IotlbInvalidate d;
    d.granularity = vtd::Granularity::kPageOrDevice;
    d.domain_id = bench.did;
    d.address = kResident + (i * 5171 % pages) * kPageSize;
    raw.push_back(vtd::Encode(d));
  }
  for (auto _ : state) benchmark::DoNotOptimize(bench.session->Apply(raw, {}, false));
  PerEntry(state, kBatch);
}
BENCHMARK(BM_PageFlushUnchanged)
    ->Args({static_cast<int>(Strategy::kWalk), 1 << 18})
    ->Args({static_cast<int>(Strategy::kSnapshot), 1 << 18})
    ->Args({static_cast<int>(Strategy::kSnapshot), 1 << 20})
    ->Args({static_cast<int>(Strategy::kDirtyLog), 1 << 20})
    ->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace viommu
