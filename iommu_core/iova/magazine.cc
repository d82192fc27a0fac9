#include "iommu_core/iova/magazine.h"

#include <algorithm>

namespace viommu {

RangeCaches::RangeCaches(uint32_t cpus) : cpus_(std::max(1u, cpus)) {}

bool RangeCaches::Reload(Pair& pair, int order) {
  if (!pair.previous->empty()) {
    std::swap(pair.loaded, pair.previous);
    return true;
  }
  Depot& depot = depots_[static_cast<size_t>(order)];
  absl::MutexLock lock(&depot.mu);
  if (depot.magazines.empty()) return false;
  pair.loaded = std::move(depot.magazines.back());
  depot.magazines.pop_back();
  return true;
}

void RangeCaches::MakeRoom(Pair& pair, int order) {
  if (!pair.previous->full()) {
    std::swap(pair.loaded, pair.previous);
    return;
  }
  auto fresh = std::make_unique<Magazine>();
  Depot& depot = depots_[static_cast<size_t>(order)];
  absl::MutexLock lock(&depot.mu);
  depot.magazines.push_back(std::exchange(pair.loaded, std::move(fresh)));
}

std::vector<uint64_t> RangeCaches::Drain() {
  std::vector<uint64_t> out;
  const auto take = [&out](Magazine& m) {
    out.insert(out.end(), m.pfns.begin(), m.pfns.begin() + static_cast<ptrdiff_t>(m.count));
    m.count = 0;
  };
  for (Cpu& cpu : cpus_) {
    CpuLockHolder lock(cpu.mu);
    for (Pair& pair : cpu.pairs) {
      take(*pair.loaded);
      take(*pair.previous);
    }
  }
  for (Depot& depot : depots_) {
    absl::MutexLock lock(&depot.mu);
    for (const auto& magazine : depot.magazines) take(*magazine);
    depot.magazines.clear();
  }
  return out;
}

void RangeCaches::Count(uint32_t cpu_index, uint64_t pages, bool allocated) {
  Cpu& cpu = CpuAt(cpu_index);
  CpuLockHolder lock(cpu.mu);
  cpu.allocated_pages += allocated ? pages : ~pages + 1;
}

uint64_t RangeCaches::allocated_pages() const {
  uint64_t pages = 0;
  for (const Cpu& cpu : cpus_) {
    CpuLockHolder lock(cpu.mu);
    pages += cpu.allocated_pages;
  }
  return pages;
}

}  // namespace viommu
