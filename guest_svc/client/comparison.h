// The result of `viommu compare`: rows, and what they say in plain sentences.
#ifndef VIOMMU_GUEST_SVC_CLIENT_COMPARISON_H_
#define VIOMMU_GUEST_SVC_CLIENT_COMPARISON_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "guest_svc/client/output.h"
#include "viommu/v1/guest_service.pb.h"

namespace viommu::client {

struct CompareRow {
  std::string policy;
  std::string strategy;
  uint64_t live_pages = 0;
  uint32_t vcpus = 1;
  v1::WorkloadResult result;

  double PerUnmap(double total) const;
  double ns_per_unmap() const { return PerUnmap(result.modelled_ns_total()); }
  double entries_read_per_unmap() const;
  double entries_changed_per_unmap() const;
};

// What a sweep runs, and the part of it that one process runs.
struct ComparePlan {
  std::vector<std::string> policies;
  std::vector<std::string> strategies;
  std::vector<uint64_t> live_pages;  // ascending
  std::vector<uint64_t> vcpus;
  uint64_t ops = 0;  // of a workload
  uint64_t hz = 0;
  std::string map_sync;
  std::string hint;
  uint64_t shard = 0;  // runs the rows whose number modulo `shards` is this
  uint64_t shards = 1;
};

struct PlannedRow {
  std::string policy;
  std::string strategy;
  uint64_t live_pages = 0;
  uint64_t vcpus = 1;
};

// The rows of `plan`'s shard in the order they run: by vcpus, strategy, live pages, policy.
std::vector<PlannedRow> RowsOf(const ComparePlan& plan);

struct Comparison {
  std::string command;  // as typed
  std::string version;
  std::string input;  // name of the load
  uint64_t seed = 0;
  v1::CostPreset cost_preset;
  ComparePlan plan;
  std::vector<std::string> notes;  // what was overridden or set large, and why
  std::vector<CompareRow> rows;    // by vcpus, live pages, strategy, policy
};

// Where two policies cost the same under one strategy.
struct Crossover {
  uint64_t below = 0;  // measured live sizes on its two sides
  uint64_t above = 0;
  double live_pages = 0;  // by linear interpolation between them
  bool first_cheaper_below = false;
};

// The live set at which `first` and `second` swap places in modelled time per unmap; nullopt: one
// of them is cheaper at every measured size. With several, the first.
std::optional<Crossover> FindCrossover(const Comparison& comparison, const std::string& first,
                                       const std::string& second, const std::string& strategy,
                                       uint32_t vcpus);

// The answer in a sentence or two: which policy is cheapest up to which live set, by strategy, and
// how long the pages stay reachable that the cheapest ones have unmapped. Empty without rows.
std::string Verdict(const Comparison& comparison);

// Whole sentences: entries that `lazy` makes the hypervisor read per unmap as a multiple of
// `strict`, and where `lazy-single` and `strict` swap places. Says so when a policy was not run.
std::vector<std::string> Answer(const Comparison& comparison);

// The table that `compare` prints.
std::string ToTable(const Comparison& comparison);

// Sum over rows.
uint64_t ShadowMismatches(const Comparison& comparison);

}  // namespace viommu::client

#endif  // VIOMMU_GUEST_SVC_CLIENT_COMPARISON_H_
