// The trace parser on any bytes, gzip'd or not, and what it makes of them as driver calls.
#include <cstddef>
#include <cstdint>

#include "absl/container/flat_hash_set.h"
#include "fuzz_input.h"
#include "iommu_core/load/dma_api_ops.h"
#include "iommu_core/load/trace_parser.h"
#include "iommu_core/load/trace_source.h"
#include "memory_file.h"

using namespace viommu;  // NOLINT(google-build-using-namespace)

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const MemoryFile file(data, size);
  absl::StatusOr<Trace> trace = ReadTrace(file.path(), {.allow_lost_events = true});
  if (!trace.ok()) {
    FUZZ_CHECK(trace.status().code() == absl::StatusCode::kInvalidArgument);
    return 0;
  }
  FUZZ_CHECK(trace->info.maps + trace->info.unmaps > 0);
  uint64_t last_ns = 0;
  for (const LoadOp& op : trace->ops) {
    FUZZ_CHECK(op.time_ns >= last_ns);
    last_ns = op.time_ns;
    FUZZ_CHECK(op.domain < trace->info.domains);
    FUZZ_CHECK(op.cpu < trace->info.cpus);
    if (op.kind == LoadOp::Kind::kMap || op.kind == LoadOp::Kind::kUnmap) {
      FUZZ_CHECK(op.size_bytes > 0 && IsAligned(op.iova.value() | op.size_bytes, kPageSize));
    }
  }
  const DmaApiOps calls = ToDmaApiOps(trace->ops);
  FUZZ_CHECK(calls.ops.size() == trace->ops.size());
  // A tag is mapped before it is unmapped, and unmapped once.
  absl::flat_hash_set<uint64_t> live;
  for (const LoadOp& op : calls.ops) {
    if (!op.choose_iova) continue;
    if (op.kind == LoadOp::Kind::kMap) live.insert(op.tag);
    if (op.kind == LoadOp::Kind::kUnmap) FUZZ_CHECK(live.erase(op.tag) == 1);
  }
  TraceSource source(calls.ops, trace->info.cpus);
  FUZZ_CHECK(source.total_ops() == calls.ops.size());
  return 0;
}
