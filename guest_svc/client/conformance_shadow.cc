#include "guest_svc/client/conformance_shadow.h"

#include <algorithm>
#include <array>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "guest_svc/client/conformance_machine.h"
#include "guest_svc/client/conformance_score.h"
#include "guest_svc/client/qemu_shadow_model.h"
#include "iommu_core/shadow/hypervisor_session.h"

namespace viommu::conformance {
namespace {

// The two devices of every shadow case.
constexpr std::array<SourceId, 2> kDevices = {SourceId(0x0030), SourceId(0x0038)};

std::string Text(const ShadowRange& r) {
  return absl::StrFormat("[0x%x, +0x%x) to 0x%x perm %d", r.iova.value(), r.size_bytes,
                         r.address.value(), r.permission);
}
std::string Text(const ShadowEvent& e) {
  if (!e.map)
    return absl::StrFormat("unmap [0x%x, +0x%x)", e.range.iova.value(), e.range.size_bytes);
  return absl::StrCat("map ", Text(e.range), e.overlap ? " overlapping" : "");
}

template <typename Item>
std::optional<std::string> ListDifference(const char* what,
                                          const std::map<SourceId, std::vector<Item>>& recorded,
                                          const std::map<SourceId, std::vector<Item>>& seen) {
  for (const auto& [sid, items] : recorded) {
    const auto it = seen.find(sid);
    const std::vector<Item> none;
    const std::vector<Item>& ours = it == seen.end() ? none : it->second;
    for (size_t i = 0; i < std::max(items.size(), ours.size()); ++i) {
      if (i < items.size() && i < ours.size() && items[i] == ours[i]) continue;
      return absl::StrFormat("%s of 0x%04x, item %d: %s, recorded %s", what, sid.value(), i,
                             i < ours.size() ? Text(ours[i]) : "none",
                             i < items.size() ? Text(items[i]) : "none");
    }
  }
  return std::nullopt;
}

// Reproduces nothing of QEMU: descriptors go to a session as they do between the two services.
class SessionBackend final : public UnitBackend {
 public:
  explicit SessionBackend(HypervisorSession& session) : session_(session) {}

  absl::StatusOr<Outcome> Execute(std::span<const vtd::RawDescriptor> raw,
                                  std::span<const vtd::Descriptor>) override {
    const SinkCompletion done = session_.Apply(raw, {}, TableClaim::kQuiet);
    return Outcome{done.consumed, done.error};
  }
  absl::Status RegistersChanged(const UnitRegisters& registers) override {
    return session_.UpdateRegisters(registers);
  }

