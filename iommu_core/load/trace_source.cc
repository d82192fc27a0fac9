#include "iommu_core/load/trace_source.h"

#include <algorithm>
#include <utility>

namespace viommu {
namespace {

constexpr uint64_t kChunkBytes = uint64_t{2} << 20;
// Of one operation: 2 TiB, more than a guest's memory.
constexpr uint64_t kMaxChunksPerOp = uint64_t{1} << 20;

bool IsTransfer(const LoadOp& op) {
  return op.kind == LoadOp::Kind::kMap || op.kind == LoadOp::Kind::kUnmap;
}

}  // namespace

TraceSource::TraceSource(std::vector<LoadOp> ops, uint32_t vcpus) : ops_(std::move(ops)) {
  absl::flat_hash_map<uint32_t, uint64_t> count;
  uint32_t cpus = 1;
  for (const LoadOp& op : ops_) {
    cpus = std::max<uint32_t>(cpus, uint32_t{op.cpu} + 1);
    if (op.kind == LoadOp::Kind::kMap) {
      ram_bytes_ = std::max(ram_bytes_, op.guest_pa.value() + op.size_bytes);
    }
    if (!IsTransfer(op)) continue;
    const uint64_t n = ++count[op.domain];
    const uint64_t best = count[busiest_domain_];
    if (n > best || (n == best && op.domain < busiest_domain_)) busiest_domain_ = op.domain;
  }
  vcpus_ = std::max(vcpus, cpus);
  for (const LoadOp& op : ops_) {
    if (!IsTransfer(op) || op.domain != busiest_domain_ || op.size_bytes == 0) continue;
    const uint64_t first = op.iova.value() / kChunkBytes;
    const uint64_t last = (op.iova.value() + op.size_bytes - 1) / kChunkBytes;
    for (uint64_t c = first; c <= last && c - first < kMaxChunksPerOp; ++c) {
      touched_chunks_.push_back(c);
    }
    touched_chunks_.push_back(last);
  }
  std::sort(touched_chunks_.begin(), touched_chunks_.end());
  touched_chunks_.erase(std::unique(touched_chunks_.begin(), touched_chunks_.end()),
                        touched_chunks_.end());
}

std::optional<LoadOp> TraceSource::Next(const std::vector<uint64_t>&) {
  if (next_ == ops_.size()) return std::nullopt;
  return ops_[next_++];
}

std::optional<Iova> TraceSource::ResidentPlace(uint64_t size_bytes, Iova end) const {
  const uint64_t wanted = AlignUp(size_bytes, kChunkBytes) / kChunkBytes;
  const uint64_t limit = end.value() / kChunkBytes;
  // From 4 GiB up first, where drivers rarely are; then below, but never at page 0.
  for (const auto& [from, to] : {std::pair{(uint64_t{1} << 32) / kChunkBytes, limit},
                                 std::pair{uint64_t{1}, (uint64_t{1} << 32) / kChunkBytes}}) {
    uint64_t at = from;
    for (auto it = std::lower_bound(touched_chunks_.begin(), touched_chunks_.end(), from);; ++it) {
      const uint64_t stop = it == touched_chunks_.end() ? to : std::min(*it, to);
      if (stop >= at && stop - at >= wanted) return Iova(at * kChunkBytes);
      if (it == touched_chunks_.end() || *it >= to) break;
      at = *it + 1;
    }
  }
  return std::nullopt;
}

}  // namespace viommu
