#include "guest_svc/client/conformance_case.h"

#include <set>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "nlohmann/json.hpp"

namespace viommu::conformance {
namespace {

using Json = nlohmann::json;

// A line of this many steps or words is no recorded case.
constexpr size_t kMaxItems = 1 << 20;

// The fields of one object. The first error is kept; after it every getter returns a default.
class Fields {
 public:
  Fields(const Json& object, std::string where, std::string* error)
      : object_(object), where_(std::move(where)), error_(error) {
    if (!object_.is_object()) Fail("is not an object");
  }

  void Fail(absl::string_view what) {
    if (error_->empty()) *error_ = absl::StrCat(where_, " ", what);
  }
  // Nothing but read, ignored as an annotation, or an error.
  void Ignore(const char* key) { seen_.insert(key); }
  const Json* Find(const char* key) {
    seen_.insert(key);
    if (!object_.is_object()) return nullptr;
    const auto it = object_.find(key);
    return it == object_.end() ? nullptr : &*it;
  }
  const Json& Array(const char* key) {
    static const Json kEmpty = Json::array();
    const Json* found = Find(key);
    if (found == nullptr || !found->is_array() || found->size() > kMaxItems) {
      Fail(absl::StrCat("has no list '", key, "'"));
      return kEmpty;
    }
    return *found;
  }
  std::string Text(const char* key) {
    const Json* found = Find(key);
    if (found == nullptr || !found->is_string()) {
      Fail(absl::StrCat("has no text '", key, "'"));
      return "";
    }
    return found->get<std::string>();
  }
  bool Flag(const char* key, bool otherwise) {
    const Json* found = Find(key);
    if (found == nullptr) return otherwise;
    if (!found->is_boolean()) {
      Fail(absl::StrCat("'", key, "' is not true or false"));
      return otherwise;
    }
    return found->get<bool>();
  }
  uint64_t Number(const char* key, uint64_t max = ~uint64_t{0}) {
    const Json* found = Find(key);
    if (found == nullptr) {
      Fail(absl::StrCat("lacks '", key, "'"));
      return 0;
    }
    return ToNumber(*found, key, max);
  }
  std::optional<uint64_t> OptionalNumber(const char* key) {
    const Json* found = Find(key);
    if (found == nullptr) return std::nullopt;
    return ToNumber(*found, key);
  }
  // A hex string or a plain number.
  uint64_t ToNumber(const Json& j, absl::string_view what, uint64_t max = ~uint64_t{0}) {
    uint64_t value = 0;
    bool ok = false;
    if (j.is_number_unsigned()) {
      value = j.get<uint64_t>();
      ok = true;
    } else if (j.is_string()) {
      const std::string text = j.get<std::string>();
      ok = absl::StartsWith(text, "0x") && absl::SimpleHexAtoi(text, &value);
    }
    if (!ok || value > max) {
      Fail(absl::StrCat("'", what, "' is not a number in range"));
      return 0;
    }
    return value;
  }
  // Whether `j` is a list of `n` items.
  bool IsTuple(const Json& j, size_t n, absl::string_view what) {
    if (j.is_array() && j.size() == n) return true;
    Fail(absl::StrCat("'", what, "' has an item that is not a list of ", n));
    return false;
  }
  void RefuseUnknown() {
    if (!object_.is_object()) return;
    for (const auto& [key, value] : object_.items()) {
      if (!seen_.contains(key)) Fail(absl::StrCat("has an unknown field '", key, "'"));
    }
  }
  Fields Inside(const Json& object, absl::string_view what) {
    return Fields(object, absl::StrCat(where_, ".", what), error_);
  }