 private:
  HypervisorSession& session_;
};

SessionConfig ConfigOf(const Case& recorded) {
  SessionConfig config;
  config.guest_caps = MachineRules(recorded.address_width).caps;
  config.guest_haw_bits = recorded.address_width;
  config.guest_ram_bytes = kMachineRamEnd;
  config.verify = Verify::kOff;  // compared here, with the recording's own flattening
  return config;
}

constexpr uint64_t kReadBit = 1, kWriteBit = 2;

// VFIO has no write-only mapping, so a write-only leaf counts as read-write. Adjacent pieces
// merged.
std::vector<ShadowRange> Normalised(const std::vector<ShadowRange>& ranges) {
  std::vector<ShadowRange> out;
  for (ShadowRange r : ranges) {
    if ((r.permission & kWriteBit) != 0) r.permission |= kReadBit;
    if (!out.empty() && out.back().permission == r.permission &&
        out.back().iova + out.back().size_bytes == r.iova &&
        out.back().address + out.back().size_bytes == r.address) {
      out.back().size_bytes += r.size_bytes;
    } else {
      out.push_back(r);
    }
  }
  return out;
}

std::vector<ShadowRange> RangesOf(const std::vector<LeafMapping>& leaves) {
  std::vector<ShadowRange> out;
  for (const LeafMapping& leaf : leaves) {
    out.push_back({leaf.iova, leaf.size_bytes, ToGuestPhys(leaf.address),
                   (leaf.access.read ? kReadBit : 0) | (leaf.access.write ? kWriteBit : 0)});
  }
  return Normalised(out);
}

// Where `ranges` (ascending) lead from `iova`; nullopt: nowhere.
std::optional<std::pair<GuestPhys, uint64_t>> At(const std::vector<ShadowRange>& ranges,
                                                 Iova iova) {
  auto it = std::upper_bound(ranges.begin(), ranges.end(), iova,
                             [](Iova a, const ShadowRange& r) { return a < r.iova; });
  if (it == ranges.begin()) return std::nullopt;
  --it;
  const uint64_t offset = iova - it->iova;
  if (offset >= it->size_bytes) return std::nullopt;
  return std::make_pair(it->address + offset, it->permission);
}

// The first place where `ours` is neither `now` nor `before`.
std::optional<Iova> NeitherOf(const std::vector<ShadowRange>& ours,
                              const std::vector<ShadowRange>& now,
                              const std::vector<ShadowRange>& before) {
  std::set<Iova> edges;
  for (const auto* list : {&ours, &now, &before}) {
    for (const ShadowRange& r : *list) {
      edges.insert(r.iova);
      edges.insert(r.iova + r.size_bytes);
    }
  }
  for (const Iova edge : edges) {
    const auto found = At(ours, edge);
    if (found != At(now, edge) && found != At(before, edge)) return edge;
  }
  return std::nullopt;
}

Departure NamedDeparture(absl::string_view name, bool* known) {
  for (const Departure d : {Departure::kShadowSplitResidue, Departure::kShadowReservedStays,
                            Departure::kShadowNarrowedStays}) {
    *known = DepartureName(d) == name;
    if (*known) return d;
  }
  return {};
}

}  // namespace

bool IsShadowCase(const Case& recorded) {
  return std::any_of(recorded.steps.begin(), recorded.steps.end(),
                     [](const Step& s) { return s.op == Op::kShadowBase; });
}

std::optional<std::string> QemuShadowDifference(const Case& recorded) {
  SparseMemory memory = MachineMemory();
  QemuShadowModel model(memory, MachineRules(recorded.address_width), kDevices);
  Machine machine(recorded.address_width, /*qemu_quirks=*/true, memory, &model);
  for (size_t i = 0; i < recorded.steps.size(); ++i) {
    const Step& step = recorded.steps[i];
    const Observation seen = machine.Run(step);
    if (step.op == Op::kShadowBase) model.ForgetCalls();
    auto text = Difference(step, seen, {});
    if (step.op == Op::kQueue) {
      const ShadowEvents events = model.TakeEvents();
      for (const Observation& obs : step.accepted) {
        if (!text && obs.events) text = ListDifference("calls", *obs.events, events);
        if (!text && obs.shadow) text = ListDifference("shadow", *obs.shadow, model.Shadow());
      }
    }
    if (text) return absl::StrCat("step ", i, ": ", *text);
  }
  return std::nullopt;
}

std::optional<std::string> SessionDifference(const Case& recorded) {
  SparseMemory memory = MachineMemory();
  auto session = HypervisorSession::Create(ConfigOf(recorded), memory);
  if (!session.ok()) return std::string(session.status().message());
  for (const SourceId sid : kDevices) {
    if (const absl::Status s = (*session)->AddDevice(sid, /*has_device_tlb=*/false); !s.ok()) {
      return std::string(s.message());
    }
  }
  SessionBackend backend(**session);
  Machine machine(recorded.address_width, /*qemu_quirks=*/false, memory, &backend);
  std::map<SourceId, std::vector<ShadowRange>> before;
  for (size_t i = 0; i < recorded.steps.size(); ++i) {
    const Step& step = recorded.steps[i];
    const Observation seen = machine.Run(step);
    if (auto text = Difference(step, seen, {})) return absl::StrCat("step ", i, ": ", *text);
    if (!step.flat) continue;
    for (const auto& [sid, flat] : *step.flat) {
      const auto leaves = (*session)->FlattenShadow(sid);
      if (!leaves.ok()) return absl::StrCat("step ", i, ": ", leaves.status().message());
      const std::vector<ShadowRange> ours = RangesOf(*leaves);
      const std::vector<ShadowRange> tables = Normalised(flat);
      std::optional<std::string> text;
      if (step.defined) {
        text = ListDifference<ShadowRange>("our shadow", {{sid, tables}}, {{sid, ours}});
      } else if (const auto iova = NeitherOf(ours, tables, before[sid])) {
        text = absl::StrFormat("our shadow of 0x%04x at 0x%x is neither old nor new", sid.value(),
                               iova->value());
      }
      if (text) return absl::StrCat("step ", i, ": ", *text);
      before[sid] = ours;
    }
  }
  return std::nullopt;
}

ShadowDepartures RecordedShadowDepartures(const Case& recorded) {
  ShadowDepartures out;
  for (size_t i = 0; i < recorded.steps.size(); ++i) {
    const Step& step = recorded.steps[i];
    if (!step.flat || !step.defined || step.accepted.empty()) continue;
    const Observation& qemu = step.accepted.front();
    if (!qemu.shadow) continue;
    std::optional<std::string> text;
    for (const auto& [sid, flat] : *step.flat) {
      const auto it = qemu.shadow->find(sid);
      const std::vector<ShadowRange> theirs =
          Normalised(it == qemu.shadow->end() ? std::vector<ShadowRange>{} : it->second);
      if (!text) {
        text = ListDifference<ShadowRange>("the tables' shadow", {{sid, theirs}},
                                           {{sid, Normalised(flat)}});
      }
    }
    if (!text) continue;
    if (out.first.empty()) out.first = absl::StrCat("step ", i, ": ", *text);
    bool any = false;
    for (const std::string& name : step.quirks) {
      bool known = false;
      const Departure departure = NamedDeparture(name, &known);
      if (known) out.departures.insert(departure);
      any = any || known;
    }
    if (!any && out.unnamed.empty()) out.unnamed = absl::StrCat("step ", i, ": ", *text);
  }
  return out;
}

}  // namespace viommu::conformance
