#include "guest_svc/client/qemu_shadow_model.h"

#include <algorithm>
#include <bit>
#include <limits>
#include <utility>
#include <variant>

#include "iommu_core/base/bits.h"
#include "iommu_core/vtd/root_context.h"
#include "iommu_core/vtd/second_stage_pte.h"

namespace viommu::conformance {
namespace {

// The interrupt window splits a device's address space in two; QEMU tells the upper part first.
constexpr uint64_t kInterruptFirst = 0xfee00000;
constexpr uint64_t kInterruptEnd = 0xfef00000;

constexpr uint64_t kReadBit = 1, kWriteBit = 2;

uint64_t PermissionOf(Access access) {
  return (access.read ? kReadBit : 0) | (access.write ? kWriteBit : 0);
}

}  // namespace

QemuShadowModel::QemuShadowModel(const PhysicalMemory& memory, WalkRules rules,
                                 std::span<const SourceId> devices)
    : memory_(memory), walker_(memory, rules) {
  for (const SourceId sid : devices) devices_.push_back({sid, {}, {}, {}});
}

std::array<std::pair<uint64_t, uint64_t>, 2> QemuShadowModel::Parts() const {
  const uint64_t limit = uint64_t{1} << walker_.rules().haw_bits;
  return {{{kInterruptEnd, limit}, {0, kInterruptFirst}}};
}

QemuShadowModel::Pieces::iterator QemuShadowModel::FirstOverlap(Pieces& pieces, uint64_t first,
                                                                uint64_t end) {
  auto it = pieces.upper_bound(first);
  if (it != pieces.begin()) {
    const auto before = std::prev(it);
    if (before->first + before->second.size_bytes > first) return before;
  }
  return it != pieces.end() && it->first < end ? it : pieces.end();
}

void QemuShadowModel::EraseOverlaps(Pieces& pieces, uint64_t first, uint64_t end) {
  for (auto it = FirstOverlap(pieces, first, end); it != pieces.end() && it->first < end;) {
    it = pieces.erase(it);
  }
}

void QemuShadowModel::CallMap(Device& device, uint64_t first, const Piece& piece) {
  const uint64_t end = first + piece.size_bytes;
  // VFIO maps memory only, and a mapping in one piece.
  if (!memory_.Read64(PhysAddr(piece.address)) ||
      !memory_.Read64(PhysAddr(piece.address + piece.size_bytes - sizeof(uint64_t)))) {
    return;
  }
  Piece call = piece;
  // VFIO has no write-only mapping.
  if ((call.permission & kWriteBit) != 0) call.permission |= kReadBit;
  ShadowEvent event{true,
                    {Iova(first), call.size_bytes, GuestPhys(call.address), call.permission},
                    FirstOverlap(device.mapped, first, end) != device.mapped.end()};
  device.events.push_back(event);
  Carve(device.mapped, first, end);
  device.mapped[first] = call;
}

void QemuShadowModel::CallUnmap(Device& device, uint64_t first, uint64_t size_bytes) {
  const uint64_t end = first + size_bytes;
  // Each part of the address space hears of what lies in it.
  for (const auto& [part_first, part_end] : Parts()) {
    const uint64_t from = std::max(first, part_first);
    const uint64_t to = std::min(end, part_end);
    if (from >= to) continue;
    ShadowEvent event;
    event.range.iova = Iova(from);
    event.range.size_bytes = to - from;
    device.events.push_back(event);
    Carve(device.mapped, from, to);
  }
}

void QemuShadowModel::Carve(Pieces& pieces, uint64_t first, uint64_t end) {
  for (auto it = FirstOverlap(pieces, first, end); it != pieces.end() && it->first < end;) {
    const auto [start, piece] = *it;
    const uint64_t piece_end = start + piece.size_bytes;
    it = pieces.erase(it);
    if (start < first) pieces[start] = {first - start, piece.address, piece.permission};
    if (piece_end > end) {
      pieces[end] = {piece_end - end, piece.address + (end - start), piece.permission};
      break;
    }
  }
}

void QemuShadowModel::Entry(Device& device, uint64_t first, const Piece& piece) {
  const uint64_t end = first + piece.size_bytes;
  const auto found = FirstOverlap(device.tree, first, end);
  if (piece.permission == 0) {
    if (found == device.tree.end()) return;
    EraseOverlaps(device.tree, first, end);
    CallUnmap(device, first, piece.size_bytes);
    return;
  }
  if (found != device.tree.end()) {
    if (found->first == first && found->second == piece) return;
    CallUnmap(device, first, piece.size_bytes);
    EraseOverlaps(device.tree, first, end);
  }
  device.tree[first] = piece;
  CallMap(device, first, piece);
}

void QemuShadowModel::WalkLevel(Device& device, PhysAddr table, int level, uint64_t first,
                                uint64_t end, Access access) {
  const WalkRules& rules = walker_.rules();
  const uint64_t span = vtd::LevelSize(level);
  for (uint64_t at = first; at < end;) {
    const uint64_t next = AlignDown(at, span) + span;
    const auto raw = memory_.Read64(
        table + sizeof(uint64_t) * static_cast<uint64_t>(vtd::LevelIndex(Iova(at), level)));
    const vtd::SecondStagePte pte{raw.value_or(0)};
    // Unreadable tables and reserved bits, present or not: skipped, nothing is unmapped.
    if (raw && (pte.raw & rules.ReservedBits(pte, level)) == 0) {
      const Access here{access.read && pte.access().read, access.write && pte.access().write};
      const PhysAddr address = pte.address(rules.haw_bits, level);
      if (!pte.leaf(level) && here.any()) {
        WalkLevel(device, address, level - 1, at, std::min(next, end), here);
      } else {
        // A cleared entry stands for all that its level covers.
        Entry(device, AlignDown(at, span), {span, address.value(), PermissionOf(here)});
      }
    }
    at = next;
  }
}

void QemuShadowModel::SyncRange(Device& device, const vtd::ContextEntry& context, uint64_t first,
                                uint64_t end) {
  const WalkRules& rules = walker_.rules();
  const int width = std::min(rules.caps.max_guest_width(), context.width_bits());
  const uint64_t limit = uint64_t{1} << width;
  if (first >= limit) return;
  WalkLevel(device, context.second_stage_table(rules.haw_bits), context.levels(), first,
            std::min(end, limit), kReadWrite);
}

void QemuShadowModel::UnmapWhole(Device& device) {
  const uint64_t limit = uint64_t{1} << walker_.rules().haw_bits;
  for (const auto& [first, end] : Parts()) {
    // Naturally aligned powers of two.
    for (uint64_t at = first; at < end;) {
      const uint64_t aligned = at == 0 ? limit : uint64_t{1} << std::countr_zero(at);
      const uint64_t size = std::min(aligned, std::bit_floor(end - at));
      CallUnmap(device, at, size);
      at += size;
    }
    EraseOverlaps(device.tree, first, end);
  }
}

void QemuShadowModel::SyncDevice(Device& device) {
  if (!registers_.translation_enabled) return;
  const ContextLookup context = walker_.LookupContext(registers_.root_table, device.source_id);
  // Only an absent context entry unmaps; an absent root entry or a malformed one does nothing.
  if (context.reason == vtd::FaultReason::kContextNotPresent) UnmapWhole(device);
  if (context.reason != vtd::FaultReason::kNone) return;
  SyncRange(device, context.entry, 0, std::numeric_limits<uint64_t>::max());
}

void QemuShadowModel::InvalidateContext(const vtd::ContextCacheInvalidate& d) {
  if (d.granularity == vtd::Granularity::kPageOrDevice) {
    constexpr uint16_t kMasked[] = {0, 4, 6, 7};
    const uint16_t masked = kMasked[d.function_mask & 3];
    for (Device& device : devices_) {
      if (((device.source_id.value() ^ d.source_id.value()) & ~masked) == 0) SyncDevice(device);
    }
    return;
  }
  // A domain's is carried out as a global one: everything goes, then everything comes back.
  for (Device& device : devices_) UnmapWhole(device);
  for (Device& device : devices_) SyncDevice(device);
}

void QemuShadowModel::InvalidateIotlb(const vtd::IotlbInvalidate& d) {
  if (!registers_.translation_enabled) return;
  for (Device& device : devices_) {
    if (d.granularity == vtd::Granularity::kGlobal) {
      SyncDevice(device);
      continue;
    }
    const ContextLookup context = walker_.LookupContext(registers_.root_table, device.source_id);
    if (context.reason != vtd::FaultReason::kNone || context.entry.domain_id() != d.domain_id) {
      continue;
    }
    if (d.granularity == vtd::Granularity::kDomain) {
      SyncDevice(device);
    } else {
      // The address is not aligned to the mask.
      const uint64_t first = d.address.value();
      SyncRange(device, context.entry, first, first + (kPageSize << d.address_mask));
    }
  }
}

absl::StatusOr<UnitBackend::Outcome> QemuShadowModel::Execute(
    std::span<const vtd::RawDescriptor>, std::span<const vtd::Descriptor> decoded) {
  for (const vtd::Descriptor& descriptor : decoded) {
    if (const auto* context = std::get_if<vtd::ContextCacheInvalidate>(&descriptor)) {
      InvalidateContext(*context);
    } else if (const auto* iotlb = std::get_if<vtd::IotlbInvalidate>(&descriptor)) {
      InvalidateIotlb(*iotlb);
    }
  }
  return Outcome{static_cast<uint32_t>(decoded.size()), vtd::Iqei::kNone};
}

absl::Status QemuShadowModel::RegistersChanged(const UnitRegisters& registers) {
  registers_ = registers;
  for (Device& device : devices_) UnmapWhole(device);
  for (Device& device : devices_) SyncDevice(device);
  return absl::OkStatus();
}

void QemuShadowModel::ForgetCalls() {
  for (Device& device : devices_) {
    device.events.clear();
    device.mapped.clear();
  }
}

ShadowEvents QemuShadowModel::TakeEvents() {
  ShadowEvents out;
  for (Device& device : devices_) {
    out[device.source_id] = std::exchange(device.events, {});
  }
  return out;
}

ShadowRanges QemuShadowModel::Shadow() const {
  ShadowRanges out;
  for (const Device& device : devices_) {
    auto& ranges = out[device.source_id];
    for (const auto& [first, piece] : device.mapped) {
      if (!ranges.empty()) {
        ShadowRange& last = ranges.back();
        if (last.permission == piece.permission && last.iova + last.size_bytes == Iova(first) &&
            last.address + last.size_bytes == GuestPhys(piece.address)) {
          last.size_bytes += piece.size_bytes;
          continue;
        }
      }
      ranges.push_back({Iova(first), piece.size_bytes, GuestPhys(piece.address), piece.permission});
    }
  }
  return out;
}

}  // namespace viommu::conformance
