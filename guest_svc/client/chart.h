// Line and dot charts as inline SVG.
#ifndef VIOMMU_GUEST_SVC_CLIENT_CHART_H_
#define VIOMMU_GUEST_SVC_CLIENT_CHART_H_

#include <functional>
#include <string>
#include <utility>
#include <vector>

namespace viommu::client {

// Text safe inside HTML and SVG, attributes included.
std::string HtmlEscape(const std::string& text);

struct Series {
  std::string name;
  int color = 0;  // index into the palette, the same name everywhere
  std::vector<std::pair<double, double>> points;  // ascending x
  bool line = true;                               // joined by a line
};

struct Axis {
  std::string title;
  bool logarithmic = true;                   // zero and below stand at the lower edge
  std::function<std::string(double)> label;  // of a tick
};

// Where two lines cross.
struct Marker {
  double x = 0;
  double y = 0;
  std::string label;
};

struct Chart {
  std::string title;
  Axis x;
  Axis y;
  std::vector<Series> series;
  std::vector<Marker> markers;
};

// A <figure> with caption and legend; every point has a tooltip.
std::string ToSvgFigure(const Chart& chart);

}  // namespace viommu::client

#endif  // VIOMMU_GUEST_SVC_CLIENT_CHART_H_
