// The strategies `snapshot` and `dirty-log`: a last-seen copy of each guest table page. What
// differs from the copy is visited, nothing else; the copies and the physical tables are the only
// record.
#ifndef VIOMMU_IOMMU_CORE_SHADOW_SNAPSHOT_SHADOW_H_
#define VIOMMU_IOMMU_CORE_SHADOW_SNAPSHOT_SHADOW_H_

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "iommu_core/shadow/entry_line.h"
#include "iommu_core/shadow/leaf_line.h"
#include "iommu_core/shadow/shadow.h"
#include "iommu_core/vtd/second_stage_pte.h"

namespace viommu {

class SnapshotShadow;

// One guest table as seen at one place of the address space. An entry of `last` is what the shadow
// reflects: a leaf there is mapped and charged; 0 stands for one that a limit refused, so that the
// next compare finds it again.
struct alignas(64) TableNode {
  std::array<uint64_t, vtd::kEntriesPerTable> last{};
  const uint64_t* page = nullptr;  // guest_table in place; null: read it entry by entry
  PhysAddr guest_table;
  uint64_t first = 0;  // lowest input address of its span
  SnapshotShadow* owner = nullptr;
  // Tables below, by slot; none at level 1.
  std::unique_ptr<std::array<std::unique_ptr<TableNode>, vtd::kEntriesPerTable>> below;
  uint64_t dirty_lines = 0;  // dirty-log: 64-byte lines written since they were compared
  uint8_t level = 1;
  uint8_t permissions = 0;   // AND of R and W above
  bool queued = false;       // dirty-log: stands in its shadow's list of dirty nodes ...
  uint32_t queue_index = 0;  // ... here
  // TableIndex: other nodes of the same guest table.
  TableNode* index_next = nullptr;
  TableNode* index_previous = nullptr;

  uint64_t slot_size() const { return vtd::LevelSize(level); }
  uint64_t SlotFirst(int slot) const { return first + slot_size() * static_cast<uint64_t>(slot); }
  uint64_t end() const { return SlotFirst(vtd::kEntriesPerTable); }
  IovaRange SlotRange(int slot) const { return MakeRange(Iova(SlotFirst(slot)), slot_size()); }
};

// Told where tables are, by a session whose guest keeps a dirty log.
class TableIndex {
 public:
  virtual ~TableIndex() = default;
  virtual void Add(TableNode& node) = 0;
  virtual void Remove(TableNode& node) = 0;
};

// The copies of all shadows of one session, with their cap.
struct NodePool {
  uint64_t max_nodes = 0;
  uint64_t nodes = 0;
};

class SnapshotShadow final : public Shadow {
 public:
  // `pool` outlives the shadow, `index` as well where given.
  static absl::StatusOr<std::unique_ptr<SnapshotShadow>> Create(const ShadowContext& context,
                                                                GuestTable guest_table,
                                                                DomainId host_domain,
                                                                NodePool& pool, TableIndex* index);
  ~SnapshotShadow() override;

  bool goes_by_log() const override { return index_ != nullptr && complete_; }
  const DmaAccount& account() const override { return account_; }
  bool FindSpot(IovaRange range, bool leaf_hint, Spot& spot) const override;
  uint64_t bookkeeping_bytes() const override { return node_bytes_ + extra_bytes(); }

  // dirty-log: `node` has lines to compare.
  void Enqueue(TableNode& node);

 private:
  struct Pass {
    Pass(IovaRange r, bool stop, SyncRun& s)
        : range(r), stop_at_refusal(stop), run(s), next(r.first.value()), give_up_end(r.end) {}

    IovaRange range;
    const bool stop_at_refusal;
    SyncRun& run;
    bool scarce = false;  // pages wait for room, so tables without a leaf get no copy
    uint64_t next;        // addresses below were looked at
    Iova give_up_end;     // from `next` to here nothing may stay if the pass ends early
    bool refused = false;
    bool uncopied = false;  // a table of the guest has no copy
  };
  struct Dropped {
    uint64_t entries = 0;
    uint64_t pages = 0;
  };
  // What was done to the physical leaf table behind a node of level 1. It is looked for when it is
  // first needed.
  struct LeafRun {
    uint64_t differing = 0;  // entries that are not as seen last
    uint64_t visited = 0;    // leaves of those
    uint64_t maps = 0;
    uint64_t unmaps = 0;
    int64_t peak = 0;  // of maps - unmaps
  };
  struct LeafCursor {
    // `= default` would clear all of it, what the empty optionals hold included.
    LeafCursor() {}  // NOLINT(modernize-use-equals-default)
    void Forget() {
      looked = false;
      writer.reset();
      run = {};
    }

    bool looked = false;
    std::optional<ShadowTable::LeafWriter> writer;
    std::optional<LeafRules> rules;  // where there is a writer
    LeafRun run;
  };
  struct DirtyNode {
    uint64_t order;   // upper levels first, then by address
    TableNode* node;  // null: freed meanwhile
  };

  SnapshotShadow(const ShadowContext& context, std::unique_ptr<ShadowTable> table,
                 GuestTable guest_table, DomainId host_domain, NodePool& pool, TableIndex* index);
  bool SyncRange(IovaRange range, bool stop_at_refusal, SyncRun& run) override;
  void ForgetAll(SyncCost& cost) override;

