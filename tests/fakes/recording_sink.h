// A hypervisor that does nothing and remembers everything: what a guest sent, doorbell by doorbell.
#ifndef VIOMMU_TESTS_FAKES_RECORDING_SINK_H_
#define VIOMMU_TESTS_FAKES_RECORDING_SINK_H_

#include <vector>

#include "iommu_core/iq/invalidation_sink.h"
#include "iommu_core/vtd/capability.h"
#include "iommu_core/vtd/inv_descriptor.h"

namespace viommu {

class RecordingSink final : public InvalidationSink {
 public:
  struct Doorbell {
    std::vector<vtd::RawDescriptor> raw;
    std::vector<DeviceTouch> touches;
    TableClaim claim = TableClaim::kNone;
  };

  absl::StatusOr<uint64_t> Post(std::span<const vtd::RawDescriptor> descriptors,
                                std::span<const DeviceTouch> touches, TableClaim claim) override {
    if (!post_status.ok()) return post_status;
    doorbells.push_back(
        {{descriptors.begin(), descriptors.end()}, {touches.begin(), touches.end()}, claim});
    return doorbells.size();
  }
  absl::StatusOr<SinkCompletion> Await(uint64_t ticket, absl::Duration) override {
    if (!await_status.ok()) return await_status;
    SinkCompletion done;
    done.consumed = static_cast<uint32_t>(doorbells[ticket - 1].raw.size());
    done.cost = cost;
    return done;
  }
  absl::Status UpdateRegisters(const UnitRegisters& r) override {
    registers = r;
    return absl::OkStatus();
  }
  absl::Status UpdateDevice(SourceId, bool, bool) override { return absl::OkStatus(); }

  // The descriptors of all doorbells in order, waits left out.
  std::vector<vtd::Descriptor> Sent() const {
    const vtd::Capabilities caps = [] {
      vtd::Capabilities c = vtd::QemuCapabilities(48, true);
      c.ecap |= vtd::ecap::Dt::kMask;
      return c;
    }();
    std::vector<vtd::Descriptor> out;
    for (const Doorbell& d : doorbells) {
      for (const vtd::RawDescriptor& raw : d.raw) {
        const vtd::DecodeResult decoded = vtd::Decode(raw, caps);
        if (!std::holds_alternative<vtd::InvalidationWait>(decoded.descriptor)) {
          out.push_back(decoded.descriptor);
        }
      }
    }
    return out;
  }
  void Clear() { doorbells.clear(); }

  std::vector<Doorbell> doorbells;
  UnitRegisters registers;
  SyncCost cost;  // of every doorbell
  absl::Status post_status;
  absl::Status await_status;
};

}  // namespace viommu

#endif  // VIOMMU_TESTS_FAKES_RECORDING_SINK_H_
