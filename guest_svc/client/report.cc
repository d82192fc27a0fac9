#include "guest_svc/client/report.h"

#include <algorithm>
#include <map>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "guest_svc/client/chart.h"

namespace viommu::client {
namespace {

constexpr char kHead[] = R"html(<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>What a virtual IOMMU's invalidations cost</title>
<style>
body{font:16px/1.5 system-ui,sans-serif;max-width:1100px;margin:2em auto;padding:0 1em;color:#222}
h1{font-size:1.6em}h2{font-size:1.2em;margin-top:2em}
.answer{font-size:1.1em;background:#f2f6fa;border-left:4px solid #0072B2;padding:.6em 1em}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(460px,1fr));gap:1em}
figure{margin:0}figcaption{font-weight:600}svg{width:100%;height:auto;font:12px system-ui,sans-serif}
.grid{stroke:#ddd;fill:none}.line{fill:none;stroke-width:2}
.mark{stroke:#444;fill:none;stroke-dasharray:4 3}.marktext{font-weight:600}
.legend span{margin-right:1em;white-space:nowrap}
.legend i{display:inline-block;width:.8em;height:.8em;border-radius:50%;margin-right:.3em}
.scroll{overflow-x:auto}table{border-collapse:collapse;font-size:13px}
th,td{padding:.25em .6em;border-bottom:1px solid #ddd;text-align:right;white-space:nowrap}
th:first-child,td:first-child,.text{text-align:left}
code{background:#f4f4f4;padding:.1em .3em;overflow-wrap:anywhere}td.source{white-space:normal;text-align:left}
</style></head><body>
)html";

std::string Ns(double ns) { return Duration(ns); }
std::string Count(double n) {
  return n >= 1 || n == 0 ? Grouped(static_cast<uint64_t>(n)) : Short(n);
}

// A policy has the same colour in every chart.
int ColorOf(const Comparison& comparison, const std::string& policy) {
  std::vector<std::string> seen;
  for (const CompareRow& row : comparison.rows) {
    const auto it = std::find(seen.begin(), seen.end(), row.policy);
    if (it == seen.end()) seen.push_back(row.policy);
  }
  return static_cast<int>(std::find(seen.begin(), seen.end(), policy) - seen.begin());
}

using Setting = std::pair<std::string, uint32_t>;  // strategy, vcpus

std::vector<Setting> Settings(const Comparison& comparison) {
  std::vector<Setting> settings;
  for (const CompareRow& row : comparison.rows) {
    const Setting setting(row.strategy, row.vcpus);
    if (std::find(settings.begin(), settings.end(), setting) == settings.end()) {
      settings.push_back(setting);
    }
  }
  return settings;
}

// One series per policy.
template <typename X, typename Y>
std::vector<Series> PerPolicy(const Comparison& comparison, const Setting& setting, X x, Y y,
                              bool line) {
  std::vector<Series> list;
  for (const CompareRow& row : comparison.rows) {
    if (Setting(row.strategy, row.vcpus) != setting) continue;
    auto it = std::find_if(list.begin(), list.end(),
                           [&](const Series& s) { return s.name == row.policy; });
    if (it == list.end()) {
      list.push_back({row.policy, ColorOf(comparison, row.policy), {}, line});
      it = list.end() - 1;
    }
    it->points.emplace_back(x(row), y(row));
  }
  for (Series& series : list) std::sort(series.points.begin(), series.points.end());
  return list;
}

double Live(const CompareRow& row) { return static_cast<double>(row.live_pages); }

Chart CostChart(const Comparison& comparison, const Setting& setting, const std::string& where) {
  Chart chart;
  chart.title = absl::StrCat("Modelled cost per unmap, ", where);
  chart.x = {"live pages", true, Count};
  chart.y = {"modelled time per unmap", true, Ns};
  chart.series = PerPolicy(
      comparison, setting, Live, [](const CompareRow& r) { return r.ns_per_unmap(); }, true);
  const auto cross =
      FindCrossover(comparison, "lazy-single", "strict", setting.first, setting.second);
  if (!cross) return chart;
  // On the line of strict, at the interpolated live set.
  for (const Series& series : chart.series) {
    if (series.name != "strict") continue;
    for (size_t i = 1; i < series.points.size(); ++i) {
      const auto& [x0, y0] = series.points[i - 1];
      const auto& [x1, y1] = series.points[i];
      if (cross->live_pages < x0 || cross->live_pages > x1 || x1 == x0) continue;
      chart.markers.push_back(
          {cross->live_pages, y0 + (y1 - y0) * (cross->live_pages - x0) / (x1 - x0),
           absl::StrCat("lazy-single = strict at about ", Count(cross->live_pages))});
      return chart;
    }
  }
  return chart;
}

Chart ReadChart(const Comparison& comparison, const Setting& setting, const std::string& where) {
  Chart chart;
  chart.title = absl::StrCat("Table entries read per unmap (lines) and changed (dots), ", where);
  chart.x = {"live pages", true, Count};
  chart.y = {"entries per unmap", true, Short};
  chart.series = PerPolicy(
      comparison, setting, Live, [](const CompareRow& r) { return r.entries_read_per_unmap(); },
      true);
  auto changed = PerPolicy(
      comparison, setting, Live, [](const CompareRow& r) { return r.entries_changed_per_unmap(); },
      false);
  for (Series& series : changed) {
    series.name += ", changed";
    chart.series.push_back(std::move(series));
  }
  return chart;
}

Chart ExposureChart(const Comparison& comparison, const Setting& setting,
                    const std::string& where) {
  Chart chart;
  chart.title = absl::StrCat("What exposure buys: cost against stale time per page, ", where);
  chart.x = {"mean time that an unmapped page stays reachable", false, Ns};
  chart.y = {"modelled time per unmap", true, Ns};
  chart.series = PerPolicy(
      comparison, setting,
      [](const CompareRow& r) {
        const auto pages = static_cast<double>(r.result.pages_unmapped());
        return pages == 0 ? 0 : 1e9 * r.result.stale_page_seconds() / pages;
      },
      [](const CompareRow& r) { return r.ns_per_unmap(); }, false);
  return chart;
}

std::string Table(const Comparison& comparison) {
  std::string html =
      "<div class=\"scroll\"><table><tr><th>strategy</th><th>live pages</th><th>vCPUs</th>"
      "<th>policy</th><th>maps</th><th>unmaps</th><th>exits</th><th>PSI</th><th>DSI</th>"
      "<th>entries read</th><th>per unmap</th><th>changed</th><th>map calls</th>"
      "<th>unmap calls</th><th>modelled / unmap</th><th>exit</th><th>walk</th><th>container</th>"
      "<th>stale page s</th><th>oldest</th><th>stale hits</th><th>reused stale</th>"
      "<th>mismatches</th></tr>\n";
  for (const CompareRow& row : comparison.rows) {
    const v1::WorkloadResult& r = row.result;
    absl::StrAppend(&html, "<tr><td>", HtmlEscape(row.strategy), "</td>");
    for (const std::string& cell : {Grouped(row.live_pages),
                                    absl::StrCat(row.vcpus),
                                    row.policy,
                                    Grouped(r.maps()),
                                    Grouped(r.unmaps()),
                                    Grouped(r.exits()),
                                    Grouped(r.descriptors_iotlb_page()),
                                    Grouped(r.descriptors_iotlb_domain()),
                                    Grouped(r.sync().ptes_read()),
                                    Short(row.entries_read_per_unmap()),
                                    Grouped(r.sync().ptes_changed()),
                                    Grouped(r.sync().dma_maps()),
                                    Grouped(r.sync().dma_unmaps()),
                                    Ns(row.ns_per_unmap()),
                                    Ns(row.PerUnmap(r.modelled_exit_ns())),
                                    Ns(row.PerUnmap(r.modelled_walk_ns())),
                                    Ns(row.PerUnmap(r.modelled_dma_ns())),
                                    Short(r.stale_page_seconds()),
                                    Ns(1e9 * r.stale_age_max_seconds()),
                                    Grouped(r.stale_dma_hits()),
                                    Grouped(r.reused_while_stale_pages()),
                                    Grouped(r.sync().shadow_mismatches())}) {
      absl::StrAppend(&html, "<td>", HtmlEscape(cell), "</td>");
    }
    html += "</tr>\n";
  }
  return html + "</table></div>\n";
}

std::string Preset(const v1::CostPreset& preset) {
  std::string html = absl::StrCat(
      "<h2>Cost preset ", HtmlEscape(preset.name()), "</h2><p>", HtmlEscape(preset.description()),
      ".</p><div class=\"scroll\"><table><tr><th>constant</th><th>ns</th><th>range</th>"
      "<th>certainty</th><th class=\"text\">source</th></tr>\n");
  for (const v1::CostConstant& c : preset.constants()) {
    absl::StrAppendFormat(&html,
                          "<tr><td>%s</td><td>%g</td><td>%g&ndash;%g</td><td>%s</td><td "
                          "class=\"source\">%s</td></tr>\n",
                          HtmlEscape(c.name()), c.value_ns(), c.low_ns(), c.high_ns(),
                          HtmlEscape(c.certainty()), HtmlEscape(c.source()));
  }
  return html + "</table></div>\n";
}

}  // namespace

std::string ToHtml(const Comparison& comparison) {
  std::string html = kHead;
  absl::StrAppend(&html, "<h1>What a virtual IOMMU's invalidations cost</h1>\n<p>",
                  HtmlEscape(comparison.input), ", seed ", comparison.seed, ", cost preset ",
                  HtmlEscape(comparison.cost_preset.name()), ".</p>\n<div class=\"answer\">");
  for (const std::string& sentence : Answer(comparison)) {
    absl::StrAppend(&html, "<p>", HtmlEscape(sentence), "</p>");
  }
  html += "</div>\n";
  const std::vector<Setting> settings = Settings(comparison);
  const bool several_vcpus = std::any_of(settings.begin(), settings.end(), [&](const Setting& s) {
    return s.second != settings.front().second;
  });
  for (const Setting& setting : settings) {
    const std::string where =
        several_vcpus ? absl::StrCat(setting.first, ", ", setting.second, " vCPUs") : setting.first;
    absl::StrAppend(&html, "<h2>Strategy ", HtmlEscape(where), "</h2>\n<div class=\"charts\">\n",
                    ToSvgFigure(CostChart(comparison, setting, where)),
                    ToSvgFigure(ReadChart(comparison, setting, where)),
                    ToSvgFigure(ExposureChart(comparison, setting, where)), "</div>\n");
  }
  absl::StrAppend(&html, "<h2>Every row</h2>\n", Table(comparison), Preset(comparison.cost_preset),
                  "<h2>How this was made</h2>\n<p><code>", HtmlEscape(comparison.command),
                  "</code></p><p>viommu ", HtmlEscape(comparison.version), "</p>\n<ul>");
  for (const std::string& note : comparison.notes) {
    absl::StrAppend(&html, "<li>", HtmlEscape(note), "</li>");
  }
  return html + "</ul>\n</body></html>\n";
}

}  // namespace viommu::client
