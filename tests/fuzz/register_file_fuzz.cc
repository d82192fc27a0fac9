// A unit whose driver, ring, backend and interrupt handlers do anything: after every step the
// registers must agree with each other and with what the backend was given.
#include <cstddef>
#include <cstdint>
#include <span>

#include "fuzz_input.h"
#include "iommu_core/iq/vtd_unit.h"
#include "iommu_core/mem/sparse_memory.h"

namespace {

using namespace viommu;  // NOLINT(google-build-using-namespace)

constexpr uint64_t kRamEnd = 0x200000;
constexpr uint32_t kRecords = 4;
constexpr int kMaxSteps = 400;
// Beyond this, an interrupt handler no longer rings the doorbell.
constexpr int kMaxHandlerCalls = 64;

constexpr uint32_t kOffsets[] = {
    vtd::kVer,   vtd::kCap,    vtd::kEcap,   vtd::kGcmd,    vtd::kGsts,   vtd::kRtaddr,
    vtd::kCcmd,  vtd::kFsts,   vtd::kFectl,  vtd::kFedata,  vtd::kFeaddr, vtd::kFeuaddr,
    vtd::kAflog, vtd::kPmen,   vtd::kIqh,    vtd::kIqt,     vtd::kIqa,    vtd::kIcs,
    vtd::kIectl, vtd::kIedata, vtd::kIeaddr, vtd::kIeuaddr, vtd::kIqercd, vtd::kIrta,
    0xf0,        0xf8,         0x220,        0x228,         0x238,        0x258,
    vtd::kGcmd,  vtd::kIqt};

class Machine final : public UnitBackend {
 public:
  explicit Machine(FuzzInput& in) : in_(in), unit_(TakeOptions(), memory_, *this) {}

  absl::StatusOr<Outcome> Execute(std::span<const vtd::RawDescriptor> raw,
                                  std::span<const vtd::Descriptor> decoded) override {
    FUZZ_CHECK(!raw.empty() && raw.size() == decoded.size() && raw.size() <= 32768);
    for (size_t i = 0; i < raw.size(); ++i) {
      // The width is checked by the queue; a zero-padded descriptor decodes either way.
      const auto again = vtd::Decode(raw[i], options_.caps, true, {options_.qemu_quirks});
      FUZZ_CHECK(again.error == vtd::Iqei::kNone && again.descriptor == decoded[i]);
    }
    switch (mood_ & 3) {
      case 1:
        return absl::UnavailableError("scripted");
      case 2:
        return Outcome{static_cast<uint32_t>(raw.size() - 1), vtd::Iqei::kReservedField};
      case 3:
        return Outcome{static_cast<uint32_t>(raw.size() / 2 + 1), vtd::Iqei::kNone};
      default:
        return Outcome{static_cast<uint32_t>(raw.size()), vtd::Iqei::kNone};
    }
  }
  absl::Status RegistersChanged(const UnitRegisters&) override {
    return (mood_ & 3) == 1 ? absl::UnavailableError("scripted") : absl::OkStatus();
  }

  void Step() {
    switch (in_.Take<uint8_t>() % 10) {
      case 0:
      case 1: {
        const uint32_t offset = TakeOffset();
        unit_.Write32(offset, in_.Take<uint32_t>());
        break;
      }
      case 2: {
        const uint32_t offset = TakeOffset();
        unit_.Write64(offset, in_.Take<uint64_t>());
        break;
      }
      case 3: {
        const uint32_t offset = TakeOffset();
        FUZZ_CHECK(unit_.Read64(offset) ==
                   (unit_.Read32(offset) | uint64_t{unit_.Read32(offset + 4)} << 32));
        break;
      }
      case 4: {  // a descriptor, short form: type and flags in the low word, a small address
        const PhysAddr slot(in_.Take<uint8_t>() * 16u + ring_);
        const auto low = in_.Take<uint16_t>();
        memory_.Write64(slot, low | uint64_t{in_.Take<uint16_t>()} << 32);
        memory_.Write64(slot + 8, in_.Take<uint16_t>());
        break;
      }
      case 5:
        memory_.Write64(PhysAddr(AlignDown(in_.Take<uint32_t>() % kRamEnd, 8)),
                        in_.Take<uint64_t>());
        break;
      case 6:
        mood_ = in_.Take<uint8_t>();
        break;
      case 7:
        unit_.RecordFault({SourceId(in_.Take<uint8_t>()),
                           Iova(AlignDown(in_.Take<uint32_t>(), kPageSize)),
                           vtd::FaultReason::kReadDenied, true});
        break;
      case 8:
        (void)unit_.Resume();
        break;
      case 9:  // what a driver does: ring, size, enable, tail
        ring_ = in_.Take<uint8_t>() * kPageSize;
        unit_.Write64(vtd::kIqa, ring_ | (in_.Take<uint8_t>() & 0x7) |
                                     (in_.Take<uint8_t>() & 1 ? vtd::iqa::Dw::kMask : 0));
        unit_.Write32(vtd::kGcmd, vtd::gcmd::Qie::kMask);
        unit_.Write64(vtd::kIqt, in_.Take<uint8_t>() * 16u);
        break;
    }
    Check();
  }

