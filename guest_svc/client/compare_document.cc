#include "guest_svc/client/compare_document.h"

#include <algorithm>
#include <utility>
#include <variant>

#include "absl/strings/str_cat.h"
#include "guest_svc/client/pricing.h"

namespace viommu::client {
namespace {

constexpr char kSchema[] = "viommu.compare.v1";

using Result = v1::WorkloadResult;
using Sync = v1::SyncCost;

template <typename Message, typename Value>
struct Member {
  Value (Message::*get)() const;
  void (Message::*set)(Value);
};

// One value of a row: where it stands in the document and in the result. Order as in the document.
struct Field {
  const char* path;  // a JSON pointer
  std::variant<Member<Result, uint64_t>, Member<Sync, uint64_t>, Member<Result, double>> member;
};

#define VIOMMU_COUNT(path, name)                                          \
  {                                                                       \
    path, Member<Result, uint64_t> { &Result::name, &Result::set_##name } \
  }
#define VIOMMU_SYNC(path, name)                                     \
  {                                                                 \
    path, Member<Sync, uint64_t> { &Sync::name, &Sync::set_##name } \
  }
#define VIOMMU_REAL(path, name)                                         \
  {                                                                     \
    path, Member<Result, double> { &Result::name, &Result::set_##name } \
  }

const Field kFields[] = {
    VIOMMU_COUNT("/maps", maps),
    VIOMMU_COUNT("/unmaps", unmaps),
    VIOMMU_COUNT("/pages_mapped", pages_mapped),
    VIOMMU_COUNT("/pages_unmapped", pages_unmapped),
    VIOMMU_COUNT("/exits", exits),
    VIOMMU_COUNT("/descriptors/iotlb_page", descriptors_iotlb_page),
    VIOMMU_COUNT("/descriptors/iotlb_domain", descriptors_iotlb_domain),
    VIOMMU_COUNT("/descriptors/iotlb_global", descriptors_iotlb_global),
    VIOMMU_COUNT("/descriptors/context", descriptors_context),
    VIOMMU_COUNT("/descriptors/device_tlb", descriptors_device_tlb),
    VIOMMU_COUNT("/descriptors/wait", descriptors_wait),
    VIOMMU_SYNC("/table_pages_read", table_pages_read),
    VIOMMU_SYNC("/ptes_read", ptes_read),
    VIOMMU_SYNC("/bytes_read", bytes_read),
    VIOMMU_SYNC("/ptes_changed", ptes_changed),
    VIOMMU_SYNC("/dma_maps", dma_maps),
    VIOMMU_SYNC("/dma_unmaps", dma_unmaps),
    VIOMMU_COUNT("/pinned_pages_max", pinned_pages_max),
    VIOMMU_SYNC("/iotlb_invalidations", iotlb_invalidations),
    VIOMMU_SYNC("/shadow_mismatches", shadow_mismatches),
    VIOMMU_REAL("/stale_page_seconds", stale_page_seconds),
    VIOMMU_REAL("/stale_age_max_seconds", stale_age_max_seconds),
    VIOMMU_COUNT("/stale_dma_hits", stale_dma_hits),
    VIOMMU_COUNT("/reused_while_stale_pages", reused_while_stale_pages),
    VIOMMU_REAL("/modelled_ns_total", modelled_ns_total),
    VIOMMU_REAL("/modelled_ns/guest", modelled_guest_ns),
    VIOMMU_REAL("/modelled_ns/exit", modelled_exit_ns),
    VIOMMU_REAL("/modelled_ns/walk", modelled_walk_ns),
    VIOMMU_REAL("/modelled_ns/dma", modelled_dma_ns),
    VIOMMU_REAL("/modelled_ns/hw", modelled_hw_ns),
    VIOMMU_REAL("/modelled_ns/wait", modelled_wait_ns),
    VIOMMU_SYNC("/leaves_visited", leaves_visited),
    VIOMMU_SYNC("/descriptors_consumed", descriptor_count),
    VIOMMU_SYNC("/pages_pinned", pages_pinned),
    VIOMMU_SYNC("/pages_unpinned", pages_unpinned),
    VIOMMU_COUNT("/map_updates", map_updates),
    VIOMMU_COUNT("/unmap_updates", unmap_updates),
    VIOMMU_SYNC("/dma_map_failures", dma_map_failures),
    VIOMMU_COUNT("/refused_pages", refused_pages),
    VIOMMU_SYNC("/verified_pages", verified_pages),
    VIOMMU_SYNC("/remote_pages", remote_pages),
    VIOMMU_SYNC("/remote_bytes", remote_bytes),
    VIOMMU_SYNC("/remote_round_trips", remote_round_trips),
    VIOMMU_COUNT("/flushes/full", flushes_full),
    VIOMMU_COUNT("/flushes/timeout", flushes_timeout),
    VIOMMU_COUNT("/flushes/sync", flushes_sync),
    VIOMMU_COUNT("/failed_ops", failed_ops),
    VIOMMU_REAL("/virtual_seconds", virtual_seconds),
    VIOMMU_REAL("/wall_seconds", wall_seconds),
    VIOMMU_REAL("/wall_ns_per_unmap_p50", wall_ns_per_unmap_p50),
    VIOMMU_REAL("/wall_ns_per_unmap_p99", wall_ns_per_unmap_p99),
};

#undef VIOMMU_COUNT
#undef VIOMMU_SYNC
#undef VIOMMU_REAL

Json Get(const Field& field, const Result& result) {
  return std::visit(
      [&](const auto& member) -> Json {
        if constexpr (std::is_same_v<std::decay_t<decltype(member)>, Member<Sync, uint64_t>>) {
          return (result.sync().*member.get)();
        } else {
          return (result.*member.get)();
        }
      },
      field.member);
}

bool Set(const Field& field, const Json& value, Result& result) {
  if (std::holds_alternative<Member<Result, double>>(field.member)) {
    if (!value.is_number()) return false;
    (result.*std::get<Member<Result, double>>(field.member).set)(value.get<double>());
    return true;
  }
  if (!value.is_number_unsigned()) return false;
  if (const auto* sync = std::get_if<Member<Sync, uint64_t>>(&field.member)) {
    (result.mutable_sync()->*sync->set)(value.get<uint64_t>());
  } else {
    (result.*std::get<Member<Result, uint64_t>>(field.member).set)(value.get<uint64_t>());
  }
  return true;
}

Json PlanToJson(const ComparePlan& plan) {
  return {{"policies", plan.policies},
          {"strategies", plan.strategies},
          {"live_pages", plan.live_pages},
          {"vcpus", plan.vcpus},
          {"ops", plan.ops},
          {"hz", plan.hz},
          {"map_sync", plan.map_sync},
          {"ih", plan.hint},
          {"shard", plan.shard},
          {"shards", plan.shards}};
}

Json ToJson(const CompareRow& row, const v1::CostPreset& preset) {
  Json j;
  j["policy"] = row.policy;
  j["strategy"] = row.strategy;
  j["live_pages"] = row.live_pages;
  j["vcpus"] = row.vcpus;
  for (const Field& field : kFields) {
    const Json::json_pointer pointer(field.path);
    if (pointer == Json::json_pointer("/modelled_ns_total")) {
      j["modelled_ns_per_unmap"] = row.ns_per_unmap();
    }
    j[pointer] = Get(field, row.result);
  }
  for (const auto& [constant, count] : PricedEvents(preset, row.result)) {
    j["priced_events"][constant] = count;
  }
  return j;
}

// Reads typed members of an object; the first that is missing or wrong is remembered.
class Reader {
 public:
  Reader(const Json& json, std::string where) : json_(json), where_(std::move(where)) {
    if (!json_.is_object()) Wrong("is no object");
  }

  template <typename T>
  void Read(const char* path, T* out) {
    if (!status_.ok()) return;
    const Json::json_pointer pointer(path);
    if (!json_.contains(pointer)) return Wrong(absl::StrCat("has no ", path + 1));
    const Json& value = json_.at(pointer);
    if constexpr (std::is_same_v<T, std::string>) {
      if (!value.is_string()) return Wrong(absl::StrCat(path + 1, " is no text"));
    } else if constexpr (std::is_same_v<T, uint64_t>) {
      if (!value.is_number_unsigned()) return Wrong(absl::StrCat(path + 1, " is no count"));
    } else if constexpr (std::is_same_v<T, double>) {
      if (!value.is_number()) return Wrong(absl::StrCat(path + 1, " is no number"));
    } else {
      if (!value.is_array()) return Wrong(absl::StrCat(path + 1, " is no list"));
      using Item = typename T::value_type;
      for (const Json& item : value) {
        if (std::is_same_v<Item, std::string> ? !item.is_string() : !item.is_number_unsigned()) {
          return Wrong(absl::StrCat(path + 1, " has an item of the wrong type"));
        }
      }
    }
    *out = value.get<T>();
  }

  void Read(const Field& field, Result& result) {
    if (!status_.ok()) return;
    const Json::json_pointer pointer(field.path);
    if (!json_.contains(pointer)) return Wrong(absl::StrCat("has no ", field.path + 1));
    if (!Set(field, json_.at(pointer), result)) {
      Wrong(absl::StrCat(field.path + 1, " is no number that fits"));
    }
  }

  void Wrong(const std::string& what) {
    if (status_.ok()) status_ = absl::InvalidArgumentError(absl::StrCat(where_, ": ", what));
  }
  const absl::Status& status() const { return status_; }

 private:
  const Json& json_;
  const std::string where_;
  absl::Status status_;
};

absl::StatusOr<CompareRow> RowFromJson(const Json& json, const std::string& where) {
  CompareRow row;
  Reader reader(json, where);
  uint64_t vcpus = 0;
  reader.Read("/policy", &row.policy);
  reader.Read("/strategy", &row.strategy);
  reader.Read("/live_pages", &row.live_pages);
  reader.Read("/vcpus", &vcpus);
  for (const Field& field : kFields) reader.Read(field, row.result);
  if (!reader.status().ok()) return reader.status();
  row.vcpus = static_cast<uint32_t>(vcpus);
  row.result.set_policy(row.policy);
  row.result.set_strategy(row.strategy);
  return row;
}

bool SameRow(const CompareRow& a, const PlannedRow& b) {
  return a.policy == b.policy && a.strategy == b.strategy && a.live_pages == b.live_pages &&
         a.vcpus == b.vcpus;
}

std::string NameOf(const PlannedRow& row) {
  return absl::StrCat(row.policy, " x ", row.strategy, ", ", Grouped(row.live_pages),
                      " live pages, ", row.vcpus, " vCPUs");
}

// The field on which two results differ though they must not, or null.
const char* FirstDifference(const Result& a, const Result& b) {
  for (const Field& field : kFields) {
    if (absl::string_view(field.path).substr(0, 6) == "/wall_") continue;
    if (Get(field, a) != Get(field, b)) return field.path + 1;
  }
  return nullptr;
}

template <typename T>
void AddNew(const std::vector<T>& from, std::vector<T>& to) {
  for (const T& item : from) {
    if (std::find(to.begin(), to.end(), item) == to.end()) to.push_back(item);
  }
}

// What must be the same in all parts, as one text each.
std::vector<std::pair<const char*, std::string>> Identity(const Comparison& c) {
  std::string constants = c.cost_preset.name();
  for (const v1::CostConstant& constant : c.cost_preset.constants()) {
    absl::StrAppend(&constants, " ", constant.name(), "=", constant.value_ns());
  }
  return {{"input", c.input},
          {"seed", absl::StrCat(c.seed)},
          {"cost preset", constants},
          {"version", c.version},
          {"--ops", absl::StrCat(c.plan.ops)},
          {"--hz", absl::StrCat(c.plan.hz)},
          {"--map_sync", c.plan.map_sync},
          {"--ih", c.plan.hint}};
}

}  // namespace

Json ToJson(const Comparison& comparison) {
  Json json;
  json["schema"] = kSchema;
  json["seed"] = comparison.seed;
  json["cost_preset"] = comparison.cost_preset.name();
  json["input"] = comparison.input;
  json["command"] = comparison.command;
  json["version"] = comparison.version;
  json["plan"] = PlanToJson(comparison.plan);
  json["notes"] = comparison.notes;
  json["verdict"] = Verdict(comparison);
  json["answer"] = Answer(comparison);
  json["cost_preset_description"] = comparison.cost_preset.description();
  Json constants = Json::array();
  for (const v1::CostConstant& c : comparison.cost_preset.constants()) {
    constants.push_back({{"name", c.name()},
                         {"value_ns", c.value_ns()},
                         {"low_ns", c.low_ns()},
                         {"high_ns", c.high_ns()},
                         {"certainty", c.certainty()},
                         {"source", c.source()}});
  }
  json["cost_constants"] = std::move(constants);
  Json rows = Json::array();
  for (const CompareRow& row : comparison.rows) {
    rows.push_back(ToJson(row, comparison.cost_preset));
  }
  json["rows"] = std::move(rows);
  return json;
}

absl::StatusOr<Comparison> ComparisonFromJson(const Json& json, const std::string& where) {
  Reader reader(json, where);
  std::string schema;
  reader.Read("/schema", &schema);
  if (reader.status().ok() && schema != kSchema) {
    reader.Wrong(absl::StrCat("its schema is '", schema, "', not '", kSchema,
                              "'; give files that `viommu compare --json=FILE` wrote"));
  }
  Comparison c;
  reader.Read("/seed", &c.seed);
  reader.Read("/cost_preset", c.cost_preset.mutable_name());
  reader.Read("/input", &c.input);
  reader.Read("/command", &c.command);
  reader.Read("/version", &c.version);
  reader.Read("/notes", &c.notes);
  reader.Read("/cost_preset_description", c.cost_preset.mutable_description());
  reader.Read("/plan/policies", &c.plan.policies);
  reader.Read("/plan/strategies", &c.plan.strategies);
  reader.Read("/plan/live_pages", &c.plan.live_pages);
  reader.Read("/plan/vcpus", &c.plan.vcpus);
  reader.Read("/plan/ops", &c.plan.ops);
  reader.Read("/plan/hz", &c.plan.hz);
  reader.Read("/plan/map_sync", &c.plan.map_sync);
  reader.Read("/plan/ih", &c.plan.hint);
  reader.Read("/plan/shard", &c.plan.shard);
  reader.Read("/plan/shards", &c.plan.shards);
  if (!reader.status().ok()) return reader.status();
  if (c.plan.shard >= c.plan.shards) reader.Wrong("its shard is not one of its shards");
  if (!json.contains("cost_constants") || !json["cost_constants"].is_array()) {
    reader.Wrong("has no cost_constants");
  }
  if (!json.contains("rows") || !json["rows"].is_array()) reader.Wrong("has no rows");
  if (!reader.status().ok()) return reader.status();
  for (const Json& item : json["cost_constants"]) {
    Reader constant(item, absl::StrCat(where, ": a cost constant"));
    std::string text;
    double value = 0;
    v1::CostConstant* out = c.cost_preset.add_constants();
    constant.Read("/name", out->mutable_name());
    constant.Read("/certainty", out->mutable_certainty());
    constant.Read("/source", out->mutable_source());
    constant.Read("/value_ns", &value);
    out->set_value_ns(value);
    constant.Read("/low_ns", &value);
    out->set_low_ns(value);
    constant.Read("/high_ns", &value);
    out->set_high_ns(value);
    if (!constant.status().ok()) return constant.status();
  }
  for (size_t i = 0; i < json["rows"].size(); ++i) {
    auto row = RowFromJson(json["rows"][i], absl::StrCat(where, ": row ", i + 1));
    if (!row.ok()) return row.status();
    c.rows.push_back(*std::move(row));
  }
  return c;
}

absl::StatusOr<Comparison> MergeComparisons(std::vector<NamedComparison> parts) {
  if (parts.empty()) return absl::InvalidArgumentError("nothing to merge");
  const auto identity = Identity(parts[0].comparison);
  for (const NamedComparison& part : parts) {
    const auto other = Identity(part.comparison);
    for (size_t i = 0; i < identity.size(); ++i) {
      if (identity[i].second == other[i].second) continue;
      return absl::FailedPreconditionError(absl::StrCat(
          identity[i].first, " differs: ", parts[0].name, " has '", identity[i].second, "', ",
          part.name, " has '", other[i].second, "'; only runs of one sweep can be merged"));
    }
  }
  Comparison merged = parts[0].comparison;
  merged.rows.clear();
  merged.plan.shard = 0;
  merged.plan.shards = 1;
  for (const NamedComparison& part : parts) {
    const ComparePlan& plan = part.comparison.plan;
    AddNew(plan.policies, merged.plan.policies);
    AddNew(plan.strategies, merged.plan.strategies);
    AddNew(plan.live_pages, merged.plan.live_pages);
    AddNew(plan.vcpus, merged.plan.vcpus);
    AddNew(part.comparison.notes, merged.notes);
  }
  std::sort(merged.plan.live_pages.begin(), merged.plan.live_pages.end());
  for (const PlannedRow& planned : RowsOf(merged.plan)) {
    const CompareRow* found = nullptr;
    const std::string* found_in = nullptr;
    for (const NamedComparison& part : parts) {
      for (const CompareRow& row : part.comparison.rows) {
        if (!SameRow(row, planned)) continue;
        if (found == nullptr) {
          found = &row;
          found_in = &part.name;
        } else if (const char* field = FirstDifference(found->result, row.result)) {
          return absl::FailedPreconditionError(
              absl::StrCat(NameOf(planned), ": ", field, " differs between ", *found_in, " and ",
                           part.name, "; one of them is not what its command would write again"));
        }
      }
    }
    if (found != nullptr) merged.rows.push_back(*found);
  }
  for (const NamedComparison& part : parts) {
    // Of the whole sweep, not of the part's shard: what no file has is what is missing.
    ComparePlan whole = part.comparison.plan;
    for (whole.shard = 0; whole.shard < whole.shards; ++whole.shard) {
      for (const PlannedRow& planned : RowsOf(whole)) {
        if (std::any_of(merged.rows.begin(), merged.rows.end(),
                        [&](const CompareRow& row) { return SameRow(row, planned); })) {
          continue;
        }
        return absl::FailedPreconditionError(
            absl::StrCat("no file has the row ", NameOf(planned),
                         "; give the JSON of --shard=", whole.shard, "/", whole.shards, " too"));
      }
    }
  }
  return merged;
}

}  // namespace viommu::client
