#include "iommu_core/hw/translator.h"

#include <algorithm>
#include <array>
#include <optional>
#include <type_traits>
#include <variant>

#include "iommu_core/base/bits.h"
#include "iommu_core/hw/context_cache.h"
#include "iommu_core/hw/iotlb.h"
#include "iommu_core/hw/paging_structure_cache.h"
#include "iommu_core/vtd/inv_descriptor.h"
#include "iommu_core/vtd/root_context.h"
#include "iommu_core/vtd/second_stage_pte.h"

namespace viommu {

using vtd::FaultReason;

struct Translator::State {
  State(TranslatorOptions o, const PhysicalMemory& m)
      : options(o),
        memory(m),
        walker(m, o.rules),
        iotlb(o.iotlb_entries, o.qemu_quirks ? Iotlb::Key::kSource : Iotlb::Key::kDomain) {}

  // A valid context entry of `sid`, from the cache or memory, or the reason why there is none.
  ContextLookup Context(SourceId sid);
  // 3.7 from the lowest cached table, or from the top. A result that comes from a cached table and
  // is a fault is looked up again from the top, so that a stale table never makes a fault.
  TableWalk Walk(const vtd::ContextEntry& context, Iova iova, Access wanted);
  TableWalk WalkFrom(DomainId did, PhysAddr table, int level, int levels, Access access, Iova iova,
                     Access wanted);
  FaultReason CheckEntry(vtd::SecondStagePte pte, int level, Access effective, Access wanted) const;
  bool OutputBlocked(PhysAddr page, uint64_t page_size, Iova iova) const;
  TranslateOutcome Fault(FaultReason reason, bool fault_processing_disabled) const;
  // Steps after the context entry: width, IOTLB, walk.
  TranslateOutcome SecondStage(SourceId sid, const vtd::ContextEntry& context, Iova iova,
                               Access wanted);
  TranslateOutcome FromEntry(const Iotlb::Entry& entry, Iova iova) const;
  void EmptyAll();

