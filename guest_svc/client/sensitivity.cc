#include "guest_svc/client/sensitivity.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "guest_svc/client/pricing.h"

namespace viommu::client {
namespace {

// A swing of less than this part of the ratio is none.
constexpr double kSmallest = 0.001;

// The same rows under other constants.
Comparison Repriced(const Comparison& comparison, const v1::CostPreset& preset) {
  Comparison out;
  out.cost_preset = preset;
  for (const CompareRow& row : comparison.rows) {
    CompareRow& copy = out.rows.emplace_back(row);
    copy.result.set_modelled_ns_total(Reprice(preset, row.result));
  }
  return out;
}

const CompareRow* Find(const Comparison& comparison, const PairSensitivity& pair,
                       const std::string& policy) {
  for (const CompareRow& row : comparison.rows) {
    if (row.policy == policy && row.strategy == pair.strategy && row.vcpus == pair.vcpus &&
        row.live_pages == pair.live_pages) {
      return &row;
    }
  }
  return nullptr;
}

PairAnswer AnswerOf(const Comparison& comparison, const PairSensitivity& pair) {
  PairAnswer answer;
  const CompareRow* first = Find(comparison, pair, pair.first);
  const CompareRow* second = Find(comparison, pair, pair.second);
  if (first != nullptr && second != nullptr && second->ns_per_unmap() > 0) {
    answer.ratio = first->ns_per_unmap() / second->ns_per_unmap();
  }
  const auto cross = FindCrossover(comparison, pair.first, pair.second, pair.strategy, pair.vcpus);
  if (cross) answer.flip_pages = cross->live_pages;
  return answer;
}

double Width(const Swing& swing) { return std::fabs(swing.high.ratio - swing.low.ratio); }

// Every (strategy, vcpus, policy) pair with `strict` that ran at a common live set.
std::vector<PairSensitivity> Pairs(const Comparison& comparison) {
  std::vector<PairSensitivity> pairs;
  for (const char* first : {"lazy-single", "lazy"}) {
    for (const CompareRow& row : comparison.rows) {
      if (row.policy != first) continue;
      PairSensitivity pair;
      pair.strategy = row.strategy;
      pair.vcpus = row.vcpus;
      pair.first = first;
      pair.second = "strict";
      pair.live_pages = row.live_pages;
      if (Find(comparison, pair, pair.second) == nullptr) continue;
      const auto same = std::find_if(pairs.begin(), pairs.end(), [&](const PairSensitivity& p) {
        return p.strategy == pair.strategy && p.vcpus == pair.vcpus && p.first == pair.first;
      });
      if (same == pairs.end()) {
        pairs.push_back(std::move(pair));
      } else {
        same->live_pages = std::max(same->live_pages, row.live_pages);
      }
    }
  }
  return pairs;
}

std::string Pages(const std::optional<double>& pages) {
  return pages ? Grouped(static_cast<uint64_t>(std::llround(*pages))) : "none";
}

Json ToJson(const PairAnswer& answer) {
  Json j = {{"ratio", answer.ratio}, {"flip_pages", nullptr}};
  if (answer.flip_pages) j["flip_pages"] = *answer.flip_pages;
  return j;
}

}  // namespace

std::vector<PairSensitivity> ComputeSensitivity(const Comparison& comparison) {
  std::vector<PairSensitivity> pairs = Pairs(comparison);
  const Comparison base = Repriced(comparison, comparison.cost_preset);
  for (PairSensitivity& pair : pairs) pair.base = AnswerOf(base, pair);
  for (int i = 0; i < comparison.cost_preset.constants_size(); ++i) {
    const v1::CostConstant& constant = comparison.cost_preset.constants(i);
    if (constant.low_ns() >= constant.high_ns()) continue;
    v1::CostPreset preset = comparison.cost_preset;
    preset.mutable_constants(i)->set_value_ns(constant.low_ns());
    const Comparison low = Repriced(comparison, preset);
    preset.mutable_constants(i)->set_value_ns(constant.high_ns());
    const Comparison high = Repriced(comparison, preset);
    for (PairSensitivity& pair : pairs) {
      Swing swing{constant.name(), constant.low_ns(), constant.high_ns(), AnswerOf(low, pair),
                  AnswerOf(high, pair)};
      const bool moves_flip = swing.low.flip_pages != swing.high.flip_pages;
      if (Width(swing) > kSmallest * pair.base.ratio || moves_flip) {
        pair.swings.push_back(std::move(swing));
      }
    }
  }
  for (PairSensitivity& pair : pairs) {
    std::stable_sort(pair.swings.begin(), pair.swings.end(),
                     [](const Swing& a, const Swing& b) { return Width(a) > Width(b); });
  }
  return pairs;
}

std::string ToText(const std::vector<PairSensitivity>& list) {
  if (list.empty()) {
    return "Sensitivity: nothing to compare; --policies needs strict and lazy or lazy-single.\n";
  }
  std::string text;
  for (const PairSensitivity& pair : list) {
    absl::StrAppend(&text, "Sensitivity of `", pair.first, "` over `", pair.second, "` with `",
                    pair.strategy, "`, ", pair.vcpus,
                    pair.vcpus == 1 ? " vCPU: " : " vCPUs: ", Short(pair.base.ratio),
                    " times the cost at ", Grouped(pair.live_pages), " live pages, flip at ",
                    Pages(pair.base.flip_pages), "\n");
    TextTable table({"constant", "range", "cost ratio", "flips at (live pages)"});
    for (const Swing& s : pair.swings) {
      table.Add({s.constant, absl::StrCat(Duration(s.low_ns), " to ", Duration(s.high_ns)),
                 absl::StrCat(Short(s.low.ratio), " to ", Short(s.high.ratio)),
                 absl::StrCat(Pages(s.low.flip_pages), " to ", Pages(s.high.flip_pages))});
    }
    absl::StrAppend(&text, table.ToString(), "\n");
  }
  return text;
}

Json ToJson(const std::vector<PairSensitivity>& list) {
  Json out = Json::array();
  for (const PairSensitivity& pair : list) {
    Json swings = Json::array();
    for (const Swing& s : pair.swings) {
      swings.push_back({{"constant", s.constant},
                        {"low_ns", s.low_ns},
                        {"high_ns", s.high_ns},
                        {"low", ToJson(s.low)},
                        {"high", ToJson(s.high)}});
    }
    out.push_back({{"strategy", pair.strategy},
                   {"vcpus", pair.vcpus},
                   {"first", pair.first},
                   {"second", pair.second},
                   {"live_pages", pair.live_pages},
                   {"base", ToJson(pair.base)},
                   {"swings", std::move(swings)}});
  }
  return out;
}

}  // namespace viommu::client
