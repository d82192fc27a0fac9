#include "tests/integration/history.h"

#include <algorithm>
#include <bit>
#include <map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace viommu {
namespace {

constexpr int64_t kNever = std::numeric_limits<int64_t>::max();
constexpr size_t kMaxViolations = 20;

// When a mapping was there for certain, and when it may have been.
struct Lifetime {
  uint32_t domain = 0;
  uint64_t mapping = 0;
  uint64_t first = 0;  // IOVAs [first, end)
  uint64_t end = 0;
  uint64_t guest_pa = 0;
  int64_t map_start = 0;
  int64_t map_end = 0;
  int64_t unmap_start = kNever;
  int64_t gone = kNever;       // by then no device reaches it any more
  int64_t failed_at = kNever;  // end of an unmap that left its invalidation outstanding

  bool Overlaps(uint64_t other_first, uint64_t other_end) const {
    return first < other_end && other_first < end;
  }
};

std::string Name(const Op& op) {
  static constexpr const char* kNames[] = {"map", "unmap", "write", "read"};
  return absl::StrFormat("%s of mapping %d (domain %d, iova 0x%x) at %d..%d ns",
                         kNames[static_cast<int>(op.kind)], op.mapping, op.domain, op.iova,
                         op.start_ns, op.end_ns);
}

bool Outstanding(absl::StatusCode code) {
  return code == absl::StatusCode::kDeadlineExceeded || code == absl::StatusCode::kUnavailable;
}

class Checker {
 public:
  explicit Checker(const History& history) : history_(history), ops_(history.ops) {
    std::sort(ops_.begin(), ops_.end(),
              [](const Op& a, const Op& b) { return a.start_ns < b.start_ns; });
  }

  std::vector<std::string> Run() {
    CheckOutages();
    BuildLifetimes();
    EndOutstanding();
    CheckReuse();
    CheckAccesses();
    return std::move(violations_);
  }
  std::vector<LiveMapping> Live() {
    BuildLifetimes();
    std::vector<LiveMapping> out;
    for (const auto& [id, life] : lives_) {
      if (life.unmap_start != kNever) continue;
      out.push_back({life.domain, life.mapping, life.first, life.end - life.first, life.guest_pa});
    }
    return out;
  }

 private:
  void Fail(std::string what) {
    if (violations_.size() < kMaxViolations) violations_.push_back(std::move(what));
  }

  // Maps, strict unmaps and accesses all need the hypervisor.
  void CheckOutages() {
    for (const Op& op : ops_) {
      if (op.code != absl::StatusCode::kOk) continue;
      for (const Outage& outage : history_.outages) {
        if (op.start_ns >= outage.dead_ns && op.end_ns <= outage.restarted_ns) {
          Fail(absl::StrCat(Name(op), " was reported done while there was no hypervisor"));
        }
      }
    }
  }

  void BuildLifetimes() {
    for (const Op& op : ops_) {
      if (op.kind == Op::Kind::kMap) {
        if (op.code == absl::StatusCode::kOk) {
          if (lives_.contains(op.mapping)) Fail(absl::StrCat(Name(op), " was answered twice"));
          Lifetime& life = lives_[op.mapping];
          life.domain = op.domain;
          life.mapping = op.mapping;
          life.first = op.iova;
          life.end = op.iova + op.size_bytes;
          life.guest_pa = op.guest_pa;
          life.map_start = op.start_ns;
          life.map_end = op.end_ns;
          done_.push_back({op.start_ns, op.end_ns});
        } else if (!op.nothing_done && Outstanding(op.code)) {
          // Its entries were in the tables for a while, at an IOVA that nobody was told.
          unfinished_maps_.emplace_back(op.domain, op.start_ns);
        }
        continue;
      }
      const auto found = lives_.find(op.mapping);
      if (found == lives_.end()) {
        Fail(absl::StrCat(Name(op), " names a mapping that was never made"));
        continue;
      }
      Lifetime& life = found->second;
      if (op.kind == Op::Kind::kUnmap) {
        BuildUnmap(op, life);
      }
    }
  }

