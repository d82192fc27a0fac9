// What `viommu top` shows: two looks at the services, and what happened between them.
#ifndef VIOMMU_GUEST_SVC_CLIENT_TOP_TABLE_H_
#define VIOMMU_GUEST_SVC_CLIENT_TOP_TABLE_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "guest_svc/client/output.h"
#include "iommu_core/base/cost_model.h"
#include "viommu/v1/guest_service.pb.h"
#include "viommu/v1/hypervisor_service.pb.h"

namespace viommu::client {

// The state of a hypervisor and of the guests that were named, at one moment.
struct TopSample {
  double seconds = 0;  // of any steady clock
  v1::ListSessionsResponse sessions;
  std::vector<v1::GuestStatus> guests;
};

// One session between two samples. Optional: what only its guest knows, where it was asked.
struct TopRow {
  std::string session_id;
  std::string strategy;
  bool connected = false;
  std::optional<std::string> policy;
  uint64_t live_pages = 0;
  uint64_t pinned_bytes = 0;
  uint64_t mismatches = 0;  // since the session began
  std::optional<uint64_t> stale_pages;
  double submissions_per_second = 0;
  std::optional<double> unmaps_per_second;
  double entries_read_per_changed = 0;  // 0: nothing changed
  double modelled_ns_per_submission = 0;
  std::optional<double> modelled_ns_per_unmap;
  double work_part = 0;  // wall time at work over wall time; this program's, no hypervisor's
};

// The sessions of `now`, busiest first. One that was not in `before` counts from its beginning. The
// guest's own constants (table update, queue build) are not in the modelled times: the hypervisor
// does not see how many updates there were.
std::vector<TopRow> TopRows(const TopSample& before, const TopSample& now, const CostModel& model);

std::string ToText(const std::vector<TopRow>& rows);
Json ToJson(const std::vector<TopRow>& rows);

}  // namespace viommu::client

#endif  // VIOMMU_GUEST_SVC_CLIENT_TOP_TABLE_H_
