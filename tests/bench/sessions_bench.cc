// Many guests on one thread: page-selective syncs a second in total, whichever guest's turn it is.
#include <benchmark/benchmark.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "tests/bench/bench_guest.h"

namespace viommu {
namespace {

// Every guest has 1,024 live pages and sends a submission of `batch` one-page flushes when it is
// its turn, in a round one for each page; one page in four points elsewhere by then. What the
// guests do to their tables is not timed.
void BM_Sessions(benchmark::State& state) {
  constexpr uint64_t kPages = 1024;
  const auto count = static_cast<size_t>(state.range(0));
  const auto batch = static_cast<uint64_t>(state.range(1));
  struct Guest {
    Guest() : tables(kPages), session(tables.NewSyncedSession(Strategy::kSnapshot)) {}
    BenchGuest tables;
    std::unique_ptr<SessionImpl> session;
    std::vector<vtd::RawDescriptor> raw;
  };
  std::vector<std::unique_ptr<Guest>> guests;
  for (size_t i = 0; i < count; ++i) guests.push_back(std::make_unique<Guest>());
  // No page twice in a round: the second flush would find nothing changed, and the share of those
  // would depend on the number of guests.
  const uint64_t turns = kPages / batch;
  uint64_t round = 0;
  uint64_t syncs = 0;
  for (auto _ : state) {
    state.PauseTiming();
    ++round;
    for (const auto& guest : guests) {
      guest->raw.clear();
      for (uint64_t i = 0; i < kPages; ++i) {
        const uint64_t page = (round * 331 + i * 517) % kPages;
        if (i % 4 == 0) guest->tables.Set(page, page + round);
        guest->raw.push_back(guest->tables.PageFlush(page));
      }
    }
    state.ResumeTiming();
    for (uint64_t turn = 0; turn < turns; ++turn) {
      for (const auto& guest : guests) {
        const auto raw = std::span(guest->raw).subspan(turn * batch, batch);
        syncs += guest->session->Apply(raw, {}, TableClaim::kQuiet).consumed;
      }
    }
  }
  state.counters["syncs_per_second"] =
      benchmark::Counter(static_cast<double>(syncs), benchmark::Counter::kIsRate);
}
BENCHMARK(BM_Sessions)->ArgNames({"sessions", "batch"})->ArgsProduct({{2, 64, 256}, {1, 16, 64}});

}  // namespace
}  // namespace viommu
