#include "guest_svc/client/chart.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace viommu::client {
namespace {

constexpr double kWidth = 640;
constexpr double kHeight = 360;
constexpr double kLeft = 86;
constexpr double kRight = 16;
constexpr double kTop = 14;
constexpr double kBottom = 52;
// Okabe and Ito's colours: told apart with any colour vision.
constexpr std::array<const char*, 8> kPalette = {"#0072B2", "#D55E00", "#009E73", "#CC79A7",
                                                 "#E69F00", "#56B4E9", "#000000", "#8C6D31"};

const char* Color(int index) { return kPalette[static_cast<size_t>(index) % kPalette.size()]; }

// Maps values of one axis to pixels.
class Scale {
 public:
  Scale(bool logarithmic, double low, double high, double from, double to)
      : logarithmic_(logarithmic), from_(from), to_(to) {
    if (logarithmic_) {
      low_ = std::floor(std::log10(low));
      high_ = std::ceil(std::log10(high));
    } else {
      low_ = std::min(low, 0.0);
      high_ = high;
    }
    if (high_ <= low_) high_ = low_ + 1;
  }
  double operator()(double value) const {
    const double at = logarithmic_ ? (value > 0 ? std::max(std::log10(value), low_) : low_) : value;
    return from_ + (to_ - from_) * (at - low_) / (high_ - low_);
  }
  std::vector<double> Ticks() const {
    std::vector<double> ticks;
    if (logarithmic_) {
      const double step = std::max(1.0, std::ceil((high_ - low_) / 8));
      for (double e = low_; e <= high_ + 0.5; e += step) ticks.push_back(std::pow(10, e));
    } else {
      const double rough = (high_ - low_) / 5;
      const double power = std::pow(10, std::floor(std::log10(rough)));
      const double step = rough / power < 2   ? 2 * power
                          : rough / power < 5 ? 5 * power
                                              : 10 * power;
      for (double v = std::ceil(low_ / step) * step; v <= high_ + step / 100; v += step) {
        ticks.push_back(v);
      }
    }
    return ticks;
  }

 private:
  const bool logarithmic_;
  const double from_;
  const double to_;
  double low_ = 0;
  double high_ = 1;
};

struct Bounds {
  double low = std::numeric_limits<double>::infinity();
  double high = -std::numeric_limits<double>::infinity();
  void Add(double v, bool logarithmic) {
    if (logarithmic && v <= 0) return;
    low = std::min(low, v);
    high = std::max(high, v);
  }
  void Settle() {
    if (low > high) low = 1, high = 10;
  }
};

std::string Text(double x, double y, const char* anchor, const std::string& text,
                 const std::string& extra = "") {
  return absl::StrFormat("<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\"%s>%s</text>\n", x, y,
                         anchor, extra, HtmlEscape(text));
}

}  // namespace

std::string HtmlEscape(const std::string& text) {
  std::string out;
  for (char c : text) {
    switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '"':
        out += "&quot;";
        break;
      case '\'':
        out += "&#39;";
        break;
      default:
        out += c;
    }
  }
  return out;
}

std::string ToSvgFigure(const Chart& chart) {
  Bounds xs;
  Bounds ys;
  for (const Series& series : chart.series) {
    for (const auto& [x, y] : series.points) {
      xs.Add(x, chart.x.logarithmic);
      ys.Add(y, chart.y.logarithmic);
    }
  }
  xs.Settle();
  ys.Settle();
  const Scale x(chart.x.logarithmic, xs.low, xs.high, kLeft, kWidth - kRight);
  const Scale y(chart.y.logarithmic, ys.low, ys.high, kHeight - kBottom, kTop);

  std::string svg = absl::StrFormat(
      "<figure><figcaption>%s</figcaption>\n<svg viewBox=\"0 0 %.0f %.0f\" role=\"img\" "
      "aria-label=\"%s\">\n",
      HtmlEscape(chart.title), kWidth, kHeight, HtmlEscape(chart.title));
  for (double tick : x.Ticks()) {
    absl::StrAppendFormat(&svg, "<path class=\"grid\" d=\"M%.1f %.1fV%.1f\"/>\n", x(tick), kTop,
                          kHeight - kBottom);
    svg += Text(x(tick), kHeight - kBottom + 16, "middle", chart.x.label(tick));
  }
  for (double tick : y.Ticks()) {
    absl::StrAppendFormat(&svg, "<path class=\"grid\" d=\"M%.1f %.1fH%.1f\"/>\n", kLeft, y(tick),
                          kWidth - kRight);
    svg += Text(kLeft - 6, y(tick) + 4, "end", chart.y.label(tick));
  }
  svg += Text((kLeft + kWidth - kRight) / 2, kHeight - 14, "middle", chart.x.title);
  svg += Text(0, 0, "middle", chart.y.title,
              absl::StrFormat(" transform=\"translate(14 %.1f) rotate(-90)\"",
                              (kTop + kHeight - kBottom) / 2));
  for (const Series& series : chart.series) {
    if (series.line && series.points.size() > 1) {
      std::string path;
      for (const auto& [px, py] : series.points) {
        absl::StrAppendFormat(&path, "%s%.1f %.1f", path.empty() ? "M" : "L", x(px), y(py));
      }
      absl::StrAppendFormat(&svg, "<path class=\"line\" stroke=\"%s\" d=\"%s\"/>\n",
                            Color(series.color), path);
    }
    for (const auto& [px, py] : series.points) {
      absl::StrAppendFormat(
          &svg, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"4\" fill=\"%s\"><title>%s</title></circle>\n",
          x(px), y(py), Color(series.color),
          HtmlEscape(absl::StrCat(series.name, ": ", chart.x.label(px), ", ", chart.y.label(py))));
    }
  }
  for (const Marker& marker : chart.markers) {
    absl::StrAppendFormat(
        &svg,
        "<path class=\"mark\" d=\"M%.1f %.1fV%.1f\"/><circle class=\"mark\" cx=\"%.1f\" "
        "cy=\"%.1f\" r=\"7\"/>\n",
        x(marker.x), kTop, kHeight - kBottom, x(marker.x), y(marker.y));
    const bool left_half = x(marker.x) < kWidth / 2;
    svg += Text(x(marker.x) + (left_half ? 6 : -6), kTop + 12, left_half ? "start" : "end",
                marker.label, " class=\"marktext\"");
  }
  svg += "</svg>\n<p class=\"legend\">";
  for (const Series& series : chart.series) {
    absl::StrAppendFormat(&svg, "<span><i style=\"background:%s\"></i>%s</span> ",
                          Color(series.color), HtmlEscape(series.name));
  }
  return svg + "</p></figure>\n";
}

}  // namespace viommu::client
