// Random guests: tables edited at every level, devices attached, moved and detached, invalidations
// of every granularity. After each, every page that was invalidated since it last changed is mapped
// as the reference walk says (VT-d 6.5, caching mode 6.1), under every strategy; and no page that
// is mapped alike before and after an invalidation was ever missing on the way.
#include <cstdlib>
#include <map>
#include <random>
#include <string>

#include "absl/strings/str_format.h"
#include "gtest/gtest.h"
#include "iommu_core/shadow/mapping_runs.h"
#include "tests/iommu_core/shadow/test_guest.h"

namespace viommu {
namespace {

constexpr uint64_t kDefaultSteps = 300;
constexpr uint64_t kLimit = uint64_t{1} << 48;

uint64_t Steps() {
  const char* text = std::getenv("VIOMMU_LONG_STEPS");
  return text == nullptr ? kDefaultSteps : std::strtoull(text, nullptr, 10);
}

struct Tree {
  PhysAddr table;
  int levels;
  uint16_t did;
  std::vector<LeafMapping> flat;  // at the last step
  RangeSet dirty;                 // changed since the last invalidation that covered it
};

class History {
 public:
  History(uint64_t seed, int host_page_shift, bool subtree_tricks)
      : random_(seed), tricks_(subtree_tricks), guest_(uint64_t{1} << 30) {
    config_.host_page_shift = host_page_shift;
    // Check() compares everything itself; the session's own oracle beside it doubles the time.
    config_.verify = std::getenv("VIOMMU_LONG_STEPS") == nullptr ? Verify::kFull : Verify::kSampled;
    config_.dma_entry_limit = uint64_t{1} << 20;
    for (const Strategy s :
         {Strategy::kWalk, Strategy::kWalkShared, Strategy::kSnapshot, Strategy::kDirtyLog}) {
      sessions_.push_back(MakeSession(guest_, s, config_));
    }
    for (int i = 0; i < 3; ++i) trees_.push_back(NewTree(static_cast<uint16_t>(i)));
    for (const SourceId sid : {MakeSourceId(0, 3, 0), MakeSourceId(0, 3, 1), MakeSourceId(0, 4, 0),
                               MakeSourceId(5, 0, 0)}) {
      devices_[sid] = -1;
      for (auto& session : sessions_) {
        EXPECT_TRUE(session->AddDevice(sid, false).ok());
        SessionImpl* s = session.get();
        session->ObserveStoresForTest([this, s] { CheckStable(*s); });
      }
    }
  }

  // False once something is wrong; the message says what.
  bool Run(uint64_t steps) {
    for (step_ = 0; step_ < steps; ++step_) {
      Edit();
      if (Chance(3)) Edit();
      if (Chance(12)) EditContext();
      Invalidate();
      if (::testing::Test::HasFailure()) return false;
    }
    return true;
  }

 private:
  uint64_t Below(uint64_t n) { return random_() % n; }
  bool Chance(uint64_t one_in) { return Below(one_in) == 0; }

  Tree NewTree(uint16_t did) {
    Tree tree;
    tree.levels = Chance(2) ? 3 : 4;
    tree.table = guest_.NewPage();
    tree.did = did;
    return tree;
  }

  // Few places, so that histories meet: two regions of 1 GiB, few spans of 2 MiB, few pages.
  Iova Place(const Tree& tree) {
    uint64_t iova = Below(2) << 30 | Below(3) << 21 | Below(6) << 12;
    if (Chance(8)) iova |= Below(512) << 12;
    if (tree.levels == 4 && Chance(4)) iova |= uint64_t{1} << 40;
    if (tree.levels == 3 && Chance(6)) iova |= uint64_t{1} << 38;
    return Iova(iova);
  }

  std::vector<LeafMapping> Flatten(const Tree& tree) {
    const Walker walker(guest_.memory(), {config_.guest_caps, config_.guest_haw_bits});
    MappingRuns runs({Iova(0), Iova(kLimit)});
    EXPECT_TRUE(walker
                    .ForEachLeaf(tree.table, tree.levels, {Iova(0), Iova(kLimit)}, ~uint64_t{0},
                                 [&](const LeafMapping& leaf) { runs.Append(leaf); })
                    .ok());
    return runs.Take();
  }

  void Edit() {
    EditEntry(trees_[Below(trees_.size())]);
    for (Tree& each : trees_) NoteChanges(each);
  }

