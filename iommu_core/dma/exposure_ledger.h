// What devices can still reach although the guest has unmapped it, and for how long.
#ifndef VIOMMU_IOMMU_CORE_DMA_EXPOSURE_LEDGER_H_
#define VIOMMU_IOMMU_CORE_DMA_EXPOSURE_LEDGER_H_

#include <cstdint>
#include <map>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "iommu_core/base/types.h"

namespace viommu {

// A page is stale from the moment its unmap returned until an invalidation that covers it is done.
class ExposureLedger {
 public:
  // `pages`: the guest page behind each 4K page of `range`, in order.
  void Add(uint32_t domain, IovaRange range, std::vector<uint64_t> pages, double since_ns);
  // An invalidation of `range` (of everything) of the domain was done at `at_ns`.
  void Revoke(uint32_t domain, IovaRange range, double at_ns);
  void RevokeDomain(uint32_t domain, double at_ns);
  // `guest_page` (a page number) is handed to a device again.
  void OnMap(uint64_t guest_page) {
    if (!by_page_.empty() && by_page_.contains(guest_page)) ++reused_;
  }

  uint64_t stale_pages() const { return stale_pages_; }
  uint64_t stale_pages_of(uint32_t domain) const;
  double page_seconds() const { return page_ns_ * 1e-9; }
  // Page-seconds if everything still stale were revoked at `now_ns`, and the largest age by then.
  double page_seconds_at(double now_ns) const;
  double age_max_seconds_at(double now_ns) const;
  double age_max_seconds() const { return age_max_ns_ * 1e-9; }
  uint64_t reused_pages() const { return reused_; }
  // Forgets totals, keeps what is stale.
  void ResetTotals();

 private:
  struct Stale {
    uint64_t end = 0;  // iova
    double since_ns = 0;
    std::vector<uint64_t> pages;
  };
  using Ranges = std::map<uint64_t, Stale>;  // by first iova

  void Retire(const std::vector<uint64_t>& pages, double since_ns, double at_ns);

  absl::flat_hash_map<uint32_t, Ranges> by_domain_;
  absl::flat_hash_map<uint64_t, uint32_t> by_page_;  // guest page -> stale mappings of it
  uint64_t stale_pages_ = 0;
  uint64_t reused_ = 0;
  double page_ns_ = 0;
  double age_max_ns_ = 0;
};

}  // namespace viommu

#endif  // VIOMMU_IOMMU_CORE_DMA_EXPOSURE_LEDGER_H_
