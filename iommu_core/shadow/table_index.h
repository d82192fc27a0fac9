// Where each guest table page stands in the shadows of a session, so that a dirty log's page leads
// to the copies it concerns.
#ifndef VIOMMU_IOMMU_CORE_SHADOW_TABLE_INDEX_H_
#define VIOMMU_IOMMU_CORE_SHADOW_TABLE_INDEX_H_

#include <cstdint>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/container/inlined_vector.h"
#include "iommu_core/mem/dirty_log.h"
#include "iommu_core/shadow/snapshot_shadow.h"

namespace viommu {

class DirtyTableIndex final : public TableIndex {
 public:
  explicit DirtyTableIndex(DirtyLogView log) : scanner_(log) {}

  void Add(TableNode& node) override {
    auto& nodes = pages_[node.guest_table.value()];
    // Its entries are read after this; a page that another node stands for keeps its marks.
    if (nodes.empty()) scanner_.DropLines(node.guest_table);
    node.index_slot = static_cast<uint32_t>(nodes.size());
    nodes.push_back(&node);
  }
  void Remove(TableNode& node) override {
    const auto it = pages_.find(node.guest_table.value());
    auto& nodes = it->second;
    nodes[node.index_slot] = nodes.back();
    nodes[node.index_slot]->index_slot = node.index_slot;
    nodes.pop_back();
    if (nodes.empty()) pages_.erase(it);
  }

  // Hands the marks of the log to the nodes of all shadows.
  void Collect() {
    scanner_.Collect([&](PhysAddr page) { return pages_.contains(page.value()); },
                     [&](PhysAddr page, uint64_t lines) {
                       for (TableNode* node : pages_.find(page.value())->second) {
                         node->dirty_lines |= lines;
                         node->owner->Enqueue(*node);
                       }
                     });
  }

 private:
  DirtyLogScanner scanner_;
  absl::flat_hash_map<uint64_t, absl::InlinedVector<TableNode*, 1>> pages_;
};

}  // namespace viommu

#endif  // VIOMMU_IOMMU_CORE_SHADOW_TABLE_INDEX_H_