  void EditEntry(Tree& tree) {
    const Iova iova = Place(tree);
    // A 1 GiB leaf is 2^18 entries where the host has 4 KiB pages: rare.
    const int level = Chance(config_.host_page_shift == 12 ? 150 : 12) ? 3 : Chance(3) ? 2 : 1;
    const PhysAddr slot = guest_.Slot(tree.table, tree.levels, iova, level);
    const uint64_t span = vtd::LevelSize(level);
    // Targets that often adjoin, so that split and merge keep pages unchanged.
    const uint64_t same = AlignDown(iova.value() & 0x3fffffff, span);
    const uint64_t target = Chance(2) ? same : AlignDown(Below(uint64_t{1} << 30), span);
    const uint64_t permissions = 1 + Below(3);
    const uint64_t large = level > 1 ? kLarge : 0;
    switch (Below(tricks_ ? 12 : 8)) {
      case 0:
      case 1:
      case 2:
        guest_.Put(slot, target | (Chance(3) ? permissions : kRw) | large);
        break;
      case 3:
      case 4:
        guest_.Put(slot, 0);
        break;
      case 5: {  // another page or permission for the leaf that is there
        const uint64_t old = guest_.Get(slot);
        if (level > 1 && (old & kLarge) == 0) return;
        guest_.Put(slot, old ^ (Chance(2) ? span : 1));
        break;
      }
      case 6: {  // a table with the pages of the leaf that stood there
        if (level == 1) return;
        const uint64_t old = guest_.Get(slot);
        if ((old & 3) == 0 || (old & kLarge) == 0) return;
        const PhysAddr table = guest_.NewPage();
        const uint64_t piece = vtd::LevelSize(level - 1);
        for (uint64_t i = 0; i < 512; ++i) {
          if (Chance(100)) continue;
          guest_.Put(table + 8 * i,
                     ((old & 0xfffffffff003) + piece * i) | (level > 2 ? kLarge : 0));
        }
        guest_.Put(slot, vtd::SecondStagePte::Table(table).raw);
        break;
      }
      case 7:  // not present, but not zero (9.9: the rest is ignored)
        guest_.Put(slot, target | uint64_t{0x7f} << 52 | uint64_t{1} << 50);
        break;
      case 8:  // present with a reserved bit: a request would fault
        guest_.Put(slot, target | kRw | large | uint64_t{1} << 50);
        break;
      case 9:  // a table that is no memory
        if (level == 1) return;
        guest_.Put(slot, (uint64_t{1} << 45) | kRw);
        break;
      case 10:  // fewer permissions above
        if (level == 1) return;
        guest_.Put(slot, guest_.Get(slot) ^ (Chance(2) ? 1 : 2));
        break;
      case 11: {  // an older table of the same tree, or another tree's
        if (level != 2) return;
        const Tree& other = trees_[Below(trees_.size())];
        const uint64_t entry = guest_.Get(guest_.Slot(other.table, other.levels, Place(other), 2));
        if ((entry & kLarge) == 0) guest_.Put(slot, entry);
        break;
      }
    }
  }

  void NoteChanges(Tree& tree) {
    std::vector<LeafMapping> now = Flatten(tree);
    // Differing pages, by the same comparison that everything here uses, run by run.
    size_t a = 0, b = 0;
    for (Iova at(0); at < Iova(kLimit);) {
      Iova next(kLimit);
      const auto view = [&](const std::vector<LeafMapping>& runs, size_t& i) {
        while (i < runs.size() && runs[i].iova + runs[i].size_bytes <= at) ++i;
        if (i == runs.size()) return std::make_pair(uint64_t{0}, Access{});
        if (runs[i].iova > at) {
          next = std::min(next, runs[i].iova);
          return std::make_pair(uint64_t{0}, Access{});
        }
        next = std::min(next, runs[i].iova + runs[i].size_bytes);
        return std::make_pair(runs[i].address.value() + (at - runs[i].iova), runs[i].access);
      };
      const auto old_view = view(tree.flat, a);
      const auto new_view = view(now, b);
      if (old_view != new_view) tree.dirty.Add({at, next});
      at = next;
    }
    tree.flat = std::move(now);
  }

  void EditContext() {
    auto it = devices_.begin();
    std::advance(it, static_cast<int64_t>(Below(devices_.size())));
    const SourceId sid = it->first;
    switch (Below(8)) {
      case 0:
        guest_.SetContext(sid, {});
        it->second = -1;
        break;
      case 1: {  // malformed: a reserved bit
        vtd::ContextEntry bad = EntryOf(trees_[0]);
        bad.hi |= uint64_t{1} << 40;
        guest_.SetContext(sid, bad);
        it->second = -1;
        break;
      }
      default:
        it->second = static_cast<int>(Below(trees_.size()));
        guest_.SetContext(sid, EntryOf(trees_[static_cast<size_t>(it->second)]));
    }
    // A tree may have come to use the page of context entries as one of its tables.
    for (Tree& each : trees_) NoteChanges(each);
    // VT-d 6.5.3.3: context cache, then IOTLB.
    std::vector<vtd::RawDescriptor> batch;
    switch (Below(4)) {
      case 0:
        batch = {ContextGlobal(), GlobalIotlb()};
        break;
      case 1:
        batch = {ContextDevice(sid, 3), GlobalIotlb()};
        break;
      case 2:
        for (const Tree& tree : trees_) batch.push_back(ContextDomain(tree.did));
        batch.push_back(GlobalIotlb());
        break;
      default:
        batch = {ContextDevice(sid), GlobalIotlb()};
    }
    Submit(batch);
    for (Tree& tree : trees_) tree.dirty.Clear();
    Check();
  }

  static vtd::ContextEntry EntryOf(const Tree& tree) {
    return vtd::ContextEntry::Make(tree.table, tree.levels, DomainId(tree.did));
  }

