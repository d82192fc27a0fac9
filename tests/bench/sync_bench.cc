// What domain flushes, page-selective flushes, the first sync and a reset cost this implementation,
// each beside its floor: the memory that any implementation has to touch, touched once. Time of our
// own code, nothing modelled.
#include <benchmark/benchmark.h>

#include <cstdint>
#include <memory>
#include <random>
#include <vector>

#include "iommu_core/mem/host_memory.h"
#include "tests/bench/bench_guest.h"

namespace viommu {
namespace {

constexpr uint64_t kBatch = 200;  // page-selective descriptors in one submission
constexpr uint64_t kOnePercent = 100;

Strategy StrategyOf(const benchmark::State& state) { return static_cast<Strategy>(state.range(0)); }
uint64_t PagesOf(const benchmark::State& state) { return static_cast<uint64_t>(state.range(1)); }

benchmark::Counter SecondsEach(uint64_t count) {
  return benchmark::Counter(
      static_cast<double>(count),
      benchmark::Counter::kIsIterationInvariantRate | benchmark::Counter::kInvert);
}

// A run has to say that it did what it claims to measure.
void Expect(benchmark::State& state, bool true_enough) {
  if (!true_enough) state.SkipWithError("the session did not do what is measured");
}

// Which entries change in every iteration: one in a hundred, `clustered` all side by side.
std::vector<uint64_t> ChangedEntries(uint64_t entries, bool clustered) {
  std::vector<uint64_t> out;
  const uint64_t count = entries / kOnePercent;
  std::mt19937_64 random(1);
  for (uint64_t i = 0; i < count; ++i) {
    out.push_back(clustered ? entries / 3 + i : i * kOnePercent + random() % kOnePercent);
  }
  return out;
}

// ---- domain flush, nothing changed

typedef uint64_t Lanes __attribute__((vector_size(64)));

// The floor: both copies of the entries read once.
void BM_FloorReadBothCopies(benchmark::State& state) {
  const auto entries = static_cast<size_t>(state.range(0));
  std::vector<Lanes> a(entries / 8, Lanes{} + 3);
  std::vector<Lanes> b(entries / 8, Lanes{} + 3);
  for (auto _ : state) {
    Lanes differ{};
    for (size_t i = 0; i < entries / 8; ++i) differ |= a[i] ^ b[i];
    benchmark::DoNotOptimize(differ);
    benchmark::ClobberMemory();
  }
  state.counters["per_entry"] = SecondsEach(entries);
}
BENCHMARK(BM_FloorReadBothCopies)->Arg(1 << 18)->Arg(1 << 20);

void BM_DomainFlushUnchanged(benchmark::State& state) {
  BenchGuest guest(PagesOf(state));
  auto session = guest.NewSyncedSession(StrategyOf(state));
  const vtd::RawDescriptor flush = guest.DomainFlush();
  for (auto _ : state)
    benchmark::DoNotOptimize(session->Apply({&flush, 1}, {}, TableClaim::kQuiet));
  Expect(state, session->stats().live_pages == guest.pages());
  state.SetLabel(std::string(StrategyName(StrategyOf(state))));
  state.counters["per_entry"] = SecondsEach(guest.pages());
}
BENCHMARK(BM_DomainFlushUnchanged)
    ->ArgNames({"strategy", "pages"})
    ->Args({static_cast<int>(Strategy::kWalk), 1 << 18})
    ->Args({static_cast<int>(Strategy::kWalkShared), 1 << 18})
    ->Args({static_cast<int>(Strategy::kSnapshot), 1 << 18})
    ->Args({static_cast<int>(Strategy::kSnapshot), 1 << 20})
    ->Args({static_cast<int>(Strategy::kDirtyLog), 1 << 18})
    ->Args({static_cast<int>(Strategy::kDirtyLog), 1 << 20})
    ->Args({static_cast<int>(Strategy::kDirtyLog), 1 << 22});

// What a guest's entry is in the host's tables: any implementation has to know that.
uint64_t HostEntry(const HostMap& map, uint64_t entry) {
  return map.ToHost(GuestPhys(entry & ~kPageMask)).value() | (entry & kRw);
}

// ---- domain flush, one entry in a hundred points elsewhere

// The floor: of each line that holds a changed entry, the guest's copy and the last-seen one are
// read, and what differs is stored there and, as an entry of the host, in the physical table.
void BM_FloorVisitDirtyLines(benchmark::State& state) {
  const auto entries = static_cast<uint64_t>(state.range(0));
  const std::vector<uint64_t> changed = ChangedEntries(entries, state.range(1) != 0);
  std::vector<uint64_t> guest(entries, 3), last(entries, 3), table(entries, 3);
  std::vector<uint64_t> lines;
  for (const uint64_t i : changed) {
    if (lines.empty() || lines.back() != i / 8) lines.push_back(i / 8);
  }
  const HostMap map(48, kPageShift);
  uint64_t turn = 0;
  for (auto _ : state) {
    state.PauseTiming();
    ++turn;
    for (const uint64_t i : changed) guest[i] = turn << 12 | 3;
    state.ResumeTiming();
    for (const uint64_t line : lines) {
      for (uint64_t i = line * 8; i < line * 8 + 8; ++i) {
        if (guest[i] == last[i]) continue;
        last[i] = guest[i];
        table[i] = HostEntry(map, guest[i]);
      }
    }
    benchmark::ClobberMemory();
  }
  state.counters["per_change"] = SecondsEach(changed.size());
}
BENCHMARK(BM_FloorVisitDirtyLines)
    ->ArgNames({"pages", "clustered"})
    ->ArgsProduct({{1 << 18}, {0, 1}});

void BM_DomainFlushChanged(benchmark::State& state) {
  BenchGuest guest(PagesOf(state));
  auto session = guest.NewSyncedSession(StrategyOf(state));
  const std::vector<uint64_t> changed = ChangedEntries(guest.pages(), state.range(2) != 0);
  const vtd::RawDescriptor flush = guest.DomainFlush();
  uint64_t turn = 0;
  uint64_t maps = 0;
  for (auto _ : state) {
    state.PauseTiming();
    ++turn;
    for (const uint64_t i : changed) guest.Set(i, i + turn);
    state.ResumeTiming();
    maps += session->Apply({&flush, 1}, {}, TableClaim::kQuiet).cost.dma_maps;
  }
  Expect(state, maps == turn * changed.size());
  state.SetLabel(std::string(StrategyName(StrategyOf(state))));
  state.counters["per_change"] = SecondsEach(changed.size());
}
BENCHMARK(BM_DomainFlushChanged)
    ->ArgNames({"strategy", "pages", "clustered"})
    ->ArgsProduct({{static_cast<int>(Strategy::kSnapshot), static_cast<int>(Strategy::kDirtyLog)},
                   {1 << 18},
                   {0, 1}});

// ---- page-selective flushes

std::vector<uint64_t> BatchPages(uint64_t pages) {
  std::vector<uint64_t> out;
  for (uint64_t i = 0; i < kBatch; ++i) out.push_back(i * 5171 % pages);
  return out;
}

std::vector<vtd::RawDescriptor> Descriptors(const BenchGuest& guest,
                                            const std::vector<uint64_t>& pages) {
  std::vector<vtd::RawDescriptor> out;
  for (const uint64_t i : pages) out.push_back(guest.PageFlush(i));
  return out;
}

void BM_PageFlushUnchanged(benchmark::State& state) {
  BenchGuest guest(PagesOf(state));
  auto session = guest.NewSyncedSession(StrategyOf(state));
  const auto raw = Descriptors(guest, BatchPages(guest.pages()));
  for (auto _ : state) benchmark::DoNotOptimize(session->Apply(raw, {}, TableClaim::kQuiet));
  Expect(state, session->stats().live_pages == guest.pages());
  state.SetLabel(std::string(StrategyName(StrategyOf(state))));
  state.counters["per_descriptor"] = SecondsEach(kBatch);
}
BENCHMARK(BM_PageFlushUnchanged)
    ->ArgNames({"strategy", "pages"})
    ->Args({static_cast<int>(Strategy::kWalk), 1 << 18})
    ->ArgsProduct({{static_cast<int>(Strategy::kSnapshot), static_cast<int>(Strategy::kDirtyLog)},
                   {1 << 12, 1 << 16, 1 << 20}});

// Every page of the batch points elsewhere each time.
void BM_PageFlushRemapped(benchmark::State& state) {
  BenchGuest guest(PagesOf(state));
  auto session = guest.NewSyncedSession(StrategyOf(state));
  const std::vector<uint64_t> pages = BatchPages(guest.pages());
  const auto raw = Descriptors(guest, pages);
  uint64_t turn = 0;
  uint64_t maps = 0;
  for (auto _ : state) {
    state.PauseTiming();
    ++turn;
    for (const uint64_t i : pages) guest.Set(i, i + turn);
    state.ResumeTiming();
    maps += session->Apply(raw, {}, TableClaim::kQuiet).cost.dma_maps;
  }
  Expect(state, maps == turn * kBatch);
  state.SetLabel(std::string(StrategyName(StrategyOf(state))));
  state.counters["per_descriptor"] = SecondsEach(kBatch);
}
BENCHMARK(BM_PageFlushRemapped)
    ->ArgNames({"strategy", "pages"})
    ->ArgsProduct({{static_cast<int>(Strategy::kSnapshot), static_cast<int>(Strategy::kDirtyLog)},
                   {1 << 12, 1 << 16, 1 << 20}});

// ---- first sync and reset

// The floor: each entry read, stored in a copy and, as an entry of the host, in a table of memory
// that was never touched before, as the session's host memory.
void BM_FloorFirstSync(benchmark::State& state) {
  const auto entries = static_cast<uint64_t>(state.range(0));
  const std::vector<uint64_t> guest(entries, 3);
  std::vector<uint64_t> copy(entries);
  const HostMap map(48, kPageShift);
  for (auto _ : state) {
    state.PauseTiming();
    auto memory = HostMemory::Create(entries / vtd::kEntriesPerTable);
    state.ResumeTiming();
    uint64_t* table = (*memory)->Entries(PhysAddr(0));
    for (uint64_t i = 0; i < entries; ++i) {
      copy[i] = guest[i];
      table[i] = HostEntry(map, guest[i]);
    }
    benchmark::ClobberMemory();
    state.PauseTiming();
    memory->reset();
    state.ResumeTiming();
  }
  state.counters["per_page"] = SecondsEach(entries);
}
BENCHMARK(BM_FloorFirstSync)->Arg(1 << 18);

void BM_FirstSync(benchmark::State& state) {
  BenchGuest guest(PagesOf(state));
  bool complete = true;
  double bytes = 0;
  for (auto _ : state) {
    state.PauseTiming();
    auto session = guest.NewSession(StrategyOf(state));
    state.ResumeTiming();
    if (!session->AddDevice(BenchGuest::Device(), false).ok()) complete = false;
    state.PauseTiming();
    const SessionStats stats = session->stats();
    complete = complete && stats.live_pages == guest.pages();
    bytes = static_cast<double>(stats.shadow_table_pages * kPageSize + stats.bookkeeping_bytes) /
            static_cast<double>(guest.pages());
    session.reset();
    state.ResumeTiming();
  }
  Expect(state, complete);
  state.SetLabel(std::string(StrategyName(StrategyOf(state))));
  state.counters["per_page"] = SecondsEach(guest.pages());
  state.counters["bytes_a_page"] = bytes;
}
BENCHMARK(BM_FirstSync)
    ->ArgNames({"strategy", "pages"})
    ->Args({static_cast<int>(Strategy::kWalk), 1 << 18})
    ->Args({static_cast<int>(Strategy::kSnapshot), 1 << 18})
    ->Args({static_cast<int>(Strategy::kDirtyLog), 1 << 18})
    ->Args({static_cast<int>(Strategy::kSnapshot), 1 << 20});

// A guest resets its unit: everything is unmapped, and looked at again when it comes back.
void BM_Reset(benchmark::State& state) {
  BenchGuest guest(PagesOf(state));
  auto session = guest.NewSyncedSession(StrategyOf(state));
  for (auto _ : state) {
    if (!session->RemoveDevice(BenchGuest::Device()).ok() ||
        !session->AddDevice(BenchGuest::Device(), false).ok()) {
      state.SkipWithError("the device could not come back");
    }
  }
  Expect(state, session->stats().live_pages == guest.pages());
  state.SetLabel(std::string(StrategyName(StrategyOf(state))));
  state.counters["per_page"] = SecondsEach(guest.pages());
}
BENCHMARK(BM_Reset)
    ->ArgNames({"strategy", "pages"})
    ->Args({static_cast<int>(Strategy::kSnapshot), 1 << 18})
    ->Args({static_cast<int>(Strategy::kDirtyLog), 1 << 18});

}  // namespace
}  // namespace viommu