  const TranslatorOptions options;
  const PhysicalMemory& memory;
  const Walker walker;
  UnitRegisters registers;
  ContextCache contexts;
  Iotlb iotlb;
  PagingStructureCache tables;
  TranslatorStats stats;
};

namespace {

bool Permits(Access granted, Access wanted) {
  return granted.any() && (granted.read || !wanted.read) && (granted.write || !wanted.write);
}

TranslateOutcome Identity(Iova iova, Access access, DomainId did = DomainId()) {
  TranslateOutcome out;
  out.address = PhysAddr(iova.value());
  out.page_size = kPageSize;
  out.access = access;
  out.domain_id = did;
  return out;
}

// Refused as an unsupported request, no fault recorded.
TranslateOutcome Silent(FaultReason reason) {
  TranslateOutcome out;
  out.reason = reason;
  return out;
}

}  // namespace

ContextLookup Translator::State::Context(SourceId sid) {
  if (const vtd::ContextEntry* cached = contexts.Find(sid)) {
    return {FaultReason::kNone, cached->fault_processing_disabled(), *cached, 0};
  }
  const ContextLookup found = walker.LookupContext(registers.root_table, sid);
  stats.table_reads += static_cast<uint64_t>(found.entries_read);
  if (found.reason == FaultReason::kNone) contexts.Insert(sid, found.entry);
  return found;
}

FaultReason Translator::State::CheckEntry(vtd::SecondStagePte pte, int level, Access effective,
                                          Access wanted) const {
  const bool reserved = pte.present() && (pte.raw & options.rules.ReservedBits(pte, level)) != 0;
  FaultReason denied = FaultReason::kNone;
  if (wanted.write && !effective.write) {
    denied = FaultReason::kWriteDenied;
  } else if ((wanted.read && !effective.read) || !effective.any()) {
    denied = FaultReason::kReadDenied;
  }
  // Departure rsvd-and-perm: QEMU looks at the permission first.
  if (options.qemu_quirks && denied != FaultReason::kNone) return denied;
  return reserved ? FaultReason::kPteReserved : denied;
}

bool Translator::State::OutputBlocked(PhysAddr page, uint64_t page_size, Iova iova) const {
  // Departure large-page-overlaps-fee: QEMU blocks the whole page that overlaps the range.
  if (options.qemu_quirks) {
    constexpr uint64_t kFirst = 0xfee00000, kEnd = 0xfef00000;
    return page.value() < kEnd && page.value() + page_size > kFirst;
  }
  return vtd::InInterruptRange(page.value() + (iova.value() & (page_size - 1)));
}

TableWalk Translator::State::WalkFrom(DomainId did, PhysAddr table, int level, int levels,
                                      Access access, Iova iova, Access wanted) {
  TableWalk out;
  out.access = access;
  std::array<PagingStructureCache::Entry, 8> seen;
  size_t seen_count = 0;
  for (;; --level) {
    out.level = level;
    const auto raw = memory.Read64(table + sizeof(uint64_t) *
                                               static_cast<uint64_t>(vtd::LevelIndex(iova, level)));
    ++out.entries_read;
    if (!raw) {
      out.reason = level == levels ? FaultReason::kContextInvalid : FaultReason::kTableAccess;
      return out;
    }
    const vtd::SecondStagePte pte{*raw};
    out.access.read = out.access.read && pte.access().read;
    out.access.write = out.access.write && pte.access().write;
    out.reason = CheckEntry(pte, level, out.access, wanted);
    if (out.reason != FaultReason::kNone) return out;
    const int haw = options.rules.haw_bits;
    if (pte.leaf(level)) {
      out.page = pte.address(haw, level);
      out.snoop = pte.snoop();
      if (OutputBlocked(out.page, vtd::LevelSize(level), iova)) {
        out.reason = FaultReason::kInterruptRangeOutput;
        return out;
      }
      break;
    }
    table = pte.address(haw, level);
    seen[seen_count++] = {table, level - 1, out.access};
  }
  // Only a walk that ended in a translation fills the caches (6.2.4).
  for (size_t i = 0; i < seen_count; ++i) tables.Insert(did, iova, seen[i]);
  return out;
}

TableWalk Translator::State::Walk(const vtd::ContextEntry& context, Iova iova, Access wanted) {
  const int levels = context.levels();
  const DomainId did = context.domain_id();
  // QEMU has no paging-structure caches.
  if (!options.qemu_quirks) {
    if (const auto start = tables.Find(did, iova, levels - 1)) {
      const TableWalk walk =
          WalkFrom(did, start->table, start->level, levels, start->access, iova, wanted);
      stats.table_reads += static_cast<uint64_t>(walk.entries_read);
      if (walk.reason == FaultReason::kNone) return walk;
    }
  }
  const TableWalk walk = WalkFrom(did, context.second_stage_table(options.rules.haw_bits), levels,
                                  levels, kReadWrite, iova, wanted);
  stats.table_reads += static_cast<uint64_t>(walk.entries_read);
  return walk;
}

TranslateOutcome Translator::State::Fault(FaultReason reason, bool fpd) const {
  TranslateOutcome out;
  out.reason = reason;
  out.record = !(fpd && vtd::QualifiedByFpd(reason));
  // Departure fpd-with-0xb.
  if (options.qemu_quirks && reason == FaultReason::kContextReserved) out.record = true;
  return out;
}

TranslateOutcome Translator::State::FromEntry(const Iotlb::Entry& entry, Iova iova) const {
  TranslateOutcome out;
  out.page_size = vtd::LevelSize(entry.level);
  out.address = entry.page + (iova.value() & (out.page_size - 1));
  out.access = entry.access;
  out.domain_id = entry.domain_id;
  return out;
}

TranslateOutcome Translator::State::SecondStage(SourceId sid, const vtd::ContextEntry& context,
                                                Iova iova, Access wanted) {
  const bool fpd = context.fault_processing_disabled();
  // 3.6: the input address is bounded by the smaller of MGAW and the context entry's width.
  const int width = std::min(options.rules.caps.max_guest_width(), context.width_bits());
  if ((iova.value() >> width) != 0) return Fault(FaultReason::kAddressBeyondWidth, fpd);
  const uint16_t id = options.qemu_quirks ? sid.value() : context.domain_id().value();
  if (!options.qemu_quirks) {
    // A cached entry that lacks the permission proves nothing: the walk says which fault it is.
    if (const auto entry = iotlb.Find(id, iova); entry && Permits(entry->access, wanted)) {
      TranslateOutcome out = FromEntry(*entry, iova);
      if (vtd::InInterruptRange(out.address.value())) {
        return Fault(FaultReason::kInterruptRangeOutput, fpd);
      }
      ++stats.iotlb_hits;
      out.iotlb_hit = true;
      return out;
    }
  }
  ++stats.iotlb_misses;
  const TableWalk walk = Walk(context, iova, wanted);
  if (walk.reason != FaultReason::kNone) {
    TranslateOutcome out = Fault(walk.reason, fpd);
    out.domain_id = context.domain_id();
    return out;
  }
  const Iotlb::Entry entry{walk.page, walk.level, walk.access, context.domain_id()};
  iotlb.Insert(id, iova, entry);
  return FromEntry(entry, iova);
}

void Translator::State::EmptyAll() {
  contexts.InvalidateAll();
  tables.InvalidateAll();
  iotlb.InvalidateAll();
}

Translator::Translator(TranslatorOptions options, const PhysicalMemory& memory)
    : state_(std::make_unique<State>(options, memory)) {}
Translator::~Translator() = default;

const TranslatorStats& Translator::stats() const { return state_->stats; }

TranslateOutcome Translator::Translate(SourceId sid, Iova iova, Access wanted, RequestKind kind) {
  State& s = *state_;
  if (!s.registers.translation_enabled) {
    // Untranslated requests pass; ATS needs the unit (4.1: unsupported request, no fault).
    if (kind != RequestKind::kUntranslated) return Silent(FaultReason::kTranslationBlocked);
    return Identity(iova, kReadWrite);
  }
  if (vtd::InInterruptRange(iova.value())) {
    // 3.14: not subject to remapping; a write is an interrupt message, all else is refused.
    if (kind != RequestKind::kUntranslated || wanted.read) {
      return Silent(FaultReason::kInterruptRangeOutput);
    }
    TranslateOutcome out = Identity(iova, kWriteOnly);
    out.interrupt_request = true;
    return out;
  }
  if (s.options.qemu_quirks) {
    // Departure iotlb-by-source-id: QEMU looks before it knows the domain, and blocks without a
    // fault where the entry lacks the permission (iotlb-hit-insufficient-permission-no-fault).
    if (const auto entry = s.iotlb.Find(sid.value(), iova)) {
      ++s.stats.iotlb_hits;
      TranslateOutcome out = s.FromEntry(*entry, iova);
      out.iotlb_hit = true;
      if (!Permits(entry->access, wanted)) {
        out.reason = wanted.write ? FaultReason::kWriteDenied : FaultReason::kReadDenied;
        out.record = false;
      }
      return out;
    }
  }
  const ContextLookup context = s.Context(sid);
  if (context.reason != FaultReason::kNone) {
    return s.Fault(context.reason, context.fault_processing_disabled);
  }
  const bool fpd = context.fault_processing_disabled;
  const vtd::TranslationType type = context.entry.translation_type();
  if (kind != RequestKind::kUntranslated && type != vtd::TranslationType::kWithDeviceTlb) {
    return s.Fault(FaultReason::kTranslationBlocked, fpd);
  }
  // 4.2.3: a translated request already carries a host address.
  if (kind == RequestKind::kTranslated) return Identity(iova, wanted, context.entry.domain_id());
  if (type == vtd::TranslationType::kPassThrough) {
    // 3.9: identity, but still bounded by the host address width.
    if ((iova.value() >> s.options.rules.haw_bits) != 0) {
      return s.Fault(FaultReason::kAddressBeyondWidth, fpd);
    }
    return Identity(iova, kReadWrite, context.entry.domain_id());
  }
  if (kind == RequestKind::kTranslationRequest) {
    // 4.2.1, 7.1.3: an absent mapping is a successful completion with R = W = 0, not a fault. Any
    // permission will do; the device learns which from the answer.
    TranslateOutcome out = s.SecondStage(sid, context.entry, iova, Access{});
    if (out.reason == FaultReason::kReadDenied || out.reason == FaultReason::kWriteDenied) {
      out = Identity(iova, Access{}, context.entry.domain_id());
    }
    return out;
  }
  return s.SecondStage(sid, context.entry, iova, wanted);
}

absl::StatusOr<UnitBackend::Outcome> Translator::Execute(std::span<const vtd::RawDescriptor>,
                                                         std::span<const vtd::Descriptor> decoded) {
  State& s = *state_;
  const auto context_cache = [&](const vtd::ContextCacheInvalidate& d) {
    switch (d.granularity) {
      case vtd::Granularity::kDomain:
        // Departure context-domain-as-global.
        if (s.options.qemu_quirks) {
          s.contexts.InvalidateAll();
        } else {
          s.contexts.InvalidateDomain(d.domain_id);
        }
        break;
      case vtd::Granularity::kPageOrDevice:
        s.contexts.InvalidateDevice(d.source_id, d.function_mask);
        break;
      default:
        s.contexts.InvalidateAll();
    }
  };
  const auto iotlb = [&](const vtd::IotlbInvalidate& d) {
    ++s.stats.invalidations[static_cast<size_t>(d.granularity)];
    switch (d.granularity) {
      case vtd::Granularity::kDomain:
        s.iotlb.InvalidateDomain(d.domain_id);
        s.tables.InvalidateDomain(d.domain_id);
        break;
      case vtd::Granularity::kPageOrDevice: {
        // 6.5.2.3: address bits above MGAW are ignored.
        const uint64_t size = kPageSize << d.address_mask;
        const int mgaw = s.options.rules.caps.max_guest_width();
        const IovaRange range =
            MakeRange(Iova(AlignDown(d.address.value() & BitMask(mgaw - 1, 0), size)), size);
        s.iotlb.InvalidateRange(d.domain_id, range);
        if (!d.leaf_hint) s.tables.InvalidateRange(d.domain_id, range);
        break;
      }
      default:
        s.iotlb.InvalidateAll();
        s.tables.InvalidateAll();
    }
  };
  for (const vtd::Descriptor& descriptor : decoded) {
    std::visit(
        [&](const auto& d) {
          using T = std::decay_t<decltype(d)>;
          if constexpr (std::is_same_v<T, vtd::ContextCacheInvalidate>) context_cache(d);
          if constexpr (std::is_same_v<T, vtd::IotlbInvalidate>) iotlb(d);
          // Device-TLBs and the interrupt-entry cache are not this unit's; waits are the queue's.
        },
        descriptor);
  }
  return Outcome{static_cast<uint32_t>(decoded.size()), vtd::Iqei::kNone};
}

absl::Status Translator::RegistersChanged(const UnitRegisters& registers) {
  State& s = *state_;
  const bool toggled = registers.translation_enabled != s.registers.translation_enabled;
  // 11.4.4 SRTP invalidates by itself only where CAP.ESRTPS says so; QEMU always does.
  if (toggled || s.options.qemu_quirks || vtd::cap::Esrtps::Get(s.options.rules.caps.cap) != 0) {
    s.EmptyAll();
  }
  s.registers = registers;
  return absl::OkStatus();
}

}  // namespace viommu
