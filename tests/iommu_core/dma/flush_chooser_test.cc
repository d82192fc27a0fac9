#include "iommu_core/dma/flush_chooser.h"

#include <gtest/gtest.h>

#include <algorithm>

namespace viommu {
namespace {

using Kind = FlushChooser::Kind;
constexpr double kNoLimit = 1e12;

// A hypervisor with a price for each part; a flush costs what it says.
struct Hypervisor {
  double submission_ns = 7600;
  double table_page_ns = 0;
  double piece_ns = 0;  // page-selective
  double page_ns = 0;   // either way
  double PriceOf(Kind kind, const FlushChooser::Work& work) const {
    return Run(kind, work).total();
  }
  ModelledCost Run(Kind kind, const FlushChooser::Work& work) const {
    ModelledCost price;
    price.hw_ns = page_ns * static_cast<double>(work.pages);
    if (kind == Kind::kPages) {
      price.exit_ns = submission_ns * static_cast<double>(work.submissions);
      price.walk_ns = piece_ns * static_cast<double>(work.pieces);
    } else {
      price.exit_ns = submission_ns;
      price.walk_ns = table_page_ns * static_cast<double>(work.table_pages);
    }
    return price;
  }
};

Kind Step(FlushChooser& chooser, const Hypervisor& hypervisor, const FlushChooser::Work& work,
          double limit_ns = kNoLimit) {
  const Kind kind = chooser.Choose(work, limit_ns);
  if (kind == Kind::kPages) {
    chooser.LearnPages(work, hypervisor.Run(kind, work));
  } else {
    chooser.LearnDomain(work, hypervisor.Run(kind, work));
  }
  return kind;
}

int DomainFlushes(FlushChooser& chooser, const Hypervisor& hypervisor,
                  const FlushChooser::Work& work, int flushes) {
  int domain = 0;
  for (int i = 0; i < flushes; ++i) domain += Step(chooser, hypervisor, work) == Kind::kDomain;
  return domain;
}

constexpr FlushChooser::Work kWork{
    .pieces = 200, .pages = 255, .submissions = 1, .table_pages = 64};

TEST(FlushChooserTest, SettlesOnTheCheaperKind) {
  FlushChooser dear;
  EXPECT_LE(DomainFlushes(dear, {.table_page_ns = 50'000, .piece_ns = 100}, kWork, 100), 1);
  FlushChooser cheap;
  EXPECT_GE(DomainFlushes(cheap, {.table_page_ns = 10, .piece_ns = 100}, kWork, 100), 99);
}

// Pieces of one page or of many: what a hypervisor charges for mappings is no price of descriptors.
TEST(FlushChooserTest, PiecesOfAnotherSizeDoNotMislead) {
  const Hypervisor hypervisor{.table_page_ns = 500, .piece_ns = 5, .page_ns = 700};
  FlushChooser chooser;
  int domain = 0;
  for (uint64_t i = 0; i < 200; ++i) {
    FlushChooser::Work work = kWork;
    work.pieces = 9 + i % 50;
    domain += Step(chooser, hypervisor, work) == Kind::kDomain;
  }
  EXPECT_LE(domain, 4);  // 32,000 ns of walk against 45 to 290
}

TEST(FlushChooserTest, KeepsItsChoiceForASmallGain) {
  FlushChooser chooser;
  // 7,600 + 200 * 64 = 20,400 page-selectively; the domain flush is 2 % dearer, then 2 % cheaper.
  Hypervisor hypervisor{.table_page_ns = (20'400 * 1.02 - 7'600) / 64, .piece_ns = 64};
  DomainFlushes(chooser, hypervisor, kWork, 10);
  hypervisor.table_page_ns = (20'400 * 0.98 - 7'600) / 64;
  chooser.LearnDomain({.table_pages = 64}, hypervisor.Run(Kind::kDomain, kWork));
  chooser.LearnDomain({.table_pages = 64}, hypervisor.Run(Kind::kDomain, kWork));
  EXPECT_EQ(chooser.Choose(kWork, kNoLimit), Kind::kPages);
  // A tenth cheaper is worth it.
  hypervisor.table_page_ns = (20'400 * 0.9 - 7'600) / 64;
  for (int i = 0; i < 8; ++i) {
    chooser.LearnDomain({.table_pages = 64}, hypervisor.Run(Kind::kDomain, kWork));
  }
  EXPECT_EQ(chooser.Choose(kWork, kNoLimit), Kind::kDomain);
}

// The walk becomes cheap while nothing but page-selective flushes run: a probe finds out, and the
// probes before it cost little.
TEST(FlushChooserTest, FindsOutThatTheOtherKindBecameCheapAndPaysLittleForLooking) {
  FlushChooser chooser;
  Hypervisor hypervisor{.table_page_ns = 1'000, .piece_ns = 100};
  double paid = 0;
  double best = 0;
  for (int i = 0; i < 2'000; ++i) {
    paid += hypervisor.PriceOf(Step(chooser, hypervisor, kWork), kWork);
    best += hypervisor.PriceOf(Kind::kPages, kWork);
  }
  EXPECT_LE(paid, best * (1 + 2 * FlushChooser::kProbeShare));
  hypervisor.table_page_ns = 10;
  EXPECT_GT(DomainFlushes(chooser, hypervisor, kWork, 2'000), 1'000);
  hypervisor.table_page_ns = 1'000;  // and back: the next flush already tells
  EXPECT_LT(DomainFlushes(chooser, hypervisor, kWork, 2'000), 50);
}

// Whatever the prices, and however they change: never far from the better of the two.
TEST(FlushChooserTest, NeverFarFromTheBetterKind) {
  for (const double table_page_ns : {1.0, 30.0, 100.0, 300.0, 1'000.0, 100'000.0}) {
    for (const double piece_ns : {0.0, 30.0, 100.0, 700.0}) {
      for (const double page_ns : {0.0, 300.0}) {
        const Hypervisor hypervisor{
            .table_page_ns = table_page_ns, .piece_ns = piece_ns, .page_ns = page_ns};
        FlushChooser chooser;
        // One visit to each kind teaches it.
        for (int i = 0; i < 4; ++i) Step(chooser, hypervisor, kWork);
        double paid = 0;
        double pages = 0;
        double domain = 0;
        for (int i = 0; i < 1'000; ++i) {
          paid += hypervisor.PriceOf(Step(chooser, hypervisor, kWork), kWork);
          pages += hypervisor.PriceOf(Kind::kPages, kWork);
          domain += hypervisor.PriceOf(Kind::kDomain, kWork);
        }
        EXPECT_LE(paid, 1.08 * std::min(pages, domain))
            << table_page_ns << " " << piece_ns << " " << page_ns;
      }
    }
  }
}

TEST(FlushChooserTest, AFlushThatWouldTakeTooLongGivesWayToAShorterOne) {
  FlushChooser chooser;
  const Hypervisor hypervisor{.table_page_ns = 50'000, .piece_ns = 100};
  for (int i = 0; i < 4; ++i) Step(chooser, hypervisor, kWork);
  // No probe of 3.2 ms either, however much was spent.
  for (int i = 0; i < 20'000; ++i) {
    ASSERT_EQ(Step(chooser, hypervisor, kWork, 1e6), Kind::kPages) << i;
  }
}

}  // namespace
}  // namespace viommu