  // Null also where the table is copied from another host: what is read below may push it out.
  void PointAt(TableNode& node, PhysAddr guest_table) const {
    node.guest_table = guest_table;
    node.page = context_.pulled == nullptr ? context_.guest.PageInPlace(guest_table) : nullptr;
  }

  Halt SyncIdentity(Pass& pass);
  void SyncDirty(Pass& pass);
  Halt SyncLines(TableNode& node, uint64_t lines, Pass& pass);
  // Compares the part of a table that lies in the pass's range. `visit_all`: the copy is new while
  // older pages may stand in the physical table, so that absent entries are gone through as well.
  Halt SyncNode(TableNode& node, bool visit_all, Pass& pass);
  Halt SyncOneByOne(TableNode& node, int first, int end, bool visit_all, Pass& pass);
  Halt SyncInBulk(TableNode& node, const uint64_t* page, int first, int end, bool visit_all,
                  Pass& pass);
  // Remote guest memory: the tables below slots [first, end) that the pass is about to enter, in
  // one wait.
  void PrefetchBelow(const TableNode& node, int first, int end, bool visit_all,
                     const Pass& pass) const;
  // The entries of a line, one by one, within [first, end).
  enum Scope { kThisTable, kTablesBelow, kEverything };  // everything: visit_all
  Halt VisitLine(TableNode& node, int at, const EntryLine& now, int first, int end, Scope scope,
                 Pass& pass);
  void PrefetchLines(const TableNode& node);

  // snapshot_leaf.cc: 4K entries by the line and by the table. These end with the same tables and
  // the same counts as entry by entry; they are for the case that nothing can be refused, nothing
  // noted has to be settled, and older pages do not stand where the copy has none.
  bool TakesInBulk() const { return nothing_noted() && account_.Fits(vtd::kEntriesPerTable); }
  // A whole guest table over a span in which nothing is mapped. False: not done.
  bool TakeFreshTable(TableNode& node, const uint64_t* page, Pass& pass);
  // The line of `node` that starts at slot `at`. False: not done, and no other line of it will be.
  bool TakeLine(TableNode& node, int at, const EntryLine& now, LeafCursor& cursor);
  bool OpenLines(const TableNode& node, LeafCursor& cursor);
  // Ends a series of TakeLine: counts what was done, and a physical table that became empty goes.
  // Returns how many entries differed.
  uint64_t CloseLines(TableNode& node, LeafCursor& cursor, SyncCost& cost);
  LeafRules RulesOf(const TableNode& node) const {
    return LeafRules(context_.rules, context_.map, node.permissions);
  }

  // One entry whose value is `now`.
  Halt Visit(TableNode& node, int slot, uint64_t now, bool visit_all, Pass& pass);
  Halt SetLeaf(TableNode& node, int slot, uint64_t now, uint64_t effective, bool visit_all,
               Pass& pass);
  Halt SetTable(TableNode& node, int slot, uint64_t now, uint64_t effective, bool visit_all,
                Pass& pass);
  void SetAbsent(TableNode& node, int slot, uint64_t now, bool visit_all, Pass& pass);
  // There is no room for a copy of the guest's `table` at `span`: none of its leaves is mapped.
  Halt RefuseTable(PhysAddr table, IovaRange span, int level, uint64_t permissions, bool visit_all,
                   Pass& pass);
  void LeaveUncopied(Pass& pass);
  // Reads a table that gets no copy: what stood at `span` goes, and its leaves are refused.
  Halt ReadUncopied(PhysAddr table, IovaRange span, int level, uint64_t permissions, bool visit_all,
                    Pass& pass);
  Halt RefuseLeaves(PhysAddr table, IovaRange span, int level, uint64_t permissions, Pass& pass);
  // Of a table of 4K entries; false also where it cannot be told.
  bool HasNoLeaf(PhysAddr table, uint64_t permissions, Pass& pass) const;
  // Where no copy is left, those of tables without a leaf are freed when the pass has ended; such a
  // table is read again when an invalidation comes by.
  void NoteIfEmpty(const TableNode& node);
  void FreeEmptied();
  // Forgets what `slot` reflected; returns what was charged for it.
  Dropped Drop(TableNode& node, int slot);
  // The same for a range; `hull` grows to what was forgotten.
  void DropRange(TableNode& node, IovaRange range, Dropped& sum, IovaRange& hull);
  void Uncharge(Dropped dropped, SyncCost& cost);
  // Nothing of `rest`, which could not be looked at, stays.
  void GiveUp(IovaRange rest, SyncRun& run);

  std::unique_ptr<TableNode> NewNode(PhysAddr guest_table, uint64_t first, int level,
                                     uint64_t permissions);
  void FreeNode(std::unique_ptr<TableNode> node);
  EntryKind KindOf(uint64_t raw, const TableNode& node) const {
    return (raw & node.permissions & kPermissionBits) == 0
               ? EntryKind::kAbsent
               : context_.rules.Classify(raw, node.level);
  }

  NodePool& pool_;
  TableIndex* const index_;
  DmaAccount account_;
  std::unique_ptr<TableNode> root_;
  std::vector<DirtyNode> dirty_;
  std::vector<uint64_t> emptied_;  // first addresses of leaf tables
  bool complete_ = false;  // dirty-log: the copies cover the whole table, so the log is enough
  bool identity_mapped_ = false;
  uint64_t node_bytes_ = 0;
};

}  // namespace viommu

#endif  // VIOMMU_IOMMU_CORE_SHADOW_SNAPSHOT_SHADOW_H_
