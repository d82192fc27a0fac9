#include "guest_svc/client/report.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "guest_svc/client/compare_document.h"
#include "guest_svc/client/output.h"
#include "guest_svc/client/report_assets.h"

namespace viommu::client {
namespace {

constexpr char kHead[] = R"html(<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>What a virtual IOMMU's invalidations cost</title>
<link rel="icon" href="data:,">
)html";
constexpr char kCharts[] =
    R"html(<noscript><p>The charts need JavaScript; the table does not.</p></noscript>
<div id="choices" class="bar"></div>
<div id="charts" class="charts"></div>
)html";

std::string HtmlEscape(const std::string& text) {
  return absl::StrReplaceAll(
      text, {{"&", "&amp;"}, {"<", "&lt;"}, {">", "&gt;"}, {"\"", "&quot;"}, {"'", "&#39;"}});
}

// Prose: what stands between backticks becomes <code>.
std::string WithCode(const std::string& text) {
  std::string html;
  bool code = false;
  for (const auto& piece : absl::StrSplit(HtmlEscape(text), '`')) {
    absl::StrAppend(&html, code ? "<code>" : "", piece, code ? "</code>" : "");
    code = !code;
  }
  return html;
}

// Inside <script> nothing but a "<" can end the element or open a comment.
std::string InsideScript(const std::string& json) {
  return absl::StrReplaceAll(json, {{"<", "\\u003c"}});
}

std::string Ns(double ns) { return Duration(ns); }
// A cell: what people read, and what sorting compares.
struct Cell {
  std::string text;
  std::string value;
};
Cell TextCell(const std::string& text) { return {text, text}; }
Cell CountCell(uint64_t n) { return {Grouped(n), absl::StrCat(n)}; }
Cell RealCell(double value) { return {Short(value), absl::StrCat(value)}; }
Cell TimeCell(double ns) { return {Ns(ns), absl::StrCat(ns)}; }

std::string Table(const Comparison& comparison) {
  std::string html = "<div class=\"scroll\"><table id=\"rows\"><thead><tr>";
  for (const char* name : {"strategy",     "live pages",   "vCPUs",
                           "policy",       "maps",         "unmaps",
                           "exits",        "PSI",          "DSI",
                           "entries read", "read / unmap", "changed",
                           "map calls",    "unmap calls",  "modelled / unmap",
                           "exit",         "walk",         "map and unmap calls",
                           "stale page s", "oldest",       "stale hits",
                           "reused stale", "mismatches",   "wall p50",
                           "wall p99"}) {
    absl::StrAppend(&html, "<th>", name, "</th>");
  }
  html += "</tr></thead><tbody>\n";
  for (const CompareRow& row : comparison.rows) {
    const v1::WorkloadResult& r = row.result;
    html += "<tr>";
    for (const Cell& cell : {TextCell(row.strategy),
                             CountCell(row.live_pages),
                             CountCell(row.vcpus),
                             TextCell(row.policy),
                             CountCell(r.maps()),
                             CountCell(r.unmaps()),
                             CountCell(r.exits()),
                             CountCell(r.descriptors_iotlb_page()),
                             CountCell(r.descriptors_iotlb_domain()),
                             CountCell(r.sync().ptes_read()),
                             RealCell(row.entries_read_per_unmap()),
                             CountCell(r.sync().ptes_changed()),
                             CountCell(r.sync().dma_maps()),
                             CountCell(r.sync().dma_unmaps()),
                             TimeCell(row.ns_per_unmap()),
                             TimeCell(row.PerUnmap(r.modelled_exit_ns())),
                             TimeCell(row.PerUnmap(r.modelled_walk_ns())),
                             TimeCell(row.PerUnmap(r.modelled_dma_ns())),
                             RealCell(r.stale_page_seconds()),
                             TimeCell(1e9 * r.stale_age_max_seconds()),
                             CountCell(r.stale_dma_hits()),
                             CountCell(r.reused_while_stale_pages()),
                             CountCell(r.sync().shadow_mismatches()),
                             TimeCell(r.wall_ns_per_unmap_p50()),
                             TimeCell(r.wall_ns_per_unmap_p99())}) {
      absl::StrAppend(&html, "<td data-v=\"", HtmlEscape(cell.value), "\">", HtmlEscape(cell.text),
                      "</td>");
    }
    html += "</tr>\n";
  }
  return html + "</tbody></table></div>\n";
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
  absl::StrAppend(&html, "<style>\n", kReportCss, "</style></head><body><main>\n",
                  "<h1>What a virtual IOMMU's invalidations cost</h1>\n<p class=\"muted\">",
                  HtmlEscape(comparison.input), " &middot; seed ", comparison.seed,
                  " &middot; cost preset <b>", HtmlEscape(comparison.cost_preset.name()),
                  "</b>: ", HtmlEscape(comparison.cost_preset.description()),
                  "</p>\n<div class=\"answer\"><p class=\"verdict\">",
                  WithCode(Verdict(comparison)), "</p><details><summary>In figures</summary><ul>");
  for (const std::string& sentence : Answer(comparison)) {
    absl::StrAppend(&html, "<li>", WithCode(sentence), "</li>");
  }
  absl::StrAppend(&html, "</ul></details></div>\n", kCharts, "<h2>Every row</h2>\n",
                  "<p class=\"downloads\"><a id=\"csv\" download=\"viommu-report.csv\">CSV</a>",
                  "<a id=\"json\" download=\"viommu-report.json\">JSON</a></p>\n",
                  Table(comparison), "<h2>How this was made</h2>\n<pre>",
                  HtmlEscape(comparison.command), "</pre><p>viommu ",
                  HtmlEscape(comparison.version), ", seed ", comparison.seed, ", cost preset ",
                  HtmlEscape(comparison.cost_preset.name()), "</p>\n<ul>");
  for (const std::string& note : comparison.notes) {
    absl::StrAppend(&html, "<li>", HtmlEscape(note), "</li>");
  }
  absl::StrAppend(
      &html, "</ul>\n", Preset(comparison.cost_preset),
      "<p class=\"small muted\">Charts: Observable Plot 0.6.17 and D3 7, &copy; Observable "
      "and Mike Bostock, ISC licence.</p>\n</main>\n",
      "<script type=\"application/json\" id=\"comparison\">",
      InsideScript(ToJson(comparison).dump()), "</script>\n<script>", kPlotJs,
      "</script>\n<script>\n", kReportJs, "</script>\n</body></html>\n");
  return html;
}

}  // namespace viommu::client
