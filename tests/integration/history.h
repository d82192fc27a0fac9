// What a load client saw, operation by operation, and the rules that any such record must obey:
// no operation lost or run twice, no unmap complete before its invalidation, no IOVA reused early.
#ifndef VIOMMU_TESTS_INTEGRATION_HISTORY_H_
#define VIOMMU_TESTS_INTEGRATION_HISTORY_H_

#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "absl/status/status.h"

namespace viommu {

// One call and its answer. Times are of one monotonic clock, taken before the call was made and
// after its answer was there: what the service did lies somewhere between.
struct Op {
  enum class Kind { kMap, kUnmap, kWrite, kRead };

  Kind kind = Kind::kMap;
  uint32_t domain = 0;
  uint64_t mapping = 0;  // the client's own number of the mapping; an attempt to map has one, too
  uint64_t iova = 0;     // 0: a map that failed
  uint64_t size_bytes = 0;
  uint64_t guest_pa = 0;  // of a map that succeeded
  int64_t start_ns = 0;
  int64_t end_ns = 0;
  absl::StatusCode code = absl::StatusCode::kOk;
  bool nothing_done = false;  // the answer says that the operation was not even started
  uint32_t fault_reason = 0;  // of a device access; not 0: blocked
  uint64_t data = 0;          // written, or read
};

// Between these two moments there was no hypervisor process at all.
struct Outage {
  int64_t dead_ns = 0;       // it is known to be gone
  int64_t restarted_ns = 0;  // its successor was not started before this
};

// What the guest says about itself at the end, when nothing is under way.
struct GuestTotals {
  uint64_t maps = 0;
  uint64_t unmaps = 0;
  uint64_t iova_allocated_bytes = 0;
};

struct History {
  std::vector<Op> ops;
  std::vector<Outage> outages;
};

// A mapping that the record says is still there.
struct LiveMapping {
  uint32_t domain = 0;
  uint64_t mapping = 0;
  uint64_t iova = 0;
  uint64_t size_bytes = 0;
  uint64_t guest_pa = 0;
};

// One sentence for each violation, at most 20; empty: the record obeys every rule. All unmaps are
// strict, and one that failed is not asked for again unless nothing was done: its IOVA may have
// another owner by then.
std::vector<std::string> CheckHistory(const History& history);
// The guest's own totals against the record: an operation that ran twice, or was reported and never
// ran, shows here even if nobody touched its memory. Something must have been completed since the
// last unmap that failed, or its IOVA is still held.
std::vector<std::string> CheckTotals(const History& history, const GuestTotals& totals);
std::vector<LiveMapping> LiveMappings(const History& history);

}  // namespace viommu

#endif  // VIOMMU_TESTS_INTEGRATION_HISTORY_H_
