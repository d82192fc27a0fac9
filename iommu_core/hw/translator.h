// Translation with caches: context cache, IOTLB, paging-structure caches (VT-d 6.2), and the
// invalidations that empty them. Which lines are architecture and which are model choices is said
// at each: sizes, associativity and replacement are choices; scopes of invalidation are
// architecture.
#ifndef VIOMMU_IOMMU_CORE_HW_TRANSLATOR_H_
#define VIOMMU_IOMMU_CORE_HW_TRANSLATOR_H_

#include <cstdint>
#include <memory>
#include <span>

#include "absl/status/statusor.h"
#include "iommu_core/base/types.h"
#include "iommu_core/iq/vtd_unit.h"
#include "iommu_core/mem/physical_memory.h"
#include "iommu_core/pt/walker.h"
#include "iommu_core/vtd/fault.h"

namespace viommu {

// PCIe address types (VT-d 3.11): what a device sends.
enum class RequestKind { kUntranslated, kTranslationRequest, kTranslated };

struct TranslatorOptions {
  WalkRules rules;
  uint32_t iotlb_entries = 1024;
  bool qemu_quirks = false;
};

struct TranslateOutcome {
  vtd::FaultReason reason = vtd::FaultReason::kNone;
  bool record = false;     // the fault is to be recorded
  PhysAddr address;        // of the byte asked for
  uint64_t page_size = 0;  // bytes of the cached leaf
  Access access;           // effective permissions
  DomainId domain_id;
  bool iotlb_hit = false;
  bool interrupt_request = false;  // a write into 0xfeex_xxxx: a message, not a memory access
};

struct TranslatorStats {
  uint64_t iotlb_hits = 0;
  uint64_t iotlb_misses = 0;
  uint64_t table_reads = 0;        // entries read by misses
  uint64_t invalidations[4] = {};  // IOTLB descriptors by granularity: 1 global, 2 domain, 3 page
};

// The backend of a unit that translates by itself. Not thread-safe.
class Translator final : public UnitBackend {
 public:
  // `memory` outlives the translator.
  Translator(TranslatorOptions options, const PhysicalMemory& memory);
  ~Translator() override;

  // One request that does not cross a 4K page.
  TranslateOutcome Translate(SourceId sid, Iova iova, Access wanted,
                             RequestKind kind = RequestKind::kUntranslated);

  absl::StatusOr<Outcome> Execute(std::span<const vtd::RawDescriptor> raw,
                                  std::span<const vtd::Descriptor> decoded) override;
  absl::Status RegistersChanged(const UnitRegisters& registers) override;

  const TranslatorStats& stats() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace viommu

#endif  // VIOMMU_IOMMU_CORE_HW_TRANSLATOR_H_
