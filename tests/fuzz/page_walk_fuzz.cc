// Walks over tables that a hostile guest wrote: the reference walk, the translator with its caches
// and the flattening must agree with each other, end in bounded work and never leave what the
// tables and the requester's permission allow.
#include <cstddef>
#include <cstdint>

#include "fuzz_input.h"
#include "iommu_core/hw/translator.h"
#include "iommu_core/mem/sparse_memory.h"
#include "iommu_core/pt/walker.h"
#include "iommu_core/vtd/inv_descriptor.h"

namespace {

using namespace viommu;  // NOLINT(google-build-using-namespace)
using vtd::FaultReason;

constexpr uint64_t kRamEnd = 0x100000;
constexpr PhysAddr kNotRam(0x7000000000);
constexpr PhysAddr kRoot(0x1000);
constexpr PhysAddr kContexts(0x2000);
constexpr PhysAddr kTables(0x10000);
constexpr uint64_t kTableCount = 16;
constexpr int kMaxSteps = 300;
constexpr uint64_t kMaxEntries = 2000;
constexpr int kDevices = 4;

class Machine {
 public:
  explicit Machine(FuzzInput& in)
      : in_(in),
        rules_(TakeRules()),
        walker_(memory_, rules_),
        translator_(Options(false), memory_),
        quirky_(Options(true), memory_) {
    memory_.Write64(kRoot, vtd::RootEntry::Make(kContexts).lo);
    FUZZ_CHECK(translator_.RegistersChanged({kRoot, true}).ok());
    FUZZ_CHECK(quirky_.RegistersChanged({kRoot, true}).ok());
  }

  void Step() {
    switch (in_.Take<uint8_t>() % 8) {
      case 0:
      case 1:
      case 2:
        WriteEntry();
        InvalidateAll();
        break;
      case 3: {
        const PhysAddr slot = kContexts + 16u * TakeDevice().value();
        const auto fields = in_.Take<uint16_t>();
        const PhysAddr table = TakeTable();
        memory_.Write64(slot, table.value() | (fields & 0x1f));
        memory_.Write64(slot + 8, (fields >> 5) & 0x7ff);
        InvalidateAll();
        break;
      }
      case 4: {
        const auto low = in_.Take<uint16_t>();
        const auto high = in_.Take<uint8_t>();
        memory_.Write64(kRoot, low | uint64_t{high} << 40);
        memory_.Write64(kRoot + 8, in_.Take<uint8_t>());
        InvalidateAll();
        break;
      }
      case 5:
        Flatten();
        break;
      default:
        Request();
    }
  }

  void Flatten() {
    const PhysAddr table = TakeTable();
    const int levels = 3 + in_.Take<uint8_t>() % 2;
    const Iova first = TakeIova();
    const IovaRange range{Iova(AlignDown(first.value(), kPageSize)),
                          Iova(uint64_t{1} << vtd::WidthOfLevels(levels))};
    uint64_t leaves = 0;
    Iova last = Iova(0);
    const absl::Status status =
        walker_.ForEachLeaf(table, levels, range, kMaxEntries, [&](const LeafMapping& leaf) {
          // Ascending, without overlap, and where the walk of one address goes.
          FUZZ_CHECK(leaves++ == 0 || leaf.iova >= last);
          last = leaf.iova + leaf.size_bytes;
          FUZZ_CHECK(last > range.first && leaf.access.any());
          const TableWalk walk = walker_.WalkTable(table, levels, leaf.iova, Access{});
          if (walk.reason == FaultReason::kInterruptRangeOutput) return;
          FUZZ_CHECK(walk.reason == FaultReason::kNone);
          FUZZ_CHECK(walk.page == leaf.address && walk.access == leaf.access);
          FUZZ_CHECK(vtd::LevelSize(walk.level) == leaf.size_bytes);
        });
    FUZZ_CHECK(leaves <= kMaxEntries);
    FUZZ_CHECK(status.ok() || absl::IsResourceExhausted(status));
  }

  void Request() {
    const SourceId sid = TakeDevice();
    const Iova iova = TakeIova();
    const auto flags = in_.Take<uint8_t>();
    const Access wanted = (flags & 1) != 0 ? kWriteOnly : kReadOnly;
    if (vtd::InInterruptRange(iova.value())) {
      // 3.14: never translated.
      FUZZ_CHECK(translator_.Translate(sid, iova, wanted).interrupt_request == wanted.write);
      return;
    }
    if (HasATwin(sid)) InvalidateAll();
    const Translation expected = walker_.Translate(kRoot, sid, iova, wanted);
    // Once filling the caches, once from them.
    for (int round = 0; round < 2; ++round) {
      const TranslateOutcome got = translator_.Translate(sid, iova, wanted);
      FUZZ_CHECK(got.reason == expected.reason);
      if (got.reason != FaultReason::kNone) {
        FUZZ_CHECK(got.record ==
                   !(expected.fault_processing_disabled && vtd::QualifiedByFpd(got.reason)));
        continue;
      }
      FUZZ_CHECK(got.address == expected.address && got.page_size == expected.page_size);
      FUZZ_CHECK(got.access == expected.access && got.domain_id == expected.domain_id);
      FUZZ_CHECK((got.address.value() >> rules_.haw_bits) == 0);
      FUZZ_CHECK((got.access.read || !wanted.read) && (got.access.write || !wanted.write));
      FUZZ_CHECK(!vtd::InInterruptRange(got.address.value()) || expected.pass_through);
    }
    // QEMU's departures only ever block more.
    const TranslateOutcome theirs = quirky_.Translate(sid, iova, wanted);
    if (theirs.reason == FaultReason::kNone) {
      FUZZ_CHECK(expected.reason == FaultReason::kNone && theirs.address == expected.address);
    }
    if ((flags & 2) != 0) {  // ATS: whatever is answered, no more than the tables allow
      const auto ats = translator_.Translate(sid, iova, wanted, RequestKind::kTranslationRequest);
      if (ats.reason == FaultReason::kNone && ats.access.any()) {
        const Translation any = walker_.Translate(kRoot, sid, iova, Access{});
        FUZZ_CHECK(any.reason == FaultReason::kNone && any.access == ats.access);
        FUZZ_CHECK(any.address == ats.address);
      }
    }
  }

