#include "iommu_core/dma/flush_chooser.h"

namespace viommu {

double FlushChooser::PredictRate(Rate SizeClass::*rate, const Work& work) const {
  const size_t mine = ClassOf(work);
  for (size_t distance = 0; distance < kSizeClasses; ++distance) {
    if (distance <= mine && (classes_[mine - distance].*rate).known()) {
      return (classes_[mine - distance].*rate).Predict(work);
    }
    if (mine + distance < kSizeClasses && (classes_[mine + distance].*rate).known()) {
      return (classes_[mine + distance].*rate).Predict(work);
    }
  }
  return 0;
}

double FlushChooser::Predict(Kind kind, const Work& work) const {
  if (kind == Kind::kPages) {
    // Before the first batch its submissions are priced as a domain flush's.
    const double submission =
        submission_.known() ? submission_.value() : domain_submission_.value();
    return static_cast<double>(work.submissions) * submission +
           PredictRate(&SizeClass::by_pages, work);
  }
  return domain_submission_.value() +
         static_cast<double>(work.table_pages) * walk_per_table_page_.value() +
         PredictRate(&SizeClass::domain_hardware, work);
}

FlushChooser::Kind FlushChooser::Choose(const Work& work, double time_limit_ns) {
  const double pages = Predict(Kind::kPages, work);
  const double domain = Predict(Kind::kDomain, work);
  SizeClass& mine = classes_[ClassOf(work)];
  if (!mine.kind) {
    mine.kind = domain < pages ? Kind::kDomain : Kind::kPages;
  } else if (*mine.kind == Kind::kDomain) {
    if (pages * kHysteresis < domain) mine.kind = Kind::kPages;
  } else {
    if (domain * kHysteresis < pages) mine.kind = Kind::kDomain;
  }
  const bool by_domain = *mine.kind == Kind::kDomain;
  const double chosen = by_domain ? domain : pages;
  const double other = by_domain ? pages : domain;
  const Kind other_kind = by_domain ? Kind::kPages : Kind::kDomain;
  if (chosen > time_limit_ns) return other < chosen ? other_kind : *mine.kind;
  const double spent = by_domain ? mine.spent_since_pages : mine.spent_since_domain;
  if (other <= time_limit_ns && other <= kProbeShare * spent) return other_kind;
  return *mine.kind;
}

void FlushChooser::LearnPages(const Work& work, const ModelledCost& price) {
  if (work.pieces == 0 || work.submissions == 0) return;
  SizeClass& mine = classes_[ClassOf(work)];
  submission_.Add((price.guest_ns + price.exit_ns) / static_cast<double>(work.submissions));
  mine.by_pages.Add(work, price.walk_ns + price.hw_ns);
  mine.spent_since_pages = 0;
  mine.spent_since_domain += price.total();
}

void FlushChooser::LearnDomain(const Work& work, const ModelledCost& price) {
  domain_submission_.Add(price.guest_ns + price.exit_ns);
  walk_per_table_page_.Add(price.walk_ns /
                           static_cast<double>(std::max<uint64_t>(1, work.table_pages)));
  if (work.pieces == 0) return;
  SizeClass& mine = classes_[ClassOf(work)];
  mine.domain_hardware.Add(work, price.hw_ns);
  mine.spent_since_domain = 0;
  mine.spent_since_pages += price.total();
}

}  // namespace viommu
