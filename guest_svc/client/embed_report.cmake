# cmake -DOUT=FILE -DFOLDER=guest_svc/client -P embed_report.cmake: writes the report's style sheet and
# scripts as C++.
set(text "// Made from guest_svc/client/report and third_party by embed_report.cmake.
#ifndef VIOMMU_REPORT_ASSETS_H_
#define VIOMMU_REPORT_ASSETS_H_

namespace viommu::client {

")
foreach(asset "kReportCss|report/report.css" "kReportJs|report/report.js"
              "kPlotJs|third_party/plot/plot.min.js")
  string(REGEX REPLACE "\\|.*" "" name ${asset})
  string(REGEX REPLACE ".*\\|" "" path ${asset})
  file(READ ${FOLDER}/${path} content)
  string(APPEND text "inline constexpr char ${name}[] = R\"asset(${content})asset\";\n")
endforeach()
string(APPEND text "
}  // namespace viommu::client

#endif  // VIOMMU_REPORT_ASSETS_H_
")
file(WRITE ${OUT} "${text}")
