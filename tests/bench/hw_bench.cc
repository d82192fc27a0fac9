// What an IOTLB hit costs beside the loads of two lines that depend on each other, and that a
// domain's invalidation costs the same whatever is cached.
#include <benchmark/benchmark.h>

#include <array>
#include <cstdint>
#include <random>
#include <vector>

#include "iommu_core/hw/iotlb.h"

namespace viommu {
namespace {

constexpr uint16_t kDomain = 7;
constexpr Access kAccess{true, true};

// Pages in random order, each cached at the place of the next: a lookup needs the one before.
struct Chain {
  explicit Chain(uint32_t entries) : iotlb(entries, Iotlb::Key::kDomain) {
    std::mt19937_64 random(1);
    std::vector<Iova> pages;
    for (uint64_t i = 0; i < entries / 2; ++i) pages.push_back(Iova(random() >> 24 << kPageShift));
    for (const Iova page : pages) Insert(page, page);
    // A set may have been too small for all of its pages.
    std::erase_if(pages, [&](Iova page) { return !iotlb.Find(kDomain, page).has_value(); });
    for (size_t i = 0; i < pages.size(); ++i) Insert(pages[i], pages[(i + 1) % pages.size()]);
    first = pages[0];
  }
  void Insert(Iova at, Iova next) {
    Iotlb::Entry entry;
    entry.page = PhysAddr(next.value());
    entry.access = kAccess;
    entry.domain_id = DomainId(kDomain);
    iotlb.Insert(kDomain, at, entry);
  }
  Iotlb iotlb;
  Iova first;
};

void BM_IotlbHit(benchmark::State& state) {
  Chain chain(static_cast<uint32_t>(state.range(0)));
  Iova at = chain.first;
  for (auto _ : state) {
    const auto found = chain.iotlb.Find(kDomain, at);
    if (!found) {
      state.SkipWithError("a cached page was not found");
      break;
    }
    at = Iova(found->page.value());
  }
}
BENCHMARK(BM_IotlbHit)->Arg(1024)->Arg(65536);

// The floor: a line of tags and a line of entries in arrays as large as the IOTLB's. Which line it
// is comes from the page by a hash, the second address from the first line, the next page from the
// second.
void BM_FloorTwoLines(benchmark::State& state) {
  struct alignas(64) Line {
    std::array<uint64_t, 8> word{};
  };
  const auto sets = static_cast<size_t>(state.range(0)) / 8;
  const auto line_of = [&](uint64_t page) {
    return static_cast<size_t>((page * 0x9e3779b97f4a7c15 >> 32) & (sets - 1));
  };
  // Pages of different lines, one after the other in random order.
  std::vector<uint64_t> pages;
  std::vector<bool> taken(sets);
  std::mt19937_64 random(1);
  for (size_t tries = 0; tries < 20 * sets; ++tries) {
    const uint64_t page = random() >> 24;
    if (taken[line_of(page)]) continue;
    taken[line_of(page)] = true;
    pages.push_back(page);
  }
  std::vector<Line> tags(sets), entries(sets);
  for (size_t i = 0; i < pages.size(); ++i) {
    const size_t line = line_of(pages[i]);
    tags[line].word.fill(line);
    entries[line].word.fill(pages[(i + 1) % pages.size()]);
  }
  uint64_t at = pages[0];
  for (auto _ : state) at = entries[tags[line_of(at)].word[0]].word[0];
  benchmark::DoNotOptimize(at);
}
BENCHMARK(BM_FloorTwoLines)->Arg(1024)->Arg(65536);

// A domain of `cached` entries is invalidated; the entry that makes it known again is timed, too.
void BM_IotlbInvalidateDomain(benchmark::State& state) {
  const auto cached = static_cast<uint64_t>(state.range(0));
  Iotlb iotlb(65536, Iotlb::Key::kDomain);
  Iotlb::Entry entry;
  entry.access = kAccess;
  entry.domain_id = DomainId(kDomain);
  for (auto _ : state) {
    state.PauseTiming();
    for (uint64_t i = 0; i < cached; ++i) iotlb.Insert(kDomain, Iova(i << kPageShift), entry);
    state.ResumeTiming();
    for (int i = 0; i < 1000; ++i) {
      iotlb.InvalidateDomain(DomainId(kDomain));
      iotlb.Insert(kDomain, Iova(0), entry);
    }
  }
  state.counters["per_invalidation"] = benchmark::Counter(
      1000, benchmark::Counter::kIsIterationInvariantRate | benchmark::Counter::kInvert);
}
BENCHMARK(BM_IotlbInvalidateDomain)->Arg(1)->Arg(32768);

}  // namespace
}  // namespace viommu
