#include "guest_svc/client/comparison.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"

namespace viommu::client {
namespace {

std::vector<const CompareRow*> Select(const Comparison& comparison, const std::string& policy,
                                      const std::string& strategy, uint32_t vcpus) {
  std::vector<const CompareRow*> rows;
  for (const CompareRow& row : comparison.rows) {
    if (row.policy == policy && row.strategy == strategy && row.vcpus == vcpus) {
      rows.push_back(&row);
    }
  }
  std::sort(rows.begin(), rows.end(),
            [](const CompareRow* a, const CompareRow* b) { return a->live_pages < b->live_pages; });
  return rows;
}

// Every (strategy, vcpus) in order of appearance.
std::vector<std::pair<std::string, uint32_t>> Settings(const Comparison& comparison) {
  std::vector<std::pair<std::string, uint32_t>> settings;
  for (const CompareRow& row : comparison.rows) {
    const std::pair<std::string, uint32_t> setting(row.strategy, row.vcpus);
    if (std::find(settings.begin(), settings.end(), setting) == settings.end()) {
      settings.push_back(setting);
    }
  }
  return settings;
}

bool SeveralVcpus(const Comparison& comparison) {
  return std::any_of(comparison.rows.begin(), comparison.rows.end(), [&](const CompareRow& row) {
    return row.vcpus != comparison.rows.front().vcpus;
  });
}

std::string SettingName(const Comparison& comparison, const std::string& strategy, uint32_t vcpus) {
  return SeveralVcpus(comparison) ? absl::StrCat("`", strategy, "`, ", vcpus, " vCPUs")
                                  : absl::StrCat("`", strategy, "`");
}

std::string ReadRatios(const Comparison& comparison, const std::string& strategy, uint32_t vcpus) {
  const auto lazy = Select(comparison, "lazy", strategy, vcpus);
  const auto strict = Select(comparison, "strict", strategy, vcpus);
  std::vector<std::string> parts;
  for (const CompareRow* a : lazy) {
    for (const CompareRow* b : strict) {
      if (a->live_pages != b->live_pages || b->entries_read_per_unmap() == 0) continue;
      const double ratio = a->entries_read_per_unmap() / b->entries_read_per_unmap();
      parts.push_back(absl::StrCat(Short(ratio), " times at ", Grouped(a->live_pages)));
    }
  }
  if (parts.empty()) return "";
  return absl::StrCat("With ", SettingName(comparison, strategy, vcpus),
                      ", `lazy` makes the hypervisor read this many times the table entries per "
                      "unmap that `strict` does: ",
                      absl::StrJoin(parts, ", "), " live pages.");
}

std::string SwapSentence(const Comparison& comparison, const std::string& first,
                         const std::string& second, const std::string& strategy, uint32_t vcpus) {
  const auto a = Select(comparison, first, strategy, vcpus);
  const auto b = Select(comparison, second, strategy, vcpus);
  if (a.empty() || b.empty()) return "";
  const std::string head = absl::StrCat("Under the cost preset ", comparison.cost_preset.name(),
                                        " and ", SettingName(comparison, strategy, vcpus), ", ");
  const auto cross = FindCrossover(comparison, first, second, strategy, vcpus);
  if (cross) {
    const std::string& below = cross->first_cheaper_below ? first : second;
    const std::string& above = cross->first_cheaper_below ? second : first;
    return absl::StrCat(
        head, "`", first, "` and `", second, "` swap places between ", Grouped(cross->below),
        " and ", Grouped(cross->above), " live pages, about ",
        Grouped(static_cast<uint64_t>(std::llround(cross->live_pages))),
        " by linear interpolation: `", below, "` is cheaper below, `", above, "` above.");
  }
  const bool first_cheaper = a.front()->ns_per_unmap() < b.front()->ns_per_unmap();
  const std::string range =
      a.front()->live_pages == a.back()->live_pages
          ? absl::StrCat("at ", Grouped(a.front()->live_pages))
          : absl::StrCat("at every measured size from ", Grouped(a.front()->live_pages), " to ",
                         Grouped(a.back()->live_pages));
  return absl::StrCat(head, "`", first, "` and `", second, "` do not swap places: `",
                      first_cheaper ? first : second, "` is cheaper ", range, " live pages (",
                      Duration(a.back()->ns_per_unmap()), " and ",
                      Duration(b.back()->ns_per_unmap()), " per unmap at the largest).");
}

// Rounded to two significant digits: an interpolation between sizes far apart has no more.
uint64_t TwoDigits(double value) {
  const double unit = std::pow(10, std::max(0.0, std::floor(std::log10(std::max(1.0, value))) - 1));
  return static_cast<uint64_t>(std::llround(value / unit) * std::llround(unit));
}

// "`a` up to about 9,000 live pages, `b` above", by interpolation between measured sizes. Adds the
// policies it names to `named`.
std::string Cheapest(const Comparison& comparison, const std::string& strategy, uint32_t vcpus,
                     std::vector<std::string>& named) {
  std::map<uint64_t, std::vector<const CompareRow*>> by_live;
  for (const CompareRow& row : comparison.rows) {
    if (row.strategy == strategy && row.vcpus == vcpus) by_live[row.live_pages].push_back(&row);
  }
  const auto find = [&](uint64_t live, const std::string& policy) -> const CompareRow* {
    const auto rows = by_live.find(live);
    if (rows == by_live.end()) return nullptr;
    for (const CompareRow* row : rows->second) {
      if (row->policy == policy) return row;
    }
    return nullptr;
  };
  std::string text;
  std::string best;
  uint64_t last = 0;
  for (const auto& [live, rows] : by_live) {
    const std::string& winner =
        (*std::min_element(rows.begin(), rows.end(), [](const auto* a, const auto* b) {
          return a->ns_per_unmap() < b->ns_per_unmap();
        }))->policy;
    if (winner != best) {
      named.push_back(winner);
      const CompareRow* old_low = find(last, best);
      const CompareRow* old_high = find(live, best);
      const CompareRow* new_low = find(last, winner);
      const CompareRow* new_high = find(live, winner);
      if (old_low != nullptr && old_high != nullptr && new_low != nullptr) {
        const double below = new_low->ns_per_unmap() - old_low->ns_per_unmap();
        const double above = old_high->ns_per_unmap() - new_high->ns_per_unmap();
        const double at =
            static_cast<double>(last) + static_cast<double>(live - last) * below / (below + above);
        absl::StrAppend(&text, "`", best, "` up to about ", Grouped(TwoDigits(at)),
                        " live pages, ");
      } else if (!best.empty()) {
        absl::StrAppend(&text, "`", best, "` up to ", Grouped(last), " live pages, ");
      }
      best = winner;
    }
    last = live;
  }
  absl::StrAppend(&text, "`", best, "` ",
                  !text.empty() ? "above"
                  : by_live.size() == 1
                      ? absl::StrCat("at ", Grouped(last), " live pages")
                      : absl::StrCat("at every live set from ", Grouped(by_live.begin()->first),
                                     " to ", Grouped(last), " pages"));
  return text;
}

}  // namespace

double CompareRow::PerUnmap(double total) const {
  return result.unmaps() == 0 ? 0 : total / static_cast<double>(result.unmaps());
}
double CompareRow::entries_read_per_unmap() const {
  return PerUnmap(static_cast<double>(result.sync().ptes_read()));
}
double CompareRow::entries_changed_per_unmap() const {
  return PerUnmap(static_cast<double>(result.sync().ptes_changed()));
}

std::vector<PlannedRow> RowsOf(const ComparePlan& plan) {
  std::vector<PlannedRow> rows;
  uint64_t number = 0;
  for (uint64_t vcpus : plan.vcpus) {
    for (const std::string& strategy : plan.strategies) {
      for (uint64_t live_pages : plan.live_pages) {
        for (const std::string& policy : plan.policies) {
          if (number++ % plan.shards == plan.shard) {
            rows.push_back({policy, strategy, live_pages, vcpus});
          }
        }
      }
    }
  }
  return rows;
}

std::optional<Crossover> FindCrossover(const Comparison& comparison, const std::string& first,
                                       const std::string& second, const std::string& strategy,
                                       uint32_t vcpus) {
  const auto a = Select(comparison, first, strategy, vcpus);
  const auto b = Select(comparison, second, strategy, vcpus);
  struct Point {
    uint64_t live;
    double difference;  // first minus second
  };
  std::vector<Point> points;
  for (const CompareRow* x : a) {
    for (const CompareRow* y : b) {
      if (x->live_pages == y->live_pages) {
        points.push_back({x->live_pages, x->ns_per_unmap() - y->ns_per_unmap()});
      }
    }
  }
  // A measured size at which they cost the same decides nothing; the sizes around it do.
  std::erase_if(points, [](const Point& point) { return point.difference == 0; });
  for (size_t i = 1; i < points.size(); ++i) {
    const Point& p = points[i - 1];
    const Point& q = points[i];
    if ((p.difference < 0) == (q.difference < 0)) continue;
    Crossover cross;
    cross.below = p.live;
    cross.above = q.live;
    cross.live_pages = static_cast<double>(p.live) + static_cast<double>(q.live - p.live) *
                                                         p.difference /
                                                         (p.difference - q.difference);
    cross.first_cheaper_below = p.difference < 0;
    return cross;
  }
  return std::nullopt;
}

std::string Verdict(const Comparison& comparison) {
  if (comparison.rows.empty()) return "";
  std::vector<std::string> named;
  std::vector<std::pair<std::string, std::string>> by_setting;  // where, what
  for (const auto& [strategy, vcpus] : Settings(comparison)) {
    const std::string where = SettingName(comparison, strategy, vcpus);
    const std::string what = Cheapest(comparison, strategy, vcpus, named);
    const auto same = std::find_if(by_setting.begin(), by_setting.end(),
                                   [&](const auto& entry) { return entry.second == what; });
    if (same == by_setting.end()) {
      by_setting.emplace_back(where, what);
    } else {
      absl::StrAppend(&same->first, " and ", where);
    }
  }
  std::vector<std::string> parts;
  for (const auto& [where, what] : by_setting) {
    parts.push_back(absl::StrCat("with ", where, ", ", what));
  }
  std::string text = absl::StrCat("Cheapest per unmap: ", absl::StrJoin(parts, "; "), ".");
  std::vector<std::string> exposure;
  std::vector<std::string> seen;
  for (const std::string& policy : named) {
    if (std::find(seen.begin(), seen.end(), policy) != seen.end()) continue;
    seen.push_back(policy);
    double oldest = 0;
    for (const CompareRow& row : comparison.rows) {
      if (row.policy == policy) oldest = std::max(oldest, row.result.stale_age_max_seconds());
    }
    exposure.push_back(oldest == 0
                           ? absl::StrCat("`", policy, "` never")
                           : absl::StrCat("`", policy, "` for up to ", Duration(oldest * 1e9)));
  }
  absl::StrAppend(
      &text, " A device can still reach an unmapped page: ", absl::StrJoin(exposure, ", "), ".");
  return text;
}

std::vector<std::string> Answer(const Comparison& comparison) {
  std::vector<std::string> sentences;
  const auto add = [&](std::string sentence) {
    if (!sentence.empty()) sentences.push_back(std::move(sentence));
  };
  for (const auto& [strategy, vcpus] : Settings(comparison)) {
    add(ReadRatios(comparison, strategy, vcpus));
    add(SwapSentence(comparison, "lazy-single", "strict", strategy, vcpus));
    add(SwapSentence(comparison, "lazy", "strict", strategy, vcpus));
  }
  if (sentences.empty()) {
    sentences.push_back("`strict` and a lazy policy are both needed to say what batching costs.");
  }
  return sentences;
}

std::string ToTable(const Comparison& comparison) {
  std::vector<std::string> columns = {"strategy",   "live pages",    "vcpus",       "policy",
                                      "unmaps",     "exits",         "psi",         "dsi",
                                      "read/unmap", "changed/unmap", "model/unmap", "stale page s",
                                      "oldest",     "stale hits",    "mismatches"};
  const bool remote =
      std::any_of(comparison.rows.begin(), comparison.rows.end(),
                  [](const CompareRow& row) { return row.result.sync().remote_pages() != 0; });
  if (remote) columns.insert(columns.end(), {"remote pages", "round trips"});
  TextTable table(columns);
  for (const CompareRow& row : comparison.rows) {
    const v1::WorkloadResult& r = row.result;
    std::vector<std::string> cells = {row.strategy,
                                      Grouped(row.live_pages),
                                      absl::StrCat(row.vcpus),
                                      row.policy,
                                      Grouped(r.unmaps()),
                                      Grouped(r.exits()),
                                      Grouped(r.descriptors_iotlb_page()),
                                      Grouped(r.descriptors_iotlb_domain()),
                                      Short(row.entries_read_per_unmap()),
                                      Short(row.entries_changed_per_unmap()),
                                      Duration(row.ns_per_unmap()),
                                      Short(r.stale_page_seconds()),
                                      Duration(r.stale_age_max_seconds() * 1e9),
                                      Grouped(r.stale_dma_hits()),
                                      Grouped(r.sync().shadow_mismatches())};
    if (remote) {
      cells.push_back(Grouped(r.sync().remote_pages()));
      cells.push_back(Grouped(r.sync().remote_round_trips()));
    }
    table.Add(std::move(cells));
  }
  return table.ToString();
}

uint64_t ShadowMismatches(const Comparison& comparison) {
  uint64_t sum = 0;
  for (const CompareRow& row : comparison.rows) sum += row.result.sync().shadow_mismatches();
  return sum;
}

}  // namespace viommu::client