 private:
  const Json& object_;
  const std::string where_;
  std::string* error_;
  std::set<std::string> seen_;
};

// {"0x0030": [...], ...}; `item` reads one list element.
template <typename Item, typename ReadItem>
std::map<SourceId, std::vector<Item>> ReadByRequester(Fields& fields, const Json& object,
                                                      const char* what, ReadItem read_item) {
  std::map<SourceId, std::vector<Item>> out;
  if (!object.is_object()) {
    fields.Fail(absl::StrCat("'", what, "' is not an object"));
    return out;
  }
  for (const auto& [key, list] : object.items()) {
    const SourceId sid(static_cast<uint16_t>(fields.ToNumber(Json(key), what, 0xffff)));
    auto& items = out[sid];
    if (!list.is_array() || list.size() > kMaxItems) {
      fields.Fail(absl::StrCat("'", what, "' holds something that is no list"));
      return out;
    }
    for (const Json& j : list) items.push_back(read_item(j));
  }
  return out;
}

ShadowRange ReadRange(Fields& fields, const Json& j, size_t first) {
  return {Iova(fields.ToNumber(j[first], "iova")), fields.ToNumber(j[first + 1], "size"),
          GuestPhys(fields.ToNumber(j[first + 2], "gpa")),
          fields.ToNumber(j[first + 3], "perm", 3)};
}

ShadowRanges ReadRanges(Fields& fields, const Json& object, const char* what) {
  return ReadByRequester<ShadowRange>(fields, object, what, [&](const Json& j) {
    return fields.IsTuple(j, 4, what) ? ReadRange(fields, j, 0) : ShadowRange{};
  });
}

ShadowEvents ReadEvents(Fields& fields, const Json& object) {
  return ReadByRequester<ShadowEvent>(fields, object, "events", [&](const Json& j) -> ShadowEvent {
    const bool named = j.is_array() && !j.empty() && j[0].is_string();
    if (named && j[0] == "U" && j.size() == 3) {
      ShadowEvent event;
      event.range.iova = Iova(fields.ToNumber(j[1], "iova"));
      event.range.size_bytes = fields.ToNumber(j[2], "size");
      return event;
    }
    if (named && j[0] == "M" && (j.size() == 5 || (j.size() == 6 && j[5] == "overlap"))) {
      return {true, ReadRange(fields, j, 1), j.size() == 6};
    }
    fields.Fail("'events' has an item that is neither a map nor an unmap");
    return {};
  });
}

std::optional<RecordedFault> ReadFault(Fields& obs) {
  const Json* found = obs.Find("fault");
  if (found == nullptr || found->is_null()) return std::nullopt;
  Fields f = obs.Inside(*found, "fault");
  RecordedFault fault;
  fault.reason = f.Number("reason", 0xff);
  fault.page = Iova(f.Number("addr"));
  const std::string type = f.Text("type");
  if (type != "read" && type != "write") f.Fail("'type' is neither read nor write");
  fault.read = type == "read";
  fault.source_id = SourceId(static_cast<uint16_t>(f.Number("sid", 0xffff)));
  f.RefuseUnknown();
  return fault;
}

std::vector<Segment> ReadSegments(Fields& obs) {
  std::vector<Segment> out;
  for (const Json& j : obs.Array("segments")) {
    Fields f = obs.Inside(j, "segments");
    Segment s;
    s.iova = Iova(f.Number("iova"));
    s.size_bytes = f.Number("size", kPageSize);
    if (const auto gpa = f.OptionalNumber("gpa")) s.address = PhysAddr(*gpa);
    if (f.Flag("blocked", false) == s.address.has_value()) {
      f.Fail("is neither blocked nor done, or both");
    }
    f.Ignore("data");
    f.Ignore("blocked_silently");
    f.RefuseUnknown();
    out.push_back(s);
  }
  return out;
}

Observation ReadObservation(Fields obs, const std::vector<PhysAddr>& watched) {
  Observation out;
  out.gsts = obs.OptionalNumber("gsts");
  out.value = obs.OptionalNumber("val");
  out.iqh = obs.OptionalNumber("iqh");
  out.fsts = obs.OptionalNumber("fsts");
  if (obs.Find("status") != nullptr) {
    for (const Json& j : obs.Array("status")) {
      if (!obs.IsTuple(j, 2, "status")) break;
      out.words.emplace_back(PhysAddr(obs.ToNumber(j[0], "status")),
                             static_cast<uint32_t>(obs.ToNumber(j[1], "status", 0xffffffff)));
    }
  }
  if (obs.Find("watch") != nullptr) {
    // Pairs of address and value, or the values alone in the order of the step's own list.
    const Json& list = obs.Array("watch");
    for (size_t i = 0; i < list.size(); ++i) {
      const Json& j = list[i];
      if (j.is_array()) {
        if (!obs.IsTuple(j, 2, "watch")) break;
        out.words.emplace_back(PhysAddr(obs.ToNumber(j[0], "watch")),
                               static_cast<uint32_t>(obs.ToNumber(j[1], "watch", 0xffffffff)));
      } else if (i < watched.size()) {
        out.words.emplace_back(watched[i],
                               static_cast<uint32_t>(obs.ToNumber(j, "watch", 0xffffffff)));
      } else {
        obs.Fail("'watch' is longer than the step's own list");
      }
    }
  }
  if (obs.Find("segments") != nullptr) out.segments = ReadSegments(obs);
  out.fault = ReadFault(obs);
  if (const Json* j = obs.Find("events")) out.events = ReadEvents(obs, *j);
  if (const Json* j = obs.Find("shadow")) out.shadow = ReadRanges(obs, *j, "shadow");
  for (const char* key : {"iotlb_hit", "equals_fresh_walk", "equals_flat", "quirk"}) {
    obs.Ignore(key);
  }
  obs.RefuseUnknown();
  return out;
}

void ReadWalk(Fields& step, Step& out) {
  for (const Json& j : step.Array("walk")) {
    Fields f = step.Inside(j, "walk");
    WalkNote note;
    if (const auto gpa = f.OptionalNumber("gpa")) {
      note.address = PhysAddr(*gpa);
    } else {
      note.reason = f.Number("reason", 0xff);
    }
    note.recorded = f.Flag("recorded", false);
    f.Ignore("ambiguous");
    f.RefuseUnknown();
    out.walk.push_back(note);
  }
}

void ReadQueue(Fields& step, Step& out) {
  out.queue_base = PhysAddr(step.Number("base"));
  out.entries = step.Number("entries", 1 << 15);
  out.first_entry = step.Number("at", 1 << 15);
  out.tail = step.Number("iqt");
  if (out.entries == 0) step.Fail("'entries' is 0");
  for (const Json& j : step.Array("desc")) {
    if (!step.IsTuple(j, 2, "desc")) return;
    out.descriptors.push_back({step.ToNumber(j[0], "desc"), step.ToNumber(j[1], "desc"), 0, 0});
  }
}

void ReadOperation(Fields& step, Step& out) {
  const std::string op = step.Text("op");
  if (op == "mem") {
    out.op = Op::kMem;
    for (const Json& j : step.Array("w")) {
      if (!step.IsTuple(j, 2, "w")) return;
      out.stores.emplace_back(PhysAddr(step.ToNumber(j[0], "w")), step.ToNumber(j[1], "w"));
    }
  } else if (op == "regw" || op == "regr") {
    out.op = op == "regw" ? Op::kRegWrite : Op::kRegRead;
    out.offset = static_cast<uint32_t>(step.Number("off", 0xfff));
    out.size_bytes = step.Number("size", 8);
    if (out.size_bytes != 4 && out.size_bytes != 8) step.Fail("'size' is neither 4 nor 8");
    if (op == "regw") out.value = step.Number("val");
  } else if (op == "qi") {
    out.op = Op::kQueue;
    ReadQueue(step, out);
  } else if (op == "dma") {
    out.op = Op::kDma;
    out.source_id = SourceId(static_cast<uint16_t>(step.Number("sid", 0xffff)));
    out.iova = Iova(step.Number("iova"));
    out.size_bytes = step.Number("size", 1 << 20);
    out.write = step.Flag("write", false);
    out.keep = step.Flag("keep", false);
    ReadWalk(step, out);
  } else if (op == "clear_faults") {
    out.op = Op::kClearFaults;
  } else if (op == "clear_frcd") {
    out.op = Op::kClearRecord;
  } else if (op == "shadow_base") {
    out.op = Op::kShadowBase;
  } else {
    step.Fail(absl::StrCat("has an unknown operation '", op, "'"));
  }
}

// A name, or lists of names by requester.
void ReadQuirks(Fields& step, const Json& quirk, Step& out) {
  if (quirk.is_string()) {
    out.quirks.insert(quirk.get<std::string>());
    return;
  }
  const auto by_requester = ReadByRequester<std::string>(step, quirk, "quirk", [&](const Json& j) {
    return j.is_string() ? j.get<std::string>() : "";
  });
  for (const auto& [sid, names] : by_requester) out.quirks.insert(names.begin(), names.end());
}

Step ReadStep(Fields step) {
  Step out;
  ReadOperation(step, out);
  if (const Json* spec = step.Find("spec")) {
    if (*spec != "defined" && *spec != "unspecified" && *spec != "unspecified-cm") {
      step.Fail("'spec' is neither defined nor unspecified");
    }
    out.defined = *spec == "defined";
  }
  if (const Json* flat = step.Find("flat")) out.flat = ReadRanges(step, *flat, "flat");
  std::vector<PhysAddr> watched;
  if (step.Find("watch") != nullptr) {
    for (const Json& j : step.Array("watch")) watched.emplace_back(step.ToNumber(j, "watch"));
  }
  if (const Json* obs = step.Find("obs")) {
    out.accepted.push_back(ReadObservation(step.Inside(*obs, "obs"), watched));
    if (obs->is_object() && obs->contains("quirk")) ReadQuirks(step, (*obs)["quirk"], out);
  }
  if (const Json* alternatives = step.Find("obs_alt")) {
    if (!alternatives->is_object()) step.Fail("'obs_alt' is not an object");
    for (const auto& [version, obs] : alternatives->items()) {
      // That QEMU aborted, here or earlier in the case: nothing was seen.
      if (obs.is_object() && (obs.contains("qemu_died") || obs.contains("not_run"))) continue;
      out.accepted.push_back(
          ReadObservation(step.Inside(obs, absl::StrCat("obs_alt.", version)), watched));
    }
  }
  // Beside what it does and what was observed, a step may carry notes of its recorder; an
  // observation that nobody compares would be a check that cannot fail, so those are refused above.
  return out;
}

}  // namespace

absl::StatusOr<Case> ParseCase(absl::string_view line) {
  const Json json = Json::parse(line.begin(), line.end(), nullptr, /*allow_exceptions=*/false);
  if (json.is_discarded()) return absl::InvalidArgumentError("malformed JSON");
  std::string error;
  Fields fields(json, "case", &error);
  Case out;
  out.id = fields.Text("id");
  out.suite = fields.Text("suite");
  out.address_width = static_cast<int>(fields.Number("aw_bits", 64));
  if (out.address_width != 39 && out.address_width != 48) fields.Fail("'aw_bits' is not 39 or 48");
  const Json& steps = fields.Array("steps");
  for (size_t i = 0; i < steps.size() && error.empty(); ++i) {
    out.steps.push_back(ReadStep(fields.Inside(steps[i], absl::StrCat("steps[", i, "]"))));
  }
  if (!error.empty()) return absl::InvalidArgumentError(error);
  return out;
}

}  // namespace viommu::conformance
