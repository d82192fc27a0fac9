// What a call left outstanding: a range whose invalidation is not known to be done, or was not
// sent.
#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "iommu_core/base/errors.h"
#include "iommu_core/dma/guest_machine_impl.h"

namespace viommu {
namespace {

// The operation was not started.
absl::Status NothingDone(const absl::Status& why) {
  return absl::Status(why.code(), absl::StrCat("an earlier invalidation is outstanding (",
                                               why.message(), "); nothing was done"));
}

}  // namespace

bool GuestMachineImpl::AllCovered() const {
  return std::all_of(unfinished_.begin(), unfinished_.end(),
                     [](const Unfinished& u) { return u.covered; });
}

bool GuestMachineImpl::Drained() const {
  return std::all_of(units_.begin(), units_.end(),
                     [](const Unit& unit) { return unit.driver->drained(); });
}

absl::Status GuestMachineImpl::FinishOutstanding() {
  if (!Drained()) {
    for (Unit& unit : units_) {
      absl::Status status = unit.driver->Drain();
      if (!status.ok()) return NothingDone(status);
    }
  }
  for (Unfinished& u : unfinished_) {
    const auto found = domains_.find(u.domain);
    if (u.covered || found == domains_.end()) continue;
    absl::Status status = InvalidateRange(*found->second, u.entry.range, ChangeOf(u.entry));
    if (!status.ok()) return NothingDone(status);
    u.covered = true;
  }
  return absl::OkStatus();
}

void GuestMachineImpl::ReleaseCovered() {
  if (unfinished_.empty() && parked_buffers_.empty()) return;
  std::erase_if(unfinished_, [this](Unfinished& u) ABSL_NO_THREAD_SAFETY_ANALYSIS {
    const auto found = domains_.find(u.domain);
    if (found == domains_.end()) return true;
    if (u.covered) Release(*found->second, std::move(u.entry), op_vcpu_);
    return u.covered;
  });
  if (!unfinished_.empty() || !Drained()) return;
  for (const auto& [first, size_bytes] : std::exchange(parked_buffers_, {})) {
    FreeBufferLocked(first, size_bytes);
  }
}

absl::Status GuestMachineImpl::Abandon(uint32_t id, Iova iova) {
  absl::MutexLock lock(&mu_);
  auto found = FindLocked(id);
  if (!found.ok()) return found.status();
  DmaDomain& domain = **found;
  const auto allocated = domain.allocated.find(iova.value());
  if (allocated == domain.allocated.end()) return errors::Invalid("no mapping was made here");
  FlushEntry entry{MakeRange(iova, allocated->second), true, {}};
  auto unmapped = domain.table->Unmap(entry.range);
  if (!unmapped.ok()) return unmapped.status();
  entry.freed_tables = std::move(unmapped->freed_tables);
  domain.allocated.erase(allocated);
  KeepUnfinished(id, std::move(entry));
  --stats_.maps;
  ++stats_.map_failures;
  return absl::OkStatus();
}

void GuestMachineImpl::set_deadline(std::chrono::steady_clock::time_point until) {
  absl::MutexLock lock(&mu_);
  for (Unit& unit : units_) unit.driver->set_deadline(until);
}

}  // namespace viommu