  void BuildUnmap(const Op& op, Lifetime& life) {
    if (op.nothing_done) return;
    if (life.unmap_start != kNever) {
      if (op.code == absl::StatusCode::kOk) Fail(absl::StrCat(Name(op), " ran a second time"));
      return;
    }
    if (op.code == absl::StatusCode::kOk) {
      life.unmap_start = op.start_ns;
      life.gone = op.end_ns;
      done_.push_back({op.start_ns, op.end_ns});
    } else if (Outstanding(op.code)) {
      life.unmap_start = op.start_ns;
      life.failed_at = op.end_ns;
    } else if (op.code == absl::StatusCode::kNotFound) {
      Fail(absl::StrCat(Name(op), ": the mapping was lost, nobody had unmapped it"));
      life.unmap_start = op.start_ns;
      life.gone = op.end_ns;
    } else {
      Fail(absl::StrCat(Name(op), " ended in ", absl::StatusCodeToString(op.code)));
    }
  }

  // The queue completes in order: what was asked for after the failure and is done vouches for the
  // invalidation that was outstanding.
  void EndOutstanding() {
    for (auto& [id, life] : lives_) {
      if (life.failed_at == kNever) continue;
      for (const auto& [start, end] : done_) {
        if (start >= life.failed_at) life.gone = std::min(life.gone, end);
      }
    }
  }

  void CheckReuse() {
    std::map<uint32_t, std::vector<const Lifetime*>> by_domain;
    for (const auto& [id, life] : lives_) by_domain[life.domain].push_back(&life);
    for (auto& [domain, lives] : by_domain) {
      std::sort(lives.begin(), lives.end(),
                [](const Lifetime* a, const Lifetime* b) { return a->first < b->first; });
      for (size_t i = 0; i < lives.size(); ++i) {
        for (size_t j = i + 1; j < lives.size() && lives[j]->first < lives[i]->end; ++j) {
          const bool in_order = lives[i]->map_start <= lives[j]->map_start;
          CheckPair(*lives[in_order ? i : j], *lives[in_order ? j : i]);
        }
      }
    }
  }

  // Both had a part of the same IOVAs; `older` was asked for first.
  void CheckPair(const Lifetime& older, const Lifetime& newer) {
    const auto both = [&] {
      return absl::StrFormat("iova 0x%x of domain %d: mapping %d (mapped by %d ns)",
                             std::max(older.first, newer.first), older.domain, older.mapping,
                             older.map_end);
    };
    // Some moment in which both were certainly held.
    if (std::max(older.map_end, newer.map_end) < std::min(older.unmap_start, newer.unmap_start)) {
      return Fail(absl::StrFormat("%s was still there when mapping %d got it by %d ns", both(),
                                  newer.mapping, newer.map_end));
    }
    // The answer came before anybody had asked for the unmap.
    if (newer.map_start >= older.map_end && newer.map_end <= older.unmap_start) {
      return Fail(absl::StrFormat("%s was still there when mapping %d got it by %d ns", both(),
                                  newer.mapping, newer.map_end));
    }
    // The unmap failed with its invalidation outstanding. Until some later invalidation is done,
    // which shows as another operation done, the IOVA must rest. `newer` cannot vouch for itself:
    // it got its IOVA before its own invalidation was sent.
    if (older.failed_at == kNever || newer.map_start < older.failed_at) return;
    const bool one_done = std::any_of(done_.begin(), done_.end(), [&](const auto& done) {
      const bool own = done.first == newer.map_start && done.second == newer.map_end;
      return !own && done.second > older.failed_at && done.first < newer.map_end;
    });
    if (!one_done) {
      Fail(absl::StrFormat(
          "%s: its unmap failed at %d ns, nothing was completed since, and mapping %d got it at "
          "%d..%d ns",
          both(), older.failed_at, newer.mapping, newer.map_start, newer.map_end));
    }
  }