 private:
  WalkRules TakeRules() {
    const auto flags = in_.Take<uint8_t>();
    WalkRules rules;
    rules.haw_bits = (flags & 1) != 0 ? 39 : 48;
    rules.caps = vtd::QemuCapabilities(rules.haw_bits, true);
    if ((flags & 2) != 0) rules.caps.ecap |= vtd::ecap::Dt::kMask;
    if ((flags & 4) != 0) rules.caps.ecap |= vtd::ecap::Sc::kMask;
    if ((flags & 8) != 0) rules.caps.ecap &= ~vtd::ecap::Pt::kMask;
    if ((flags & 16) != 0) rules.caps.cap = vtd::cap::Sslps::Set(rules.caps.cap, 0);
    return rules;
  }
  TranslatorOptions Options(bool quirks) const {
    TranslatorOptions options;
    options.rules = rules_;
    options.iotlb_entries = 8;
    options.qemu_quirks = quirks;
    return options;
  }
  // Another device has the same domain id and other tables. Caches are tagged with the domain
  // (6.2), so either may get the other's translations: software has to keep them apart.
  bool HasATwin(SourceId sid) const {
    const ContextLookup own = walker_.LookupContext(kRoot, sid);
    if (own.reason != FaultReason::kNone) return false;
    for (int device = 0; device < kDevices; ++device) {
      const ContextLookup other =
          walker_.LookupContext(kRoot, SourceId(static_cast<uint16_t>(device)));
      if (other.reason == FaultReason::kNone && other.entry != own.entry &&
          other.entry.domain_id() == own.entry.domain_id()) {
        return true;
      }
    }
    return false;
  }
  // One argument after the other: compilers differ in the order of a call's arguments, and an input
  // has to mean the same under all of them.
  void WriteEntry() {
    const PhysAddr slot = TakeSlot();
    memory_.Write64(slot, TakeEntry());
  }
  SourceId TakeDevice() { return SourceId(static_cast<uint16_t>(in_.Take<uint8_t>() % kDevices)); }
  PhysAddr TakeTable() {
    const auto which = in_.Take<uint8_t>();
    return which == 0xff ? kNotRam : kTables + kPageSize * (which % kTableCount);
  }
  static uint64_t Index(uint8_t code) { return (code & 7) == 7 ? 511 : code & 7; }
  PhysAddr TakeSlot() {
    const PhysAddr table = kTables + kPageSize * (in_.Take<uint8_t>() % kTableCount);
    return table + 8 * Index(in_.Take<uint8_t>());
  }
  Iova TakeIova() {
    uint64_t iova = in_.Take<uint16_t>() & kPageMask;
    for (int level = 1; level <= 4; ++level) {
      iova |= Index(in_.Take<uint8_t>()) << vtd::LevelShift(level);
    }
    return Iova(iova);
  }
  // A few bytes that make a likely entry, or a whole word of anything.
  uint64_t TakeEntry() {
    const auto kind = in_.Take<uint8_t>();
    const uint64_t low = kind >> 3 & 0xf;  // R, W and two ignored bits
    switch (kind & 7) {
      case 0:
        return in_.Take<uint64_t>();
      case 1:
      case 2:
        return TakeTable().value() | low | 1;
      case 3:
      case 4:
        return uint64_t{in_.Take<uint32_t>()} << kPageShift | low;
      case 5:
        return uint64_t{in_.Take<uint32_t>() & ~uint32_t{0x1ff}} << kPageShift | low |
               vtd::SecondStagePte::Ps::kMask;
      case 6:
        return uint64_t{in_.Take<uint16_t>()} << 30 | low | vtd::SecondStagePte::Ps::kMask;
      default:
        return low;
    }
  }
  void InvalidateAll() {
    const vtd::Descriptor all[] = {vtd::ContextCacheInvalidate{}, vtd::IotlbInvalidate{}};
    const vtd::RawDescriptor raw[] = {vtd::Encode(all[0]), vtd::Encode(all[1])};
    FUZZ_CHECK(translator_.Execute(raw, all)->consumed == 2);
    FUZZ_CHECK(quirky_.Execute(raw, all)->consumed == 2);
  }

  FuzzInput& in_;
  SparseMemory memory_{{{PhysAddr(0), PhysAddr(kRamEnd)}}};
  const WalkRules rules_;
  const Walker walker_;
  Translator translator_;
  Translator quirky_;
};

}  // namespace

// Input: capability flags, then steps.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  FuzzInput in(data, size);
  Machine machine(in);
  for (int step = 0; step < kMaxSteps && !in.empty(); ++step) machine.Step();
  return 0;
}
