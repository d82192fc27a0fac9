// A unit over sparse memory with a scripted backend, and the few driver steps every test needs.
#ifndef VIOMMU_TESTS_IOMMU_CORE_IQ_UNIT_FIXTURE_H_
#define VIOMMU_TESTS_IOMMU_CORE_IQ_UNIT_FIXTURE_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "iommu_core/iq/vtd_unit.h"
#include "iommu_core/mem/sparse_memory.h"
#include "iommu_core/vtd/inv_descriptor.h"

namespace viommu {

// Remembers what it was given; does all of it unless told otherwise.
class ScriptedBackend final : public UnitBackend {
 public:
  absl::StatusOr<Outcome> Execute(std::span<const vtd::RawDescriptor> raw,
                                  std::span<const vtd::Descriptor> decoded) override {
    EXPECT_EQ(raw.size(), decoded.size());
    offered.emplace_back(raw.begin(), raw.end());
    if (during) during();
    if (!failure.ok()) return failure;
    if (answer) return *std::exchange(answer, std::nullopt);
    return Outcome{static_cast<uint32_t>(raw.size()), vtd::Iqei::kNone};
  }
  absl::Status RegistersChanged(const UnitRegisters& registers) override {
    if (!failure.ok()) return failure;
    pushed.push_back(registers);
    return absl::OkStatus();
  }

  absl::Status failure;
  std::optional<Outcome> answer;
  std::function<void()> during;
  std::vector<std::vector<vtd::RawDescriptor>> offered;  // one element per Execute
  std::vector<UnitRegisters> pushed;
};

inline constexpr PhysAddr kRing(0x100000);
inline constexpr PhysAddr kStatus(0x200000);
inline constexpr PhysAddr kNotRam(0x90000000);

// ECAP.SMTS, which allows 256-bit descriptors (in legacy mode too).
inline constexpr uint64_t kSmts = vtd::ecap::Smts::Make(1);

class UnitTest : public ::testing::Test {
 protected:
  UnitTest() { Make(DefaultOptions()); }

  VtdUnitOptions DefaultOptions() {
    VtdUnitOptions options;
    options.caps = vtd::QemuCapabilities(48, true);
    options.fault_event = [this] { ++fault_events; };
    options.invalidation_event = [this] { ++invalidation_events; };
    return options;
  }
  void Make(VtdUnitOptions options) {
    unit = std::make_unique<VtdUnit>(std::move(options), memory, backend);
  }

  // 6.5.2: tail 0, ring address and size, QIE.
  void EnableQueue(uint64_t iqa = kRing.value()) {
    unit->Write64(vtd::kIqt, 0);
    unit->Write64(vtd::kIqa, iqa);
    unit->Write32(vtd::kGcmd, vtd::gcmd::Qie::kMask);
    ASSERT_EQ(unit->Read32(vtd::kGsts) & vtd::gcmd::Qie::kMask, vtd::gcmd::Qie::kMask);
  }
  void Put(uint32_t index, const vtd::RawDescriptor& d) {
    memory.Write64(kRing + index * 16u, d.qw0);
    memory.Write64(kRing + index * 16u + 8, d.qw1);
  }
  void PutWide(uint32_t index, const vtd::RawDescriptor& d) {
    const uint64_t words[] = {d.qw0, d.qw1, d.qw2, d.qw3};
    for (uint64_t i = 0; i < 4; ++i) memory.Write64(kRing + index * 32u + i * 8, words[i]);
  }
  void Tail(uint64_t bytes) { unit->Write64(vtd::kIqt, bytes); }
  uint64_t Head() { return unit->Read64(vtd::kIqh); }
  uint32_t Fsts() { return unit->Read32(vtd::kFsts); }
  bool QueueStopped() { return (Fsts() & vtd::fsts::Iqe::kMask) != 0; }
  vtd::Iqei ErrorInfo() {
    return static_cast<vtd::Iqei>(vtd::iqercd::Iqei::Get(unit->Read64(vtd::kIqercd)));
  }
  void ClearQueueError() { unit->Write32(vtd::kFsts, vtd::fsts::Iqe::kMask); }
  uint32_t StatusWord(uint32_t index = 0) { return *memory.Read32(kStatus + index * 4u); }

  static vtd::RawDescriptor Global() {
    return vtd::Encode(vtd::IotlbInvalidate{
        .granularity = vtd::Granularity::kGlobal, .domain_id = {}, .address = {}});
  }
  static vtd::RawDescriptor Page(uint16_t did, uint64_t iova) {
    return vtd::Encode(vtd::IotlbInvalidate{.granularity = vtd::Granularity::kPageOrDevice,
                                            .domain_id = DomainId(did),
                                            .address = Iova(iova)});
  }
  static vtd::RawDescriptor Wait(uint32_t data, PhysAddr address = kStatus) {
    return vtd::Encode(vtd::InvalidationWait{
        .status_write = true, .status_data = data, .status_address = address});
  }
  static vtd::RawDescriptor WaitInterrupt() {
    return vtd::Encode(vtd::InvalidationWait{.interrupt = true, .status_address = {}});
  }

  SparseMemory memory{{{PhysAddr(0), PhysAddr(0x80000000)}}};
  ScriptedBackend backend;
  int fault_events = 0;
  int invalidation_events = 0;
  std::unique_ptr<VtdUnit> unit;
};

}  // namespace viommu

#endif  // VIOMMU_TESTS_IOMMU_CORE_IQ_UNIT_FIXTURE_H_
