#include "guest_svc/client/conformance_score.h"

#include <algorithm>
#include <variant>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "iommu_core/base/bits.h"
#include "iommu_core/vtd/fault.h"
#include "iommu_core/vtd/inv_descriptor.h"
#include "iommu_core/vtd/registers.h"

namespace viommu::conformance {
namespace {

using vtd::FaultReason;

constexpr uint64_t kFaultBits = vtd::fsts::Pfo::kMask | vtd::fsts::Ppf::kMask;

std::string Text(const Segment& s) {
  const std::string where =
      s.address ? absl::StrFormat("reaches 0x%x", s.address->value()) : "is blocked";
  return absl::StrFormat("[0x%x, +%d) %s", s.iova.value(), s.size_bytes, where);
}

std::string Text(const std::optional<RecordedFault>& f) {
  if (!f) return "no fault";
  return absl::StrFormat("fault %d of 0x%04x %s 0x%x", f->reason, f->source_id.value(),
                         f->read ? "reading" : "writing", f->page.value());
}

std::optional<std::string> Register(absl::string_view name, std::optional<uint64_t> recorded,
                                    std::optional<uint64_t> seen, uint64_t mask = ~uint64_t{0}) {
  if (!recorded || (*recorded & mask) == (seen.value_or(0) & mask)) return std::nullopt;
  return absl::StrFormat("%s is 0x%x, recorded 0x%x", name, seen.value_or(0) & mask,
                         *recorded & mask);
}

// What a walk of the current tables makes of the access, as an observation.
RecordedFault WalkFault(const Step& step, size_t segment, const Segment& s) {
  return {step.walk[segment].reason, Iova(AlignDown(s.iova.value(), kPageSize)), !step.write,
          step.source_id};
}

// A cached or a current translation may be used, segment by segment.
std::optional<std::string> OpenAccess(const Step& step, const Observation& recorded,
                                      const Observation& seen, const SeenTranslations& history) {
  std::optional<RecordedFault> walk_fault;
  for (size_t i = 0; i < seen.segments->size(); ++i) {
    const Segment& s = (*seen.segments)[i];
    const bool stale = s.address && history.Contains(step.source_id, s.iova, *s.address);
    if (s != (*recorded.segments)[i] && s.address != step.walk[i].address && !stale) {
      return absl::StrCat(Text(s), ", recorded ", Text((*recorded.segments)[i]),
                          ", and a walk differs from both");
    }
    if (!s.address && !walk_fault && step.walk[i].recorded) walk_fault = WalkFault(step, i, s);
  }
  const bool passes = std::all_of(seen.segments->begin(), seen.segments->end(),
                                  [](const Segment& s) { return s.address.has_value(); });
  if (passes && !seen.fault) return std::nullopt;
  if (seen.fault != recorded.fault && seen.fault != walk_fault) {
    return absl::StrCat(Text(seen.fault), ", recorded ", Text(recorded.fault));
  }
  return std::nullopt;
}

std::optional<std::string> AccessDifference(const Step& step, const Observation& recorded,
                                            const Observation& seen,
                                            const SeenTranslations& history) {
  if (seen.segments->size() != recorded.segments->size()) {
    return absl::StrFormat("%d segments, recorded %d", seen.segments->size(),
                           recorded.segments->size());
  }
  if (!step.defined && step.walk.size() == seen.segments->size()) {
    return OpenAccess(step, recorded, seen, history);
  }
  for (size_t i = 0; i < seen.segments->size(); ++i) {
    if ((*seen.segments)[i] != (*recorded.segments)[i]) {
      return absl::StrCat(Text((*seen.segments)[i]), ", recorded ", Text((*recorded.segments)[i]));
    }
  }
  if (seen.fault != recorded.fault) {
    return absl::StrCat(Text(seen.fault), ", recorded ", Text(recorded.fault));
  }
  return Register("FSTS", recorded.fsts, seen.fsts, kFaultBits);
}

std::optional<std::string> DifferenceFrom(const Step& step, const Observation& recorded,
                                          const Observation& seen,
                                          const SeenTranslations& history) {
  if (step.op == Op::kDma) {
    if (!recorded.segments || !seen.segments) return "nothing was recorded for this access";
    return AccessDifference(step, recorded, seen, history);
  }
  // The fault bits beside a doorbell belong to accesses before it.
  const uint64_t fsts_mask = step.op == Op::kQueue ? vtd::fsts::Iqe::kMask : ~uint64_t{0};
  if (auto d = Register("GSTS", recorded.gsts, seen.gsts)) return d;
  if (auto d = Register("value", recorded.value, seen.value)) return d;
  if (auto d = Register("IQH", recorded.iqh, seen.iqh)) return d;
  if (auto d = Register("FSTS", recorded.fsts, seen.fsts, fsts_mask)) return d;
  for (const auto& [address, value] : recorded.words) {
    const auto it = std::find_if(seen.words.begin(), seen.words.end(),
                                 [&at = address](const auto& word) { return word.first == at; });
    const uint32_t found = it == seen.words.end() ? 0 : it->second;
    if (found != value) {
      return absl::StrFormat("word 0x%x is 0x%x, recorded 0x%x", address.value(), found, value);
    }
  }
  return std::nullopt;
}

bool IsPermission(const std::optional<RecordedFault>& f) {
  return f && (f->reason == static_cast<uint64_t>(FaultReason::kWriteDenied) ||
               f->reason == static_cast<uint64_t>(FaultReason::kReadDenied));
}

bool HasReason(const std::optional<RecordedFault>& f, FaultReason reason) {
  return f && f->reason == static_cast<uint64_t>(reason);
}

}  // namespace

void SeenTranslations::Remember(const Step& step) {
  const auto add = [&](Iova iova, std::optional<PhysAddr> address) {
    if (!address) return;
    pages_.emplace(step.source_id, iova.value() >> kPageShift, address->value() >> kPageShift);
  };
  if (step.op != Op::kDma) return;
  for (const Observation& recorded : step.accepted) {
    if (!recorded.segments) continue;
    for (size_t i = 0; i < recorded.segments->size(); ++i) {
      const Segment& s = (*recorded.segments)[i];
      add(s.iova, s.address);
      if (i < step.walk.size()) add(s.iova, step.walk[i].address);
    }
  }
}

bool SeenTranslations::Contains(SourceId sid, Iova iova, PhysAddr address) const {
  return (iova.value() & kPageMask) == (address.value() & kPageMask) &&
         pages_.contains({sid, iova.value() >> kPageShift, address.value() >> kPageShift});
}

std::optional<std::string> Difference(const Step& step, const Observation& seen,
                                      const SeenTranslations& history) {
  std::optional<std::string> first;
  for (const Observation& recorded : step.accepted) {
    auto difference = DifferenceFrom(step, recorded, seen, history);
    if (!difference) return std::nullopt;
    if (!first) first = std::move(difference);
  }
  return first;
}

std::optional<Departure> AccessDeparture(const Step& step, const Observation& seen) {
  if (step.op != Op::kDma || step.accepted.empty()) return std::nullopt;
  const Observation& qemu = step.accepted.front();
  if (!seen.segments || !qemu.segments || seen.segments->size() != qemu.segments->size()) {
    return std::nullopt;
  }
  if (*seen.segments == *qemu.segments) {
    // QEMU said nothing about our fault; a later segment of the access may then be its first.
    const bool later = !qemu.fault || (seen.fault && qemu.fault->page > seen.fault->page);
    if (IsPermission(seen.fault) && later) return Departure::kIotlbHitNoFault;
    if (HasReason(seen.fault, FaultReason::kPteReserved) && IsPermission(qemu.fault) &&
        qemu.fault->page == seen.fault->page) {
      return Departure::kReservedAndPermission;
    }
    if (!seen.fault && HasReason(qemu.fault, FaultReason::kContextReserved)) {
      return Departure::kContextReservedIgnoresFpd;
    }
    return std::nullopt;
  }
  for (size_t i = 0; i < seen.segments->size(); ++i) {
    const Segment& ours = (*seen.segments)[i];
    const Segment& theirs = (*qemu.segments)[i];
    if (ours == theirs) continue;
    if (ours.address && theirs.address) return Departure::kIotlbBySourceId;
    if (ours.address && HasReason(qemu.fault, FaultReason::kInterruptRangeOutput)) {
      return Departure::kLargePageOverInterruptRange;
    }
    return std::nullopt;
  }
  return std::nullopt;
}

void QueueDepartures::ObserveWrite(const Step& step, uint64_t gsts, uint64_t fsts) {
  const bool queue_on = (gsts & vtd::gcmd::Qie::kMask) != 0;
  switch (step.offset) {
    case vtd::kFsts:
      if ((step.value & fsts & vtd::fsts::Iqe::kMask) != 0) {
        touched_.insert(Departure::kIqeClearDoesNotResume);
      }
      return;
    case vtd::kGcmd:
      if (queue_on && (step.value & vtd::gcmd::Qie::kMask) == 0) {
        touched_.insert(Departure::kQueueDisableRefused);
      }
      return;
    case vtd::kCcmd:
      if (vtd::ccmd::Icc::Get(step.value) == 0) return;
      if (queue_on) {
        touched_.insert(Departure::kRegisterInvalidationUnderQueue);
      } else if (vtd::ccmd::Cirg::Get(step.value) ==
                 static_cast<uint64_t>(vtd::Granularity::kDomain)) {
        touched_.insert(Departure::kContextDomainAsGlobal);
      }
      return;
    case vtd::kRtaddr:
      if (vtd::rtaddr::Ttm::Get(step.value) != 0) touched_.insert(Departure::kTableModeIgnored);
      return;
    case vtd::kIqa:
      if (vtd::iqa::Dw::Get(step.value) != 0) touched_.insert(Departure::kNoWideQueue);
      return;
    default:
      if (step.offset == caps_.iotlb_offset() + 8 && queue_on &&
          vtd::iotlb::Ivt::Get(step.value) != 0) {
        touched_.insert(Departure::kRegisterInvalidationUnderQueue);
      }
  }
}

void QueueDepartures::Observe(const Step& step, uint64_t gsts, uint64_t fsts) {
  if (step.op == Op::kRegWrite) ObserveWrite(step, gsts, fsts);
  if (step.op == Op::kRegRead && step.offset == vtd::kIqercd) {
    touched_.insert(Departure::kNoQueueErrorRecord);
  }
  if (step.op != Op::kQueue) return;
  for (const vtd::RawDescriptor& raw : step.descriptors) {
    const vtd::DecodeResult decoded = vtd::Decode(raw, caps_, /*wide_queue=*/false, {.qemu = true});
    if (decoded.error != vtd::Iqei::kNone) continue;
    if (std::holds_alternative<vtd::DeviceTlbInvalidate>(decoded.descriptor) &&
        !caps_.device_tlb()) {
      touched_.insert(Departure::kDeviceTlbWithoutDt);
    }
    if (const auto* wait = std::get_if<vtd::InvalidationWait>(&decoded.descriptor);
        wait != nullptr && !wait->status_write && !wait->interrupt && !wait->fence) {
      touched_.insert(Departure::kEmptyWait);
    }
  }
}

}  // namespace viommu::conformance