  // A backend that works again and a good ring: everything outstanding gets done.
  void Finish() {
    mood_ = 0;
    FUZZ_CHECK(unit_.Resume().ok());
    Check();
    FUZZ_CHECK((unit_.Read32(vtd::kGsts) & vtd::gcmd::Te::kMask) ==
               (unit_.latched().translation_enabled ? vtd::gcmd::Te::kMask : 0));
  }

 private:
  VtdUnitOptions TakeOptions() {
    const auto flags = in_.Take<uint8_t>();
    options_.caps = vtd::QemuCapabilities((flags & 1) != 0 ? 39 : 48, true);
    options_.caps.cap = vtd::cap::Nfr::Set(options_.caps.cap, kRecords - 1);
    if ((flags & 2) != 0) options_.caps.ecap |= vtd::ecap::Smts::kMask;
    if ((flags & 4) != 0) options_.caps.ecap |= vtd::ecap::Dt::kMask;
    if ((flags & 8) != 0) options_.caps.ecap |= vtd::ecap::Ir::kMask;
    if ((flags & 16) != 0) options_.caps.cap |= vtd::cap::Plmr::kMask;
    options_.qemu_quirks = (flags & 32) != 0;
    VtdUnitOptions options = options_;
    options.fault_event = [this] { Handler(vtd::kFsts, ~0u); };
    options.invalidation_event = [this] { Handler(vtd::kIcs, 1); };
    return options;
  }
  uint32_t TakeOffset() {
    const auto code = in_.Take<uint8_t>();
    if ((code & 0x80) != 0) return (code & 0x7f) * 8u + in_.Take<uint8_t>() % 8;
    return kOffsets[code % std::size(kOffsets)] + (code >> 5) % 2 * 4;
  }
  // Services the status and, if the script says so, submits more from inside the interrupt.
  void Handler(uint32_t status, uint32_t bits) {
    if ((mood_ & 0x10) != 0) unit_.Write32(status, bits);
    if ((mood_ & 0x20) == 0 || ++handler_calls_ > kMaxHandlerCalls) return;
    unit_.Write64(vtd::kIqt, in_.Take<uint8_t>() * 16u);
  }

  void Check() {
    FUZZ_CHECK(unit_.Read32(vtd::kVer) == 0x10);
    FUZZ_CHECK(unit_.Read64(vtd::kCap) == options_.caps.cap);
    FUZZ_CHECK(unit_.Read64(vtd::kEcap) == options_.caps.ecap);
    FUZZ_CHECK(unit_.Read32(vtd::kGcmd) == 0);

    const bool enabled = (unit_.Read32(vtd::kGsts) & vtd::gcmd::Qie::kMask) != 0;
    const uint64_t iqa = unit_.Read64(vtd::kIqa);
    const uint64_t head = unit_.Read64(vtd::kIqh);
    const uint32_t fsts = unit_.Read32(vtd::kFsts);
    const bool stopped = (fsts & vtd::fsts::Iqe::kMask) != 0;
    const bool ok = unit_.last_status().ok();
    FUZZ_CHECK(head < kPageSize << vtd::iqa::Qs::Get(iqa));
    FUZZ_CHECK(IsAligned(head, vtd::iqa::Dw::Get(iqa) != 0 ? 32 : 16));
    FUZZ_CHECK(enabled || head == 0);
    if (!options_.qemu_quirks) {
      const bool coded = vtd::iqercd::Iqei::Get(unit_.Read64(vtd::kIqercd)) != 0;
      FUZZ_CHECK(coded == stopped);
      if (enabled && ok && !stopped) FUZZ_CHECK(head == unit_.Read64(vtd::kIqt));
      if (ok) {
        FUZZ_CHECK(vtd::ccmd::Icc::Get(unit_.Read64(vtd::kCcmd)) == 0);
        FUZZ_CHECK(vtd::iotlb::Ivt::Get(unit_.Read64(0xf8)) == 0);
      }
    }

    const uint32_t records = options_.qemu_quirks ? 1 : kRecords;
    bool pending = false;
    for (uint32_t i = 0; i < records; ++i) {
      pending |= vtd::FaultRecord::F::Get(unit_.Read64(0x228 + 16 * i)) != 0;
    }
    FUZZ_CHECK(pending == ((fsts & vtd::fsts::Ppf::kMask) != 0));
    FUZZ_CHECK(vtd::fsts::Fri::Get(fsts) < records);
    // An event is never held back while it is not masked.
    for (const uint32_t control : {vtd::kFectl, vtd::kIectl}) {
      const uint32_t value = unit_.Read32(control);
      FUZZ_CHECK((value & 0x40000000) == 0 || (value & 0x80000000) != 0);
    }
  }

  FuzzInput& in_;
  SparseMemory memory_{{{PhysAddr(0), PhysAddr(kRamEnd)}}};
  VtdUnitOptions options_;
  uint64_t ring_ = 0x1000;
  uint8_t mood_ = 0;
  int handler_calls_ = 0;
  VtdUnit unit_;
};

}  // namespace

// Input: capability flags, then steps.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  FuzzInput in(data, size);
  Machine machine(in);
  for (int step = 0; step < kMaxSteps && !in.empty(); ++step) machine.Step();
  machine.Finish();
  return 0;
}