  void CheckAccesses() {
    for (const Op& op : ops_) {
      if (op.kind != Op::Kind::kRead && op.kind != Op::Kind::kWrite) continue;
      if (op.code != absl::StatusCode::kOk) continue;
      const auto own = lives_.find(op.mapping);
      if (own == lives_.end()) continue;  // said already
      const Lifetime& life = own->second;
      const bool surely_live = op.start_ns >= life.map_end && op.end_ns <= life.unmap_start;
      if (op.fault_reason != 0) {
        if (surely_live) {
          Fail(absl::StrFormat("%s was blocked (reason 0x%x), though the mapping was complete",
                               Name(op), op.fault_reason));
        }
        continue;
      }
      if (surely_live && op.kind == Op::Kind::kRead) CheckData(op);
      if (op.start_ns >= life.gone && !AnotherMayBeThere(op)) {
        Fail(absl::StrCat(Name(op), " reached memory after its unmap was reported complete at ",
                          life.gone, " ns"));
      }
    }
  }

  // Owners do one thing at a time: it must be what was written last, or what a write without a
  // clear answer since then may have left.
  void CheckData(const Op& read) {
    for (auto at =
             std::lower_bound(ops_.begin(), ops_.end(), read.start_ns,
                              [](const Op&op, int64_t start_ns) { return op.start_ns < start_ns; });
         at != ops_.begin();) {
      --at;
      if (at->mapping != read.mapping) continue;
      if (at->kind == Op::Kind::kMap) return;  // nothing was written to it
      if (at->kind != Op::Kind::kWrite || at->fault_reason != 0) continue;
      if (at->data == read.data) return;
      if (at->code != absl::StatusCode::kOk) continue;
      return Fail(absl::StrFormat("%s got 0x%x, not the 0x%x last written", Name(read), read.data,
                                  at->data));
    }
  }

  bool AnotherMayBeThere(const Op& op) const {
    for (const auto& [id, life] : lives_) {
      if (id == op.mapping || life.domain != op.domain) continue;
      if (!life.Overlaps(op.iova, op.iova + std::max<uint64_t>(op.size_bytes, 1))) continue;
      if (life.map_start <= op.end_ns && life.gone >= op.start_ns) return true;
    }
    return std::any_of(unfinished_maps_.begin(), unfinished_maps_.end(), [&](const auto& map) {
      return map.first == op.domain && map.second <= op.end_ns;
    });
  }

  const History& history_;
  std::vector<Op> ops_;
  std::map<uint64_t, Lifetime> lives_;
  std::vector<std::pair<int64_t, int64_t>> done_;  // maps and unmaps that were completed
  std::vector<std::pair<uint32_t, int64_t>> unfinished_maps_;  // domain, start
  std::vector<std::string> violations_;
};

}  // namespace

std::vector<std::string> CheckHistory(const History& history) { return Checker(history).Run(); }

std::vector<LiveMapping> LiveMappings(const History& history) { return Checker(history).Live(); }

std::vector<std::string> CheckTotals(const History& history, const GuestTotals& totals) {
  GuestTotals seen;
  for (const Op& op : history.ops) {
    if (op.code != absl::StatusCode::kOk) continue;
    seen.maps += op.kind == Op::Kind::kMap ? 1 : 0;
    seen.unmaps += op.kind == Op::Kind::kUnmap ? 1 : 0;
  }
  for (const LiveMapping& live : LiveMappings(history)) {
    seen.iova_allocated_bytes += std::bit_ceil(live.size_bytes);  // as the allocator rounds
  }
  std::vector<std::string> out;
  const auto compare = [&](const char* what, uint64_t recorded, uint64_t counted) {
    if (recorded == counted) return;
    out.push_back(absl::StrCat(what, ": ", recorded, " in the record, ", counted, " in the guest"));
  };
  compare("maps done", seen.maps, totals.maps);
  compare("unmaps done", seen.unmaps, totals.unmaps);
  compare("IOVA bytes held", seen.iova_allocated_bytes, totals.iova_allocated_bytes);
  return out;
}

}  // namespace viommu
