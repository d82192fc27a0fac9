#include "iommu_core/dma/exposure_ledger.h"

#include <algorithm>
#include <utility>

namespace viommu {

void ExposureLedger::Add(uint32_t domain, IovaRange range, std::vector<uint64_t> pages,
                         double since_ns) {
  for (const uint64_t page : pages) ++by_page_[page];
  stale_pages_ += pages.size();
  by_domain_[domain][range.first.value()] = {range.end.value(), since_ns, std::move(pages)};
}

void ExposureLedger::Retire(const std::vector<uint64_t>& pages, double since_ns, double at_ns) {
  const double age_ns = std::max(0.0, at_ns - since_ns);
  page_ns_ += age_ns * static_cast<double>(pages.size());
  age_max_ns_ = std::max(age_max_ns_, age_ns);
  stale_pages_ -= pages.size();
  for (const uint64_t page : pages) {
    const auto it = by_page_.find(page);
    if (it != by_page_.end() && --it->second == 0) by_page_.erase(it);
  }
}

void ExposureLedger::Revoke(uint32_t domain, IovaRange range, double at_ns) {
  const auto found = by_domain_.find(domain);
  if (found == by_domain_.end()) return;
  Ranges& ranges = found->second;
  auto it = ranges.lower_bound(range.first.value());
  if (it != ranges.begin() && std::prev(it)->second.end > range.first.value()) --it;
  while (it != ranges.end() && it->first < range.end.value()) {
    const uint64_t first = it->first;
    Stale stale = std::move(it->second);
    it = ranges.erase(it);
    // What lies outside the invalidation stays stale.
    const uint64_t cut_first = std::max(first, range.first.value());
    const uint64_t cut_end = std::min(stale.end, range.end.value());
    const auto begin = stale.pages.begin();
    const auto at = [&](uint64_t iova) {
      return begin + static_cast<ptrdiff_t>((iova - first) >> kPageShift);
    };
    if (first < cut_first) {
      ranges[first] = {cut_first, stale.since_ns, {begin, at(cut_first)}};
    }
    if (cut_end < stale.end) {
      ranges[cut_end] = {stale.end, stale.since_ns, {at(cut_end), stale.pages.end()}};
    }
    Retire({at(cut_first), at(cut_end)}, stale.since_ns, at_ns);
  }
}

void ExposureLedger::RevokeDomain(uint32_t domain, double at_ns) {
  const auto found = by_domain_.find(domain);
  if (found == by_domain_.end()) return;
  for (const auto& [first, stale] : found->second) Retire(stale.pages, stale.since_ns, at_ns);
  found->second.clear();
}

uint64_t ExposureLedger::stale_pages_of(uint32_t domain) const {
  const auto found = by_domain_.find(domain);
  if (found == by_domain_.end()) return 0;
  uint64_t pages = 0;
  for (const auto& [first, stale] : found->second) pages += stale.pages.size();
  return pages;
}

double ExposureLedger::page_seconds_at(double now_ns) const {
  double total = page_ns_;
  for (const auto& [domain, ranges] : by_domain_) {
    for (const auto& [first, stale] : ranges) {
      total += std::max(0.0, now_ns - stale.since_ns) * static_cast<double>(stale.pages.size());
    }
  }
  return total * 1e-9;
}

double ExposureLedger::age_max_seconds_at(double now_ns) const {
  double age = age_max_ns_;
  for (const auto& [domain, ranges] : by_domain_) {
    for (const auto& [first, stale] : ranges) age = std::max(age, now_ns - stale.since_ns);
  }
  return age * 1e-9;
}

void ExposureLedger::ResetTotals() {
  page_ns_ = 0;
  age_max_ns_ = 0;
  reused_ = 0;
}

}  // namespace viommu
