// Per-CPU caches of freed IOVA ranges by order (Linux iova.c: iova_rcache).
#ifndef VIOMMU_IOMMU_CORE_IOVA_MAGAZINE_H_
#define VIOMMU_IOMMU_CORE_IOVA_MAGAZINE_H_

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"

namespace viommu {

// 127 page numbers and their count: 1 KiB (IOVA_MAG_SIZE).
struct Magazine {
  static constexpr uint32_t kSize = 127;
  uint64_t count = 0;
  std::array<uint64_t, kSize> pfns;

  bool full() const { return count == kSize; }
  bool empty() const { return count == 0; }
};

// The ranges of one order: two magazines a CPU in front of a shared depot.
class RangeCache {
 public:
  explicit RangeCache(uint32_t cpus);

  // The range freed last on this CPU that ends at or below `limit_pfn`; only the loaded magazine is
  // searched (iova_magazine_pop).
  std::optional<uint64_t> Pop(uint32_t cpu, uint64_t limit_pfn);
  void Push(uint32_t cpu, uint64_t pfn);
  // Takes everything out of every CPU and the depot.
  std::vector<uint64_t> Drain();

 private:
  struct alignas(64) Cpu {
    absl::Mutex mu;
    std::unique_ptr<Magazine> loaded ABSL_GUARDED_BY(mu);
    std::unique_ptr<Magazine> previous ABSL_GUARDED_BY(mu);
  };

  std::vector<Cpu> cpus_;
  absl::Mutex depot_mu_;
  std::vector<std::unique_ptr<Magazine>> depot_ ABSL_GUARDED_BY(depot_mu_);
};

}  // namespace viommu

#endif  // VIOMMU_IOMMU_CORE_IOVA_MAGAZINE_H_
