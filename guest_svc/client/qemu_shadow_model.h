// What QEMU's intel-iommu tells VFIO when a guest invalidates: its walk, its tree of mappings per
// device and its calls, written down as the recorded cases show them. Only a reference to compare
// recordings with; our own shadow is iommu_core/shadow.
#ifndef VIOMMU_GUEST_SVC_CLIENT_QEMU_SHADOW_MODEL_H_
#define VIOMMU_GUEST_SVC_CLIENT_QEMU_SHADOW_MODEL_H_

#include <array>
#include <cstdint>
#include <map>
#include <span>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "guest_svc/client/conformance_case.h"
#include "iommu_core/iq/vtd_unit.h"
#include "iommu_core/mem/physical_memory.h"
#include "iommu_core/pt/walker.h"

namespace viommu::conformance {

// The backend of a unit whose devices have MAP notifiers.
class QemuShadowModel final : public UnitBackend {
 public:
  // `memory` outlives the model.
  QemuShadowModel(const PhysicalMemory& memory, WalkRules rules, std::span<const SourceId> devices);

  absl::StatusOr<Outcome> Execute(std::span<const vtd::RawDescriptor> raw,
                                  std::span<const vtd::Descriptor> decoded) override;
  absl::Status RegistersChanged(const UnitRegisters& registers) override;

  // Forgets the calls and what they mapped; the tree stays.
  void ForgetCalls();
  // The calls since the last TakeEvents, by device, in order.
  ShadowEvents TakeEvents();
  // What the calls have left mapped, adjacent pieces merged.
  ShadowRanges Shadow() const;

 private:
  // One mapping as the tree of mappings, or VFIO, holds it; keyed by its first address.
  struct Piece {
    uint64_t size_bytes = 0;
    uint64_t address = 0;
    uint64_t permission = 0;
    friend bool operator==(const Piece&, const Piece&) = default;
  };
  using Pieces = std::map<uint64_t, Piece>;
  struct Device {
    SourceId source_id;
    Pieces tree;
    Pieces mapped;
    std::vector<ShadowEvent> events;
  };

  static Pieces::iterator FirstOverlap(Pieces& pieces, uint64_t first, uint64_t end);
  static void EraseOverlaps(Pieces& pieces, uint64_t first, uint64_t end);
  // Takes [first, end) out; what reaches beyond stays.
  static void Carve(Pieces& pieces, uint64_t first, uint64_t end);

  // First and end of the two parts beside the interrupt window, in the order QEMU tells them.
  std::array<std::pair<uint64_t, uint64_t>, 2> Parts() const;

  void InvalidateContext(const vtd::ContextCacheInvalidate& d);
  void InvalidateIotlb(const vtd::IotlbInvalidate& d);
  // The whole address space of the device, or nothing where its context entry is unusable.
  void SyncDevice(Device& device);
  void SyncRange(Device& device, const vtd::ContextEntry& context, uint64_t first, uint64_t end);
  void WalkLevel(Device& device, PhysAddr table, int level, uint64_t first, uint64_t end,
                 Access access);
  void Entry(Device& device, uint64_t first, const Piece& piece);
  void UnmapWhole(Device& device);
  void CallMap(Device& device, uint64_t first, const Piece& piece);
  void CallUnmap(Device& device, uint64_t first, uint64_t size_bytes);

  const PhysicalMemory& memory_;
  const Walker walker_;
  UnitRegisters registers_;
  std::vector<Device> devices_;
};

}  // namespace viommu::conformance

#endif  // VIOMMU_GUEST_SVC_CLIENT_QEMU_SHADOW_MODEL_H_
