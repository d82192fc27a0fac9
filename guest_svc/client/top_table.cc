#include "guest_svc/client/top_table.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "svc_common/conversions.h"

namespace viommu::client {
namespace {

const v1::Session* FindSession(const TopSample& sample, const std::string& id) {
  for (const v1::Session& s : sample.sessions.sessions()) {
    if (s.session_id() == id) return &s;
  }
  return nullptr;
}

const v1::GuestStatus* FindGuest(const TopSample& sample, const std::string& session_id) {
  for (const v1::GuestStatus& guest : sample.guests) {
    for (const std::string& id : guest.session_ids()) {
      if (id == session_id) return &guest;
    }
  }
  return nullptr;
}

// Counters grow; a session that began anew under the same id starts from nothing.
uint64_t Since(uint64_t before, uint64_t now) { return now >= before ? now - before : now; }

// The modelled price of `now` less that of `before`, `submissions` of which there were between.
double Price(const CostModel& model, const SyncCost& before, const SyncCost& now,
             uint64_t submissions) {
  const ModelledCost price = PriceSync(model, now) - PriceSync(model, before);
  // PriceSync has one submission in each, so none is left in the difference.
  return price.total() + static_cast<double>(submissions) * model.submission_ns;
}

// A guest with several vIOMMUs has a session for each, but one count of unmaps and stale pages.
void AddGuest(const TopSample& before, const v1::GuestStatus& guest, double seconds,
              double modelled_ns, TopRow& row) {
  row.policy = guest.policy().effective_policy();
  row.stale_pages = guest.stale_page_count();
  const v1::GuestStatus* old = FindGuest(before, row.session_id);
  if (old == nullptr) return;
  const uint64_t unmaps = Since(old->unmap_count(), guest.unmap_count());
  row.unmaps_per_second = static_cast<double>(unmaps) / seconds;
  if (unmaps > 0 && guest.session_ids_size() == 1) {
    row.modelled_ns_per_unmap = modelled_ns / static_cast<double>(unmaps);
  }
}

}  // namespace

std::vector<TopRow> TopRows(const TopSample& before, const TopSample& now, const CostModel& model) {
  const double seconds = std::max(1e-9, now.seconds - before.seconds);
  std::vector<TopRow> rows;
  for (const v1::Session& s : now.sessions.sessions()) {
    const v1::Session* found = FindSession(before, s.session_id());
    const v1::Session none;
    const v1::Session& old = found != nullptr ? *found : none;
    TopRow& row = rows.emplace_back();
    row.session_id = s.session_id();
    row.strategy = s.strategy();
    row.connected = s.connected();
    row.live_pages = s.live_page_count();
    row.pinned_bytes = s.pinned_bytes();
    row.mismatches = s.cost().shadow_mismatches();
    const uint64_t submissions = Since(old.completed_sequence(), s.completed_sequence());
    row.submissions_per_second = static_cast<double>(submissions) / seconds;
    const uint64_t changed = Since(old.cost().ptes_changed(), s.cost().ptes_changed());
    if (changed > 0) {
      row.entries_read_per_changed =
          static_cast<double>(Since(old.cost().ptes_read(), s.cost().ptes_read())) /
          static_cast<double>(changed);
    }
    const double modelled = Price(model, FromProto(old.cost()), FromProto(s.cost()), submissions);
    if (submissions > 0) {
      row.modelled_ns_per_submission = modelled / static_cast<double>(submissions);
    }
    row.work_part =
        static_cast<double>(Since(old.work_wall_ns(), s.work_wall_ns())) * 1e-9 / seconds;
    if (const v1::GuestStatus* guest = FindGuest(now, s.session_id())) {
      AddGuest(before, *guest, seconds, modelled, row);
    }
  }
  std::stable_sort(rows.begin(), rows.end(), [](const TopRow& a, const TopRow& b) {
    return a.submissions_per_second > b.submissions_per_second;
  });
  return rows;
}

std::string ToText(const std::vector<TopRow>& rows) {
  if (rows.empty()) return "no sessions\n";
  TextTable table({"session", "policy", "strategy", "stream", "live pages", "stale pages",
                   "unmaps/s", "exits/s", "read/changed", "model/exit", "model/unmap", "pinned MiB",
                   "work", "mismatches"});
  const auto or_dash = [](const auto& value, auto text) -> std::string {
    return value ? text(*value) : "-";
  };
  for (const TopRow& row : rows) {
    table.Add({row.session_id.substr(0, 8), row.policy.value_or("-"), row.strategy,
               row.connected ? "up" : "down", Grouped(row.live_pages),
               or_dash(row.stale_pages, Grouped), or_dash(row.unmaps_per_second, Short),
               Short(row.submissions_per_second), Short(row.entries_read_per_changed),
               Duration(row.modelled_ns_per_submission),
               or_dash(row.modelled_ns_per_unmap, Duration), Grouped(row.pinned_bytes >> 20),
               absl::StrFormat("%.1f %%", 100 * row.work_part), Grouped(row.mismatches)});
  }
  return table.ToString();
}

Json ToJson(const std::vector<TopRow>& rows) {
  Json list = Json::array();
  for (const TopRow& row : rows) {
    Json j = {{"session_id", row.session_id},
              {"strategy", row.strategy},
              {"connected", row.connected},
              {"live_pages", row.live_pages},
              {"pinned_bytes", row.pinned_bytes},
              {"shadow_mismatches", row.mismatches},
              {"submissions_per_second", row.submissions_per_second},
              {"entries_read_per_changed", row.entries_read_per_changed},
              {"modelled_ns_per_submission", row.modelled_ns_per_submission},
              {"work_wall_part", row.work_part}};
    if (row.policy) j["policy"] = *row.policy;
    if (row.stale_pages) j["stale_pages"] = *row.stale_pages;
    if (row.unmaps_per_second) j["unmaps_per_second"] = *row.unmaps_per_second;
    if (row.modelled_ns_per_unmap) j["modelled_ns_per_unmap"] = *row.modelled_ns_per_unmap;
    list.push_back(std::move(j));
  }
  Json json;
  json["schema"] = "viommu.top.v1";
  json["sessions"] = std::move(list);
  return json;
}

}  // namespace viommu::client
