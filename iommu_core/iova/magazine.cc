#include "iommu_core/iova/magazine.h"

#include <utility>

namespace viommu {

RangeCache::RangeCache(uint32_t cpus) : cpus_(cpus) {
  for (Cpu& cpu : cpus_) {
    absl::MutexLock lock(&cpu.mu);
    cpu.loaded = std::make_unique<Magazine>();
    cpu.previous = std::make_unique<Magazine>();
  }
}

std::optional<uint64_t> RangeCache::Pop(uint32_t cpu_index, uint64_t limit_pfn) {
  Cpu& cpu = cpus_[cpu_index % cpus_.size()];
  absl::MutexLock lock(&cpu.mu);
  if (cpu.loaded->empty()) {
    if (!cpu.previous->empty()) {
      std::swap(cpu.loaded, cpu.previous);
    } else {
      absl::MutexLock depot(&depot_mu_);
      if (depot_.empty()) return std::nullopt;
      cpu.loaded = std::move(depot_.back());
      depot_.pop_back();
    }
  }
  Magazine& magazine = *cpu.loaded;
  for (uint64_t i = magazine.count; i-- > 0;) {
    if (magazine.pfns[i] > limit_pfn) continue;
    const uint64_t pfn = magazine.pfns[i];
    magazine.pfns[i] = magazine.pfns[--magazine.count];
    return pfn;
  }
  return std::nullopt;
}

void RangeCache::Push(uint32_t cpu_index, uint64_t pfn) {
  Cpu& cpu = cpus_[cpu_index % cpus_.size()];
  absl::MutexLock lock(&cpu.mu);
  if (cpu.loaded->full()) {
    if (!cpu.previous->full()) {
      std::swap(cpu.loaded, cpu.previous);
    } else {
      absl::MutexLock depot(&depot_mu_);
      depot_.push_back(std::exchange(cpu.loaded, std::make_unique<Magazine>()));
    }
  }
  cpu.loaded->pfns[cpu.loaded->count++] = pfn;
}

std::vector<uint64_t> RangeCache::Drain() {
  std::vector<uint64_t> out;
  const auto take = [&out](Magazine& m) {
    out.insert(out.end(), m.pfns.begin(), m.pfns.begin() + static_cast<ptrdiff_t>(m.count));
    m.count = 0;
  };
  for (Cpu& cpu : cpus_) {
    absl::MutexLock lock(&cpu.mu);
    take(*cpu.loaded);
    take(*cpu.previous);
  }
  absl::MutexLock depot(&depot_mu_);
  for (const auto& magazine : depot_) take(*magazine);
  depot_.clear();
  return out;
}

}  // namespace viommu
