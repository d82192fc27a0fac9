#include "iommu_core/pt/walker.h"

#include <algorithm>
#include <array>
#include <vector>

#include "iommu_core/base/errors.h"

namespace viommu {

using vtd::FaultReason;

uint64_t WalkRules::ReservedBits(vtd::SecondStagePte pte, int level) const {
  // Address bits from HAW to 51. Bits 61:52 and 63 are ignored; 62 (TM) is reserved without DT.
  uint64_t reserved = BitMask(51, haw_bits);
  if (!caps.device_tlb()) reserved |= BitMask(62, 62);
  if (!caps.snoop_control()) reserved |= vtd::SecondStagePte::Snp::kMask;
  if (level > 1) {
    if (vtd::SecondStagePte::Ps::Get(pte.raw) == 0) {
      // A pointer to the next table: SNP is not defined there.
      reserved |= vtd::SecondStagePte::Snp::kMask;
    } else if (LeafAllowed(level)) {
      // 9.9: the address bits below the page size, bit 12 upwards.
      reserved |= BitMask(vtd::LevelShift(level) - 1, kPageShift);
    } else {
      reserved |= vtd::SecondStagePte::Ps::kMask;
    }
  }
  return reserved;
}

ContextLookup Walker::LookupContext(PhysAddr root_table, SourceId sid) const {
  ContextLookup out;
  // Step 1: the root entry of the bus.
  const PhysAddr root = root_table + 16u * static_cast<uint64_t>(vtd::RootIndex(sid));
  const auto root_lo = memory_.Read64(root);
  const auto root_hi = memory_.Read64(root + 8);
  out.entries_read += 2;
  if (!root_lo || !root_hi) {
    out.reason = FaultReason::kRootTableAccess;
    return out;
  }
  const vtd::RootEntry root_entry{*root_lo, *root_hi};
  if (!root_entry.present()) {
    out.reason = FaultReason::kRootNotPresent;
    return out;
  }
  if (root_entry.reserved_lo(rules_.haw_bits) != 0 || root_entry.reserved_hi() != 0) {
    out.reason = FaultReason::kRootReserved;
    return out;
  }
  // Step 2: the context entry of the device and function.
  const PhysAddr context = root_entry.context_table(rules_.haw_bits) +
                           16u * static_cast<uint64_t>(vtd::ContextIndex(sid));
  const auto lo = memory_.Read64(context);
  const auto hi = memory_.Read64(context + 8);
  out.entries_read += 2;
  if (!lo || !hi) {
    out.reason = FaultReason::kContextTableAccess;
    return out;
  }
  out.entry = {*lo, *hi};
  out.fault_processing_disabled = out.entry.fault_processing_disabled();
  if (!out.entry.present()) {
    out.reason = FaultReason::kContextNotPresent;
    return out;
  }
  if (out.entry.reserved_lo(rules_.haw_bits) != 0 || out.entry.reserved_hi() != 0) {
    out.reason = FaultReason::kContextReserved;
    return out;
  }
  // Step 3: AW and TT must be programmed to something this unit supports.
  const bool width_ok =
      (vtd::cap::Sagaw::Get(rules_.caps.cap) >> out.entry.address_width_code()) & 1;
  bool type_ok = false;
  switch (out.entry.translation_type()) {
    case vtd::TranslationType::kUntranslatedOnly:
      type_ok = true;
      break;
    case vtd::TranslationType::kWithDeviceTlb:
      type_ok = rules_.caps.device_tlb();
      break;
    case vtd::TranslationType::kPassThrough:
      type_ok = rules_.caps.pass_through();
      break;
    case vtd::TranslationType::kReserved:
      break;
  }
  if (!width_ok || !type_ok) out.reason = FaultReason::kContextInvalid;
  return out;
}

TableWalk Walker::WalkTable(PhysAddr table, int levels, Iova iova, Access wanted) const {
  TableWalk out;
  out.access = kReadWrite;
  for (int level = levels;; --level) {
    out.level = level;
    const PhysAddr slot =
        table + sizeof(uint64_t) * static_cast<uint64_t>(vtd::LevelIndex(iova, level));
    const auto raw = memory_.Read64(slot);
    ++out.entries_read;
    if (!raw) {
      // 7.1.3: an unreadable table at SSPTPTR makes the context entry invalid.
      out.reason = level == levels ? FaultReason::kContextInvalid : FaultReason::kTableAccess;
      return out;
    }
    const vtd::SecondStagePte pte{*raw};
    // 9.9: reserved bits are checked only where the entry is present.
    if (pte.present() && (pte.raw & rules_.ReservedBits(pte, level)) != 0) {
      out.reason = FaultReason::kPteReserved;
      return out;
    }
    out.access.read = out.access.read && pte.access().read;
    out.access.write = out.access.write && pte.access().write;
    if (wanted.write && !out.access.write) {
      out.reason = FaultReason::kWriteDenied;
      return out;
    }
    if ((wanted.read && !out.access.read) || !out.access.any()) {
      out.reason = FaultReason::kReadDenied;
      return out;
    }
    if (pte.leaf(level)) {
      out.page = pte.address(rules_.haw_bits, level);
      // 3.14: blocked where the result, not merely the page, is in the interrupt range.
      if (vtd::InInterruptRange(out.page.value() + (iova.value() & (vtd::LevelSize(level) - 1)))) {
        out.reason = FaultReason::kInterruptRangeOutput;
        return out;
      }
      out.snoop = pte.snoop();
      return out;
    }
    table = pte.address(rules_.haw_bits, level);
  }
}

Translation Walker::Translate(PhysAddr root_table, SourceId sid, Iova iova, Access wanted) const {
  Translation out;
  const ContextLookup context = LookupContext(root_table, sid);
  out.fault_processing_disabled = context.fault_processing_disabled;
  out.reason = context.reason;
  if (out.reason != FaultReason::kNone) return out;
  out.domain_id = context.entry.domain_id();
  if (context.entry.translation_type() == vtd::TranslationType::kPassThrough) {
    // 3.9: identity, but still bounded by the host address width.
    if ((iova.value() >> rules_.haw_bits) != 0) {
      out.reason = FaultReason::kAddressBeyondWidth;
      return out;
    }
    out.pass_through = true;
    out.address = PhysAddr(iova.value());
    out.page_size = kPageSize;
    out.access = kReadWrite;
    return out;
  }
  // 3.6: the input address is bounded by the smaller of MGAW and the context entry's width.
  const int width = std::min(rules_.caps.max_guest_width(), context.entry.width_bits());
  if ((iova.value() >> width) != 0) {
    out.reason = FaultReason::kAddressBeyondWidth;
    return out;
  }
  const TableWalk walk = WalkTable(context.entry.second_stage_table(rules_.haw_bits),
                                   context.entry.levels(), iova, wanted);
  out.reason = walk.reason;
  out.access = walk.access;
  if (out.reason == FaultReason::kNone) {
    out.page_size = vtd::LevelSize(walk.level);
    out.address = walk.page + (iova.value() & (out.page_size - 1));
  }
  return out;
}

void Walker::PrefetchBelow(PhysAddr table, int level, uint64_t first, uint64_t end) const {
  const uint64_t table_end =
      AlignDown(first, vtd::LevelSize(level + 1)) + vtd::LevelSize(level + 1);
  std::vector<PhysAddr> tables;
  for (uint64_t at = first; at < std::min(end, table_end);
       at = AlignDown(at, vtd::LevelSize(level)) + vtd::LevelSize(level)) {
    const auto index = static_cast<uint64_t>(vtd::LevelIndex(Iova(at), level));
    const vtd::SecondStagePte pte{memory_.Read64(table + sizeof(uint64_t) * index).value_or(0)};
    if (!pte.present() || pte.leaf(level) || (pte.raw & rules_.ReservedBits(pte, level)) != 0) {
      continue;
    }
    tables.push_back(pte.address(rules_.haw_bits, level));
  }
  // The read of a single one waits just as long.
  if (tables.size() > 1) pulled_->Prefetch(tables);
}

absl::Status Walker::ForEachLeaf(PhysAddr table, int levels, IovaRange range, uint64_t max_entries,
                                 absl::FunctionRef<void(const LeafMapping&)> visit) const {
  constexpr int kMaxLevels = 5;
  struct Frame {
    PhysAddr table;
    Access access;
  };
  std::array<Frame, kMaxLevels + 1> stack;
  const uint64_t top =
      vtd::WidthOfLevels(levels) >= 64 ? ~uint64_t{0} : uint64_t{1} << vtd::WidthOfLevels(levels);
  uint64_t at = range.first.value();
  const uint64_t end = std::min(range.end.value(), top);
  uint64_t read = 0;
  int level = levels;
  stack[static_cast<size_t>(level)] = {table, kReadWrite};
  if (pulled_ != nullptr && level > 1) PrefetchBelow(table, level, at, end);
  while (at < end) {
    const Frame& frame = stack[static_cast<size_t>(level)];
    const uint64_t span = vtd::LevelSize(level);
    if (read++ >= max_entries) return errors::WorkBound(max_entries);
    const auto raw = memory_.Read64(
        frame.table + sizeof(uint64_t) * static_cast<uint64_t>(vtd::LevelIndex(Iova(at), level)));
    const vtd::SecondStagePte pte{raw.value_or(0)};
    const Access access{frame.access.read && pte.access().read,
                        frame.access.write && pte.access().write};
    const bool valid = access.any() && (pte.raw & rules_.ReservedBits(pte, level)) == 0;
    if (valid && !pte.leaf(level)) {
      stack[static_cast<size_t>(--level)] = {pte.address(rules_.haw_bits, level + 1), access};
      if (pulled_ != nullptr && level > 1) {
        PrefetchBelow(stack[static_cast<size_t>(level)].table, level, at, end);
      }
      continue;
    }
    if (valid) {
      visit({Iova(AlignDown(at, span)), pte.address(rules_.haw_bits, level), span, access});
    }
    at = AlignDown(at, span) + span;
    // Climb while `at` has left the span of the table at this level.
    while (level < levels && vtd::LevelIndex(Iova(at), level) == 0) ++level;
  }
  return absl::OkStatus();
}

}  // namespace viommu