  void Invalidate() {
    Tree& tree = trees_[Below(trees_.size())];
    switch (Below(10)) {
      case 0:
        Submit({Dsi(tree.did)});
        tree.dirty.Clear();
        break;
      case 1:
        Submit({GlobalIotlb()});
        for (Tree& each : trees_) each.dirty.Clear();
        break;
      case 2:
        Submit({ContextGlobal()});  // all devices; a table without one is caught up when it has one
        for (Tree& each : trees_) {
          if (Users(each) != 0) each.dirty.Clear();
        }
        break;
      default: {
        const int am = Chance(4) ? static_cast<int>(Below(19)) : 0;
        // The lowest range that is dirty, mostly, as a driver would.
        Iova at = tree.dirty.empty() || Chance(3) ? Place(tree) : tree.dirty.First().first;
        vtd::IotlbInvalidate d;
        d.address_mask = static_cast<uint8_t>(am);
        d.address = at;
        Submit({Psi(tree.did, at.value(), am)});
        tree.dirty.Erase(d.range());
      }
    }
    Check();
  }

  size_t Users(const Tree& tree) {
    size_t n = 0;
    for (const auto& [sid, index] : devices_) {
      if (index >= 0 && trees_[static_cast<size_t>(index)].did == tree.did) ++n;
    }
    return n;
  }

  void Submit(const std::vector<vtd::RawDescriptor>& batch) {
    for (auto& session : sessions_) {
      PickStable(*session);
      const SinkCompletion done = session->Apply(batch, {}, TableClaim::kQuiet);
      EXPECT_EQ(done.consumed, batch.size());
      EXPECT_EQ(done.cost.shadow_mismatches, 0u) << "step " << step_;
      stable_.clear();
    }
  }

  // Pages that are mapped alike in the shadow now and in the tables that the sync will read.
  void PickStable(SessionImpl& session) {
    stable_.clear();
    for (const auto& [sid, index] : devices_) {
      if (index < 0) continue;
      const Tree& tree = trees_[static_cast<size_t>(index)];
      for (int i = 0; i < 6; ++i) {
        Iova iova = Place(tree);
        if (Chance(2)) iova = iova + (Below(512) << 12);
        const LeafMapping page = session.HostPageForTest(sid, iova);
        if (!page.access.any()) continue;
        const Walker walker(guest_.memory(), {config_.guest_caps, config_.guest_haw_bits});
        const Translation now = walker.Translate(guest_.root(), sid, page.iova, Access{});
        if (now.reason == vtd::FaultReason::kNone && now.address == page.address &&
            now.access == page.access) {
          stable_.push_back({sid, page});
        }
      }
    }
  }

  void CheckStable(SessionImpl& session) {
    for (const auto& [sid, page] : stable_) {
      const LeafMapping now = session.HostPageForTest(sid, page.iova);
      ASSERT_TRUE(now.access == page.access && now.address == page.address)
          << absl::StrFormat("step %d: unchanged page 0x%x of device 0x%x went missing", step_,
                             page.iova.value(), sid.value());
    }
  }

  void Check() {
    for (const auto& [sid, index] : devices_) {
      std::vector<LeafMapping> want;
      std::vector<IovaRange> dirty;
      if (index >= 0) {
        want = trees_[static_cast<size_t>(index)].flat;
        dirty = trees_[static_cast<size_t>(index)].dirty.Within({Iova(0), Iova(kLimit)});
      }
      for (auto& session : sessions_) {
        const auto have = session->FlattenShadow(sid);
        ASSERT_TRUE(have.ok());
        const RunComparison compared =
            CompareRuns({Iova(0), Iova(kLimit)}, *have, want, want, dirty);
        ASSERT_EQ(compared.differing_pages, 0u) << "step " << step_ << " device " << sid.value()
                                                << " session " << (&session - sessions_.data());
      }
    }
  }

  std::mt19937_64 random_;
  const bool tricks_;
  TestGuest guest_;
  SessionConfig config_;
  std::vector<std::unique_ptr<SessionImpl>> sessions_;
  std::vector<Tree> trees_;
  std::map<SourceId, int> devices_;  // index of its tree, -1: none
  std::vector<std::pair<SourceId, LeafMapping>> stable_;
  uint64_t step_ = 0;
};

class RandomHistory : public ::testing::TestWithParam<std::tuple<int, int>> {};

TEST_P(RandomHistory, EveryStrategyEndsInTheReferenceFlattening) {
  const auto [seed, shift] = GetParam();
  History history(static_cast<uint64_t>(seed), shift, /*subtree_tricks=*/seed % 2 == 1);
  history.Run(Steps());
}

INSTANTIATE_TEST_SUITE_P(Seeds, RandomHistory,
                         ::testing::Combine(::testing::Values(1, 2, 3), ::testing::Values(12, 21)),
                         [](const auto& p) {
                           return absl::StrFormat("Seed%dHostPageShift%d", std::get<0>(p.param),
                                                  std::get<1>(p.param));
                         });

}  // namespace
}  // namespace viommu
