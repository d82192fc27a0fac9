// How `adaptive` decides, flush by flush, between page-selective descriptors and one domain flush.
#ifndef VIOMMU_IOMMU_CORE_DMA_FLUSH_CHOOSER_H_
#define VIOMMU_IOMMU_CORE_DMA_FLUSH_CHOOSER_H_

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <optional>

#include "iommu_core/base/cost_model.h"

namespace viommu {

// Knows nothing of the hypervisor but the prices that completions report. What both kinds pay
// alike for the same ranges (container calls, pinning) is left out.
class FlushChooser {
 public:
  enum class Kind { kPages, kDomain };
  // A flush that is due.
  struct Work {
    uint64_t pieces = 0;       // naturally aligned ranges
    uint64_t pages = 0;        // in them
    uint64_t submissions = 0;  // that it takes to send them as page-selective descriptors
    uint64_t table_pages = 0;  // of the domain
  };

  // The cheaper kind by prediction. It changes its mind for a gain of kHysteresis only, and now and
  // then takes the other kind to learn its price anew: when that is predicted to cost no more than
  // kProbeShare of what was spent since the other kind ran last. A flush predicted to take longer
  // than `time_limit_ns` is chosen only if the other takes longer still.
  Kind Choose(const Work& work, double time_limit_ns);

  // What a flush cost. `pieces` is 0 for a domain flush that is not a flush of the queue: it
  // teaches the price of the walk only.
  void LearnPages(const Work& work, const ModelledCost& price);
  void LearnDomain(const Work& work, const ModelledCost& price);

  // Nanoseconds; 0 stands for what was never seen, so an untried kind looks cheap and is tried.
  double Predict(Kind kind, const Work& work) const;

  static constexpr double kHysteresis = 1.05;
  static constexpr double kProbeShare = 1.0 / 64;

 private:
  // A running price: half of it is the last sample.
  class Price {
   public:
    void Add(double sample) {
      value_ = known_ ? (value_ + sample) / 2 : sample;
      known_ = true;
    }
    double value() const { return value_; }
    bool known() const { return known_; }

   private:
    double value_ = 0;
    bool known_ = false;
  };
  // A price that grows with the pieces or with the pages of a flush: a hypervisor pays for each
  // descriptor or for each mapping. The guess that was off less lately counts.
  class Rate {
   public:
    void Add(const Work& work, double ns) {
      if (per_page_.known()) {
        piece_error_.Add(std::abs(per_piece_.value() * static_cast<double>(work.pieces) - ns));
        page_error_.Add(std::abs(per_page_.value() * static_cast<double>(work.pages) - ns));
      }
      per_piece_.Add(ns / static_cast<double>(work.pieces));
      per_page_.Add(ns / static_cast<double>(work.pages));
    }
    double Predict(const Work& work) const {
      return piece_error_.value() < page_error_.value()
                 ? per_piece_.value() * static_cast<double>(work.pieces)
                 : per_page_.value() * static_cast<double>(work.pages);
    }
    bool known() const { return per_page_.known(); }

   private:
    Price per_piece_;
    Price per_page_;
    Price piece_error_;
    Price page_error_;
  };
  // What depends on how much is flushed: a hypervisor may merge much of it or nothing. Pieces are
  // counted in powers of two.
  struct SizeClass {
    Rate by_pages;                  // walk and hardware of page-selective descriptors
    Rate domain_hardware;           // hardware of a domain flush
    double spent_since_pages = 0;   // by domain flushes since the last page-selective one
    double spent_since_domain = 0;  // the other way round
    std::optional<Kind> kind;       // the choice in force
  };
  static constexpr size_t kSizeClasses = 16;

  static size_t ClassOf(const Work& work) {
    return std::min<size_t>(std::bit_width(work.pieces), kSizeClasses - 1);
  }
  // By the class of the work, or by the nearest one that knows; the smaller on a tie.
  double PredictRate(Rate SizeClass::*rate, const Work& work) const;

  Price submission_;           // exit and queue build of one page-selective submission
  Price domain_submission_;    // of all submissions of one domain flush
  Price walk_per_table_page_;  // of a domain flush
  std::array<SizeClass, kSizeClasses> classes_;
};

}  // namespace viommu

#endif  // VIOMMU_IOMMU_CORE_DMA_FLUSH_CHOOSER_H_
