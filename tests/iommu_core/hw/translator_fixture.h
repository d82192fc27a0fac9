// A translator over sparse memory with hand-made tables: one 4-level tree, device 0x0018 in
// domain 7.
#ifndef VIOMMU_TESTS_IOMMU_CORE_HW_TRANSLATOR_FIXTURE_H_
#define VIOMMU_TESTS_IOMMU_CORE_HW_TRANSLATOR_FIXTURE_H_

#include <cstdint>
#include <memory>

#include "gtest/gtest.h"
#include "iommu_core/hw/translator.h"
#include "iommu_core/mem/sparse_memory.h"
#include "iommu_core/vtd/root_context.h"
#include "iommu_core/vtd/second_stage_pte.h"

namespace viommu {

inline constexpr PhysAddr kRoot(0x1000);
inline constexpr PhysAddr kContexts(0x2000);  // of bus 0
inline constexpr PhysAddr kTop(0x10000);      // level 4, then 3, 2, 1 behind it
inline constexpr PhysAddr kLevel3(0x11000);
inline constexpr PhysAddr kLevel2(0x12000);
inline constexpr PhysAddr kLevel1(0x13000);
inline constexpr PhysAddr kNotRam(0x90000000);
inline constexpr SourceId kDevice(0x0018);
inline constexpr DomainId kDomain(7);

class TranslatorTest : public ::testing::Test {
 protected:
  TranslatorTest() {
    options.rules.caps = vtd::QemuCapabilities(48, true);
    options.rules.haw_bits = 48;
    Store(kRoot, vtd::RootEntry::Make(kContexts).lo);
    PutContext(kDevice, vtd::ContextEntry::Make(kTop, 4, kDomain));
    Store(kTop, vtd::SecondStagePte::Table(kLevel3).raw);
    Store(kLevel3, vtd::SecondStagePte::Table(kLevel2).raw);
    Store(kLevel2, vtd::SecondStagePte::Table(kLevel1).raw);
    MapPage(5, 0x400000);
    Make();
  }

  void Make() {
    translator = std::make_unique<Translator>(options, memory);
    Registers({kRoot, true});
  }
  void Registers(const UnitRegisters& registers) {
    ASSERT_TRUE(translator->RegistersChanged(registers).ok());
  }
  void Store(PhysAddr address, uint64_t value) { ASSERT_TRUE(memory.Write64(address, value)); }
  void PutContext(SourceId sid, vtd::ContextEntry entry) {
    const PhysAddr slot = kContexts + 16u * static_cast<uint64_t>(vtd::ContextIndex(sid));
    Store(slot + 8, entry.hi);
    Store(slot, entry.lo);
  }
  // The page with this number, in the first 2M.
  void MapPage(uint64_t page, uint64_t address, Access access = kReadWrite) {
    Store(kLevel1 + 8 * page, vtd::SecondStagePte::Leaf(PhysAddr(address), 1, access).raw);
  }
  void Invalidate(const vtd::Descriptor& descriptor) {
    const vtd::RawDescriptor raw = vtd::Encode(descriptor);
    const auto done = translator->Execute({&raw, 1}, {&descriptor, 1});
    ASSERT_TRUE(done.ok());
    EXPECT_EQ(done->consumed, 1u);
    EXPECT_EQ(done->error, vtd::Iqei::kNone);
  }
  void InvalidatePages(uint64_t address, int mask, bool leaf_hint = false, DomainId did = kDomain) {
    vtd::IotlbInvalidate d;
    d.granularity = vtd::Granularity::kPageOrDevice;
    d.domain_id = did;
    d.address_mask = static_cast<uint8_t>(mask);
    d.leaf_hint = leaf_hint;
    d.address = Iova(address);
    Invalidate(d);
  }
  void InvalidateDomain(DomainId did = kDomain) {
    vtd::IotlbInvalidate d;
    d.granularity = vtd::Granularity::kDomain;
    d.domain_id = did;
    Invalidate(d);
  }
  void InvalidateAll() {
    Invalidate(vtd::ContextCacheInvalidate{});
    Invalidate(vtd::IotlbInvalidate{});
  }
  TranslateOutcome Read(uint64_t iova, SourceId sid = kDevice) {
    return translator->Translate(sid, Iova(iova), kReadOnly);
  }
  TranslateOutcome Write(uint64_t iova, SourceId sid = kDevice) {
    return translator->Translate(sid, Iova(iova), kWriteOnly);
  }
  // Where a read goes; 0: blocked.
  uint64_t Reach(uint64_t iova, SourceId sid = kDevice) {
    const TranslateOutcome out = Read(iova, sid);
    return out.reason == vtd::FaultReason::kNone ? out.address.value() : 0;
  }

  SparseMemory memory{{{PhysAddr(0), PhysAddr(0x80000000)}}};
  TranslatorOptions options;
  std::unique_ptr<Translator> translator;
};

}  // namespace viommu

#endif  // VIOMMU_TESTS_IOMMU_CORE_HW_TRANSLATOR_FIXTURE_H_
