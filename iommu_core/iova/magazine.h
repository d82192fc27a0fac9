// Per-CPU caches of freed IOVA ranges by order (Linux iova.c: iova_rcache).
#ifndef VIOMMU_IOMMU_CORE_IOVA_MAGAZINE_H_
#define VIOMMU_IOMMU_CORE_IOVA_MAGAZINE_H_

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "iommu_core/iova/cpu_lock.h"

namespace viommu {

// 127 page numbers and their count: 1 KiB (IOVA_MAG_SIZE).
struct Magazine {
  static constexpr uint32_t kSize = 127;
  uint64_t count = 0;
  std::array<uint64_t, kSize> pfns;

  bool full() const { return count == kSize; }
  bool empty() const { return count == 0; }

  // The page number pushed last that is not above `limit_pfn`; the one on top takes its place
  // (iova_magazine_pop).
  std::optional<uint64_t> Pop(uint64_t limit_pfn) {
    for (uint64_t i = count; i-- > 0;) {
      if (pfns[i] > limit_pfn) continue;
      const uint64_t pfn = pfns[i];
      pfns[i] = pfns[--count];
      return pfn;
    }
    return std::nullopt;
  }
  void Push(uint64_t pfn) { pfns[count++] = pfn; }
};

// Freed ranges of 2^order pages: two magazines a CPU and order, in front of one depot an order.
// Thread-safe; calls for different CPUs meet only in the depots.
class RangeCaches {
 public:
  static constexpr int kOrders = 6;  // IOVA_RANGE_CACHE_MAX_SIZE: 0..5

  explicit RangeCaches(uint32_t cpus);

  // The range freed last on this CPU that starts at or below `limit_pfn`. Only the loaded magazine
  // is searched, after an exchange with the other one or the depot if it was empty.
  std::optional<uint64_t> Pop(uint32_t cpu_index, int order, uint64_t limit_pfn) {
    Cpu& cpu = CpuAt(cpu_index);
    CpuLockHolder lock(cpu.mu);
    Pair& pair = cpu.pairs[static_cast<size_t>(order)];
    if (pair.loaded->empty() && !Reload(pair, order)) return std::nullopt;
    const std::optional<uint64_t> pfn = pair.loaded->Pop(limit_pfn);
    if (pfn) cpu.allocated_pages += uint64_t{1} << order;
    return pfn;
  }

  void Push(uint32_t cpu_index, int order, uint64_t pfn) {
    Cpu& cpu = CpuAt(cpu_index);
    CpuLockHolder lock(cpu.mu);
    Pair& pair = cpu.pairs[static_cast<size_t>(order)];
    if (pair.loaded->full()) MakeRoom(pair, order);
    pair.loaded->Push(pfn);
    cpu.allocated_pages -= uint64_t{1} << order;
  }

  // Up to `out.size()` ranges of one page at or below `limit_pfn`, under one lock, in the order in
  // which Pop would have given them; returns how many. They count as handed out.
  size_t PopPages(uint32_t cpu_index, uint64_t limit_pfn, std::span<uint64_t> out) {
    Cpu& cpu = CpuAt(cpu_index);
    CpuLockHolder lock(cpu.mu);
    Pair& pair = cpu.pairs[0];
    size_t taken = 0;
    for (; taken < out.size(); ++taken) {
      if (pair.loaded->empty() && !Reload(pair, 0)) break;
      const std::optional<uint64_t> pfn = pair.loaded->Pop(limit_pfn);
      if (!pfn) break;
      out[taken] = *pfn;
    }
    cpu.allocated_pages += taken;
    return taken;
  }
  // Gives ranges of one page back, the first of `pfns` first.
  void PushPages(uint32_t cpu_index, std::span<const uint64_t> pfns) {
    Cpu& cpu = CpuAt(cpu_index);
    CpuLockHolder lock(cpu.mu);
    Pair& pair = cpu.pairs[0];
    for (const uint64_t pfn : pfns) {
      if (pair.loaded->full()) MakeRoom(pair, 0);
      pair.loaded->Push(pfn);
    }
    cpu.allocated_pages -= pfns.size();
  }

  // Takes everything out of every CPU and the depots.
  std::vector<uint64_t> Drain();

  // Pages handed out less pages given back, kept by CPU so that counting costs no shared cache
  // line: Pop and Push count themselves, ranges that go past the caches are counted by Count().
  void Count(uint32_t cpu_index, uint64_t pages, bool allocated);
  uint64_t allocated_pages() const;

 private:
  struct Pair {
    std::unique_ptr<Magazine> loaded = std::make_unique<Magazine>();
    std::unique_ptr<Magazine> previous = std::make_unique<Magazine>();
  };
  struct alignas(64) Cpu {
    mutable CpuLock mu;
    // Modulo 2^64: a range may be freed on another CPU than it was allocated on.
    uint64_t allocated_pages ABSL_GUARDED_BY(mu) = 0;
    std::array<Pair, kOrders> pairs ABSL_GUARDED_BY(mu);
  };
  struct alignas(64) Depot {
    absl::Mutex mu;
    std::vector<std::unique_ptr<Magazine>> magazines ABSL_GUARDED_BY(mu);
  };

  Cpu& CpuAt(uint32_t index) { return cpus_[index < cpus_.size() ? index : index % cpus_.size()]; }
  // Puts a magazine that is not empty, if there is one, in place of the empty loaded one.
  bool Reload(Pair& pair, int order);
  // Puts a magazine that is not full in place of the full loaded one.
  void MakeRoom(Pair& pair, int order);

  std::vector<Cpu> cpus_;
  std::array<Depot, kOrders> depots_;
};

}  // namespace viommu

#endif  // VIOMMU_IOMMU_CORE_IOVA_MAGAZINE_H_
