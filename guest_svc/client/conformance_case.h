// One recorded VT-d case: register writes, guest memory, descriptors and device accesses in order,
// and what QEMU's intel-iommu was seen to do. One JSON object a line; every field that could change
// a verdict is read or refused.
#ifndef VIOMMU_GUEST_SVC_CLIENT_CONFORMANCE_CASE_H_
#define VIOMMU_GUEST_SVC_CLIENT_CONFORMANCE_CASE_H_

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "iommu_core/base/types.h"
#include "iommu_core/vtd/inv_descriptor.h"

namespace viommu::conformance {

// Part of an access within one 4K page.
struct Segment {
  Iova iova;
  uint64_t size_bytes = 0;
  std::optional<PhysAddr> address;  // where it went; nullopt: blocked
  friend bool operator==(const Segment&, const Segment&) = default;
};

// The fault record as software reads it.
struct RecordedFault {
  uint64_t reason = 0;
  Iova page;
  bool read = false;
  SourceId source_id;
  friend bool operator==(const RecordedFault&, const RecordedFault&) = default;
};

// Permission: bit 0 read, bit 1 write.
struct ShadowRange {
  Iova iova;
  uint64_t size_bytes = 0;
  GuestPhys address;
  uint64_t permission = 0;
  friend bool operator==(const ShadowRange&, const ShadowRange&) = default;
};

// A call to the DMA container.
struct ShadowEvent {
  bool map = false;
  ShadowRange range;     // of an unmap: iova and size only
  bool overlap = false;  // the map hit something still mapped
  friend bool operator==(const ShadowEvent&, const ShadowEvent&) = default;
};

using ShadowRanges = std::map<SourceId, std::vector<ShadowRange>>;
using ShadowEvents = std::map<SourceId, std::vector<ShadowEvent>>;

// What one step showed. A field that is absent was not looked at.
struct Observation {
  std::optional<uint64_t> gsts;
  std::optional<uint64_t> value;
  std::optional<uint64_t> iqh;
  std::optional<uint64_t> fsts;
  std::vector<std::pair<PhysAddr, uint32_t>> words;  // status words and watched ones
  std::optional<std::vector<Segment>> segments;
  std::optional<RecordedFault> fault;  // of a DMA; nullopt: no record
  std::optional<ShadowEvents> events;
  std::optional<ShadowRanges> shadow;
};

// What a plain walk of the current tables gives for one segment.
struct WalkNote {
  std::optional<PhysAddr> address;
  uint64_t reason = 0;
  bool recorded = false;
};

enum class Op { kMem, kRegWrite, kRegRead, kQueue, kDma, kClearFaults, kClearRecord, kShadowBase };

struct Step {
  Op op = Op::kMem;
  std::vector<std::pair<PhysAddr, uint64_t>> stores;  // mem
  uint32_t offset = 0;                                // regw, regr
  uint64_t size_bytes = 0;                            // regw, regr: 4 or 8; dma
  uint64_t value = 0;                                 // regw
  PhysAddr queue_base;                                // qi
  uint64_t entries = 0;
  uint64_t first_entry = 0;
  uint64_t tail = 0;
  std::vector<vtd::RawDescriptor> descriptors;
  SourceId source_id;  // dma
  Iova iova;
  bool write = false;
  bool keep = false;    // do not clear the fault record afterwards
  bool defined = true;  // the specification leaves one outcome
  // How the recording itself says that QEMU departs here.
  std::set<std::string> quirks;
  std::vector<WalkNote> walk;
  std::optional<ShadowRanges> flat;
  // The observation, and those of other QEMU versions where they differ.
  std::vector<Observation> accepted;
};

struct Case {
  std::string id;
  std::string suite;
  int address_width = 48;
  std::vector<Step> steps;
};

// InvalidArgument says what is wrong: malformed JSON, an unknown operation, an unknown or missing
// field of a step or an observation, a value of the wrong kind.
absl::StatusOr<Case> ParseCase(absl::string_view line);

}  // namespace viommu::conformance

#endif  // VIOMMU_GUEST_SVC_CLIENT_CONFORMANCE_CASE_H_
