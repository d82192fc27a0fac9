// What an IOVA allocation and its release cost: through the per-CPU magazines, and through the lock
// and the tree that they stand in front of.
#include <benchmark/benchmark.h>

#include <vector>

#include "absl/synchronization/mutex.h"
#include "iommu_core/iova/iova_allocator.h"
#include "iommu_core/iova/range_tree.h"

namespace viommu {
namespace {

// A pair on one CPU with `resident` other ranges allocated; argument: resident ranges.
void BM_MagazinePair(benchmark::State& state) {
  IovaAllocator iovas({.cpus = 1});
  for (int64_t i = 0; i < state.range(0); ++i) iovas.Allocate(kPageSize, 0).value();
  for (auto _ : state) {
    const Iova iova = *iovas.Allocate(kPageSize, 0);
    iovas.Free(iova, kPageSize, 0);
  }
}
BENCHMARK(BM_MagazinePair)->Arg(0)->Arg(1024)->Arg(131072);

// The same without magazines: one mutex, one tree.
void BM_MutexTreePair(benchmark::State& state) {
  absl::Mutex mu;
  RangeTree tree(1);
  constexpr uint64_t kEndPfn = uint64_t{1} << 20;
  for (int64_t i = 0; i < state.range(0); ++i) tree.Allocate(1, kEndPfn).value();
  for (auto _ : state) {
    uint64_t pfn;
    {
      absl::MutexLock lock(&mu);
      pfn = *tree.Allocate(1, kEndPfn);
    }
    absl::MutexLock lock(&mu);
    tree.Free(pfn);
  }
}
BENCHMARK(BM_MutexTreePair)->Arg(0)->Arg(1024)->Arg(131072);

// Bursts longer than a CPU's two magazines: the depot takes part. Time is per range.
void BM_MagazineBurst(benchmark::State& state) {
  IovaAllocator iovas({.cpus = 1});
  std::vector<Iova> burst(static_cast<size_t>(state.range(0)));
  for (auto _ : state) {
    for (Iova& iova : burst) iova = *iovas.Allocate(kPageSize, 0);
    for (const Iova iova : burst) iovas.Free(iova, kPageSize, 0);
  }
  state.SetItemsProcessed(state.iterations() * state.range(0));
}
BENCHMARK(BM_MagazineBurst)->Arg(64)->Arg(1024)->Arg(32768);

// Larger than 32 pages: the tree every time.
void BM_LargePair(benchmark::State& state) {
  IovaAllocator iovas({.cpus = 1});
  for (int64_t i = 0; i < state.range(0); ++i) iovas.Allocate(kPageSize, 0).value();
  for (auto _ : state) {
    const Iova iova = *iovas.Allocate(64 * kPageSize, 0);
    iovas.Free(iova, 64 * kPageSize, 0);
  }
}
BENCHMARK(BM_LargePair)->Arg(0)->Arg(131072);

// One CPU a thread: time per pair must not grow with the threads.
void BM_MagazinePairThreads(benchmark::State& state) {
  static IovaAllocator* iovas = new IovaAllocator({.cpus = 2});
  const auto cpu = static_cast<uint32_t>(state.thread_index());
  for (auto _ : state) {
    const Iova iova = *iovas->Allocate(kPageSize, cpu);
    iovas->Free(iova, kPageSize, cpu);
  }
}
BENCHMARK(BM_MagazinePairThreads)->Threads(1)->Threads(2)->UseRealTime();

void BM_MutexTreePairThreads(benchmark::State& state) {
  static absl::Mutex mu;
  static RangeTree* tree = new RangeTree(1);
  for (auto _ : state) {
    uint64_t pfn;
    {
      absl::MutexLock lock(&mu);
      pfn = *tree->Allocate(1, uint64_t{1} << 20);
    }
    absl::MutexLock lock(&mu);
    tree->Free(pfn);
  }
}
BENCHMARK(BM_MutexTreePairThreads)->Threads(1)->Threads(2)->UseRealTime();

}  // namespace
}  // namespace viommu
