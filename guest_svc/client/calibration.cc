#include "guest_svc/client/calibration.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "guest_svc/client/output.h"

namespace viommu::client {
namespace {

constexpr double kLowPart = 0.1;
constexpr double kHighPart = 0.9;

class Fit {
 public:
  Fit(const v1::CostPreset& base, Calibration& out) : base_(base), out_(out) {}

  double Value(const std::string& name) const {
    for (const v1::CostConstant& c : out_.preset.constants()) {
      if (c.name() == name) return c.value_ns();
    }
    return 0;
  }

  // `samples` less `parts` is the constant.
  absl::Status Set(const std::string& name, const Samples& samples,
                   const std::vector<std::string>& parts, const std::string& what) {
    double known = 0;
    std::string less;
    for (const std::string& part : parts) {
      if (Value(part) == 0) continue;
      known += Value(part);
      absl::StrAppend(&less, less.empty() ? "" : ", ", part, " ", Short(Value(part)));
    }
    const double value = samples.Percentile(0.5) - known;
    if (value < 0) {
      return absl::InvalidArgumentError(absl::StrCat(
          what, " takes ", Duration(samples.Percentile(0.5)), ", less than what \"", base_.name(),
          "\" has in it (", less,
          "): choose the --base_preset of the machine that was measured, or measure those too"));
    }
    for (v1::CostConstant& c : *out_.preset.mutable_constants()) {
      if (c.name() != name) continue;
      c.set_value_ns(value);
      c.set_low_ns(std::clamp(samples.Percentile(kLowPart) - known, 0.0, value));
      c.set_high_ns(std::max(samples.Percentile(kHighPart) - known, value));
      c.set_source(absl::StrCat(what, ", ", samples.size(),
                                samples.size() == 1 ? " run" : " samples",
                                less.empty() ? "" : absl::StrCat(", less ", less, " ns")));
      c.set_certainty(less.empty() ? "measured" : "derived");
    }
    out_.changed.push_back(name);
    return absl::OkStatus();
  }

 private:
  const v1::CostPreset& base_;
  Calibration& out_;
};

absl::Status FitLog(const QemuLog& log, Fit& fit) {
  struct Part {
    const char* name;
    const Samples& samples;
    std::string what;
  };
  for (const Part& part :
       {Part{"dma_map_ns", log.map_ns, "QEMU log: a container map call, its log line included"},
        Part{"dma_unmap_ns", log.unmap_ns,
             "QEMU log: a container unmap call, its log line included"},
        Part{"leaf_visit_ns", log.flush_page_ns,
             absl::StrCat(
                 "QEMU log: a domain flush by mapped page",
                 log.pages_traced ? ", a log line a page included: an upper bound" : "")}}) {
    if (part.samples.empty()) continue;
    if (absl::Status s = fit.Set(part.name, part.samples, {}, part.what); !s.ok()) return s;
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<Calibration> Calibrate(const v1::CostPreset& base, const std::string& name,
                                      const Measurements& measured) {
  if (!measured.strict && !measured.lazy && !measured.qemu_log) {
    return absl::InvalidArgumentError(
        "nothing measured: give --strict, --lazy or --qemu_log; `viommu calibrate --help` says how "
        "to record them");
  }
  Calibration out;
  out.preset = base;
  out.preset.set_name(name);
  out.preset.set_description(
      absl::StrCat("measured by `viommu calibrate`; the rest is ", base.name()));
  Fit fit(base, out);
  const bool trapped = fit.Value("submission_ns") > 0;
  const bool log_maps = measured.qemu_log && !measured.qemu_log->map_ns.empty();
  if (measured.qemu_log) {
    if (absl::Status s = FitLog(*measured.qemu_log, fit); !s.ok()) return s;
    // Its map calls pin: what is pinned must not be priced again.
    if (log_maps) {
      for (v1::CostConstant& c : *out.preset.mutable_constants()) {
        if (c.name() != "pin_page_ns") continue;
        c.set_value_ns(0);
        c.set_low_ns(0);
        c.set_high_ns(0);
        c.set_source("in dma_map_ns, as measured");
        c.set_certainty("measured");
        out.changed.push_back(c.name());
      }
    }
  }
  if (measured.lazy) {
    // A 256th of a flush is in it, and is left in.
    absl::Status s = fit.Set("unmap_update_ns", measured.lazy->unmap_ns, {},
                             "dma_map_benchmark, lazy: an unmap");
    if (s.ok() && !trapped) {
      s = fit.Set("map_update_ns", measured.lazy->map_ns, {}, "dma_map_benchmark, lazy: a map");
    }
    if (!s.ok()) return s;
  }
  if (measured.strict && trapped) {
    absl::Status s =
        fit.Set("submission_ns", measured.strict->unmap_ns,
                {"unmap_update_ns", "queue_build_ns", "dma_unmap_ns", "hw_invalidation_ns"},
                "dma_map_benchmark, strict: an unmap");
    if (s.ok() && !log_maps) {
      s = fit.Set(
          "dma_map_ns", measured.strict->map_ns,
          {"map_update_ns", "queue_build_ns", "submission_ns", "leaf_visit_ns", "pin_page_ns"},
          "dma_map_benchmark, strict: a map");
    }
    if (!s.ok()) return s;
  } else if (measured.strict) {
    absl::Status s =
        fit.Set("queue_build_ns", measured.strict->unmap_ns,
                {"unmap_update_ns", "hw_invalidation_ns"}, "dma_map_benchmark, strict: an unmap");
    if (s.ok() && !measured.lazy) {
      s = fit.Set("map_update_ns", measured.strict->map_ns, {}, "dma_map_benchmark, strict: a map");
    }
    if (!s.ok()) return s;
  }
  return out;
}

}  // namespace viommu::client
