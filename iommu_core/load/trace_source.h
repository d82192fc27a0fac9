// A recorded stream as a load: operations happen at their recorded times.
#ifndef VIOMMU_IOMMU_CORE_LOAD_TRACE_SOURCE_H_
#define VIOMMU_IOMMU_CORE_LOAD_TRACE_SOURCE_H_

#include <cstdint>
#include <optional>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "iommu_core/load/runner.h"

namespace viommu {

class TraceSource final : public LoadSource {
 public:
  // `ops` in time order. `vcpus` at least the highest CPU of them plus one; 0:
  // exactly that.
  explicit TraceSource(std::vector<LoadOp> ops, uint32_t vcpus = 0);

  bool fixed_times() const override { return true; }
  std::optional<LoadOp> Next(const std::vector<uint64_t>& vcpu_ready_ns) override;
  uint64_t total_ops() const override { return ops_.size(); }
  uint32_t vcpus() const override { return vcpus_; }
  uint64_t ram_bytes() const override { return ram_bytes_; }
  uint32_t busiest_domain() const override { return busiest_domain_; }
  std::optional<Iova> ResidentPlace(uint64_t size_bytes, Iova end) const override;

 private:
  const std::vector<LoadOp> ops_;
  size_t next_ = 0;
  uint32_t vcpus_ = 1;
  uint64_t ram_bytes_ = 0;
  uint32_t busiest_domain_ = 0;
  std::vector<uint64_t> touched_chunks_;  // of the busiest domain, in units of 2 MiB, ascending
};

}  // namespace viommu

#endif  // VIOMMU_IOMMU_CORE_LOAD_TRACE_SOURCE_H_
