// Where each guest table page stands in the shadows of a session, so that a dirty log's page leads
// to the copies it concerns.
#ifndef VIOMMU_IOMMU_CORE_SHADOW_TABLE_INDEX_H_
#define VIOMMU_IOMMU_CORE_SHADOW_TABLE_INDEX_H_

#include <array>
#include <cstdint>
#include <memory>
#include <vector>

#include "iommu_core/mem/dirty_log.h"
#include "iommu_core/shadow/snapshot_shadow.h"

namespace viommu {

// By page number, in two steps: one load each instead of a hash. Tables that lie outside the
// guest's memory are in no log, so not here.
class DirtyTableIndex final : public TableIndex {
 public:
  DirtyTableIndex(DirtyLogView log, uint64_t guest_ram_bytes)
      : scanner_(log), groups_((guest_ram_bytes >> kPageShift) / kGroupPages + 1) {}

  void Add(TableNode& node) override {
    Group* group = GroupOf(node.guest_table);
    if (group == nullptr) return;
    if (*group == nullptr) *group = std::make_unique<Pages>();
    TableNode*& head = (*group)->head[SlotOf(node.guest_table)];
    // Its entries are read after this; a page that another node stands for keeps its marks.
    if (head == nullptr) {
      scanner_.DropLines(node.guest_table);
      ++(*group)->used;
    } else {
      head->index_previous = &node;
    }
    node.index_next = head;
    node.index_previous = nullptr;
    head = &node;
  }
  void Remove(TableNode& node) override {
    Group* group = GroupOf(node.guest_table);
    if (group == nullptr) return;
    if (node.index_next != nullptr) node.index_next->index_previous = node.index_previous;
    if (node.index_previous != nullptr) {
      node.index_previous->index_next = node.index_next;
      return;
    }
    (*group)->head[SlotOf(node.guest_table)] = node.index_next;
    if (node.index_next == nullptr && --(*group)->used == 0) group->reset();
  }

  // Hands the marks of the log to the nodes of all shadows.
  void Collect() {
    scanner_.Collect([&](PhysAddr page) { return Head(page) != nullptr; },
                     [&](PhysAddr page, uint64_t lines) {
                       for (TableNode* node = Head(page); node != nullptr;
                            node = node->index_next) {
                         node->dirty_lines |= lines;
                         node->owner->Enqueue(*node);
                       }
                     });
  }

 private:
  static constexpr uint64_t kGroupPages = 512;
  struct Pages {
    std::array<TableNode*, kGroupPages> head{};
    uint32_t used = 0;  // heads that are not null
  };
  using Group = std::unique_ptr<Pages>;

  static size_t SlotOf(PhysAddr table) {
    return static_cast<size_t>((table.value() >> kPageShift) % kGroupPages);
  }
  Group* GroupOf(PhysAddr table) {
    const uint64_t number = (table.value() >> kPageShift) / kGroupPages;
    return number < groups_.size() ? &groups_[static_cast<size_t>(number)] : nullptr;
  }
  TableNode* Head(PhysAddr table) {
    const Group* group = GroupOf(table);
    return group == nullptr || *group == nullptr ? nullptr : (*group)->head[SlotOf(table)];
  }

  DirtyLogScanner scanner_;
  std::vector<Group> groups_;
};

}  // namespace viommu

#endif  // VIOMMU_IOMMU_CORE_SHADOW_TABLE_INDEX_H_
