// A batch of descriptors, decoded and carried out in ring order.
#include <algorithm>
#include <array>
#include <utility>
#include <variant>

#include "iommu_core/shadow/session_impl.h"

namespace viommu {

using vtd::Granularity;

namespace {

// Descriptors or device touches between two calls of `yield`.
constexpr uint64_t kStepsPerSlice = 32;
// Descriptors whose pages are looked for before the first is compared: a core waits for about as
// many cache misses at once.
constexpr size_t kReadAhead = 16;

}  // namespace

void SessionImpl::ApplyOne(const vtd::RawDescriptor& raw, const vtd::Descriptor& d,
                           TableClaim claim, SyncCost& cost) {
  const bool context = std::holds_alternative<vtd::ContextCacheInvalidate>(d);
  const auto* iotlb = std::get_if<vtd::IotlbInvalidate>(&d);
  const auto* device_tlb = std::get_if<vtd::DeviceTlbInvalidate>(&d);
  // Interrupt entries are not modelled here; status words and interrupts are the virtual unit's.
  if (!context && iotlb == nullptr && device_tlb == nullptr) return;
  WorkBudget budget(config_.max_work_per_invalidation, config_.yield);
  SyncRun run{.cost = cost, .budget = budget, .quiet = claim != TableClaim::kNone};
  if (nested_ != nullptr && device_tlb == nullptr) {
    // Forwarded; the guest's tables are the hardware's.
    if (iotlb != nullptr) ++stats_.invalidations[static_cast<size_t>(iotlb->granularity)];
    ++cost.iotlb_invalidations;
    nested_->translator().Execute(std::span(&raw, 1), std::span(&d, 1)).IgnoreError();
    return;
  }
  if (context) Invalidate(std::get<vtd::ContextCacheInvalidate>(d), run);
  if (iotlb != nullptr) Invalidate(*iotlb, run);
  if (device_tlb != nullptr) Invalidate(*device_tlb, run);
  if (run.work_refused) ++stats_.work_refused;
}

vtd::DecodeResult SessionImpl::DecodeOne(const vtd::RawDescriptor& raw) const {
  // The guest's unit decoded it, too; nothing it says is trusted. The width of the queue is not
  // known here: the upper half, where there is one, must be zero in either.
  return vtd::Decode(raw, config_.guest_caps, /*wide_queue=*/true);
}

size_t SessionImpl::TakeUnchanged(std::span<const vtd::RawDescriptor> next, SyncCost& cost) {
  if (next.size() < 2 || nested_ != nullptr || config_.verify != Verify::kOff) return 0;
  std::array<Shadow::Spot, kReadAhead> spots;
  size_t found = 0;
  for (; found < next.size(); ++found) {
    const vtd::DecodeResult decoded = DecodeOne(next[found]);
    const auto* d = std::get_if<vtd::IotlbInvalidate>(&decoded.descriptor);
    if (decoded.error != vtd::Iqei::kNone || d == nullptr ||
        d->granularity != Granularity::kPageOrDevice) {
      break;
    }
    const Shadow* const shadow = OnlyShadowOf(MaskDomain(d->domain_id));
    if (shadow == nullptr || !shadow->FindSpot(RangeOf(*d), d->leaf_hint, spots[found])) break;
    __builtin_prefetch(spots[found].entry);
    __builtin_prefetch(spots[found].last);
  }
  size_t taken = 0;
  for (; taken < found && spots[taken].Unchanged(); ++taken) spots[taken].Count(cost);
  stats_.invalidations[static_cast<size_t>(Granularity::kPageOrDevice)] += taken;
  return taken;
}

SinkCompletion SessionImpl::Apply(std::span<const vtd::RawDescriptor> descriptors,
                                  std::span<const DeviceTouch> touches, TableClaim claim) {
  absl::MutexLock lock(&mu_);
  SinkCompletion done;
  LookAgain();
  const uint64_t stale_before = stats_.stale_dma_hits;
  uint64_t small_steps = 0;  // each too short to be a slice of its own
  const auto step = [&] {
    if (++small_steps % kStepsPerSlice == 0 && config_.yield) config_.yield();
  };
  for (const DeviceTouch& touch : touches) {
    step();
    DmaLocked(touch.source_id, touch.iova, touch.write, {}, /*size_bytes=*/1, /*probe=*/true);
  }
  done.stale_dma_hits = stats_.stale_dma_hits - stale_before;
  const PullCounts pulled_before = pulled_ == nullptr ? PullCounts{} : pulled_->counts();
  const auto finished_one = [&] {
    ++done.cost.descriptors;
    ++done.consumed;
    step();
  };
  while (done.consumed < descriptors.size() && done.error == vtd::Iqei::kNone) {
    const auto rest = descriptors.subspan(done.consumed);
    const auto next = rest.first(std::min(rest.size(), kReadAhead));
    const size_t unchanged = TakeUnchanged(next, done.cost);
    for (size_t i = 0; i < unchanged; ++i) finished_one();
    for (const vtd::RawDescriptor& raw : next.subspan(unchanged)) {
      const vtd::DecodeResult decoded = DecodeOne(raw);
      if (decoded.error != vtd::Iqei::kNone) {
        done.error = decoded.error;
        break;
      }
      ApplyOne(raw, decoded.descriptor, claim, done.cost);
      finished_one();
    }
  }
  ChargePulls(pulled_before, done.cost);
  if (claim == TableClaim::kSettled && done.error == vtd::Iqei::kNone &&
      WantsVerify(ShadowTable::kAll)) {
    if (config_.before_long) config_.before_long();
    done.cost.shadow_mismatches += VerifyAllLocked(done.cost);
  }
  stats_.cost += done.cost;
  for (const auto& shadow : shadows_) done.refused_pages += shadow->refused().page_count();
  done.pinned_pages = pins_.pages();
  done.faults = std::exchange(faults_, {});
  return done;
}

}  // namespace viommu
