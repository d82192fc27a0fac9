#include "iommu_core/load/dma_api_ops.h"

#include <map>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"

namespace viommu {
namespace {

// A list that is mapped now: its map operations in order, all of one CPU.
struct List {
  std::vector<size_t> maps;
  uint64_t end = 0;
  uint64_t tag = 0;
};

class Pairing {
 public:
  explicit Pairing(std::vector<LoadOp>& ops) : ops_(ops) {}

  void Run() {
    for (size_t i = 0; i < ops_.size(); ++i) {
      LoadOp& op = ops_[i];
      switch (op.kind) {
        case LoadOp::Kind::kMap:
          OnMap(i);
          break;
        case LoadOp::Kind::kUnmap:
          OnUnmap(i);
          break;
        case LoadOp::Kind::kDomainFree:
          live_.erase(op.domain);
          break;
        default:
          break;
      }
    }
    for (LoadOp& op : ops_) {
      const bool data = op.kind == LoadOp::Kind::kMap || op.kind == LoadOp::Kind::kUnmap;
      op.choose_iova = data && !irregular_.contains(op.domain);
    }
  }
  uint32_t irregular() const { return static_cast<uint32_t>(irregular_.size()); }

 private:
  void OnMap(size_t i) {
    LoadOp& op = ops_[i];
    map_index_[op.cpu].push_back(i);
    ordinal_[i] = map_index_[op.cpu].size() - 1;
    auto& lists = live_[op.domain];
    const uint64_t end = op.iova.value() + op.size_bytes;
    if (const auto open = open_.find(op.cpu); open != open_.end()) {
      const auto it = lists.find(open->second);
      if (it != lists.end() && it->second.end == op.iova.value()) {
        op.tag = it->second.tag;
        it->second.maps.push_back(i);
        it->second.end = end;
        if (!op.list_continues) open_.erase(open);
        return;
      }
      open_.erase(open);
    }
    op.tag = ++next_tag_;
    const auto next = lists.lower_bound(op.iova.value());
    const bool overlaps = (next != lists.end() && next->first < end) ||
                          (next != lists.begin() && std::prev(next)->second.end > op.iova.value());
    // An identity map is placed where its user wants it, not where an allocator would.
    if (overlaps || op.iova.value() == op.guest_pa.value()) irregular_.insert(op.domain);
    lists[op.iova.value()] = {{i}, end, op.tag};
    if (op.list_continues) open_[op.cpu] = op.iova.value();
  }

  void OnUnmap(size_t i) {
    LoadOp& op = ops_[i];
    // Gathered unmaps are VFIO's, whose user chooses the IOVAs.
    if (op.list_continues) irregular_.insert(op.domain);
    auto& lists = live_[op.domain];
    auto it = lists.find(op.iova.value());
    if (it == lists.end()) {
      irregular_.insert(op.domain);
      return;
    }
    const uint64_t end = op.iova.value() + op.size_bytes;
    while (it->second.end < end && JoinNext(lists, it)) {
    }
    if (it->second.end > end && !SplitAt(lists, it, end)) {
      irregular_.insert(op.domain);
      return;
    }
    if (it->second.end != end) {
      irregular_.insert(op.domain);
      return;
    }
    op.tag = it->second.tag;
    lists.erase(it);
  }

  using Lists = std::map<uint64_t, List>;

  // The unmap proves that the next list belongs to this one: consecutive maps of one CPU.
  bool JoinNext(Lists& lists, Lists::iterator it) {
    const auto next = std::next(it);
    if (next == lists.end() || next->first != it->second.end) return false;
    const size_t last = it->second.maps.back();
    const size_t first = next->second.maps.front();
    if (ops_[last].cpu != ops_[first].cpu || ordinal_[last] + 1 != ordinal_[first]) return false;
    ops_[last].list_continues = true;
    for (const size_t m : next->second.maps) ops_[m].tag = it->second.tag;
    it->second.maps.insert(it->second.maps.end(), next->second.maps.begin(),
                           next->second.maps.end());
    it->second.end = next->second.end;
    lists.erase(next);
    return true;
  }

  // The unmap proves that two lists were taken for one.
  bool SplitAt(Lists& lists, Lists::iterator it, uint64_t at) {
    List& list = it->second;
    for (size_t k = 1; k < list.maps.size(); ++k) {
      if (ops_[list.maps[k]].iova.value() != at) continue;
      ops_[list.maps[k - 1]].list_continues = false;
      List rest{
          {list.maps.begin() + static_cast<ptrdiff_t>(k), list.maps.end()}, list.end, ++next_tag_};
      for (const size_t m : rest.maps) ops_[m].tag = rest.tag;
      list.maps.resize(k);
      list.end = at;
      lists[at] = std::move(rest);
      return true;
    }
    return false;
  }

  std::vector<LoadOp>& ops_;
  absl::flat_hash_map<uint32_t, Lists> live_;     // by domain, then first iova
  absl::flat_hash_map<uint16_t, uint64_t> open_;  // CPU -> first iova of its open list
  absl::flat_hash_map<uint16_t, std::vector<size_t>> map_index_;
  absl::flat_hash_map<size_t, size_t> ordinal_;  // map op -> its rank on its CPU
  absl::flat_hash_set<uint32_t> irregular_;
  uint64_t next_tag_ = 0;
};

}  // namespace

DmaApiOps ToDmaApiOps(std::vector<LoadOp> ops) {
  Pairing pairing(ops);
  pairing.Run();
  return {std::move(ops), pairing.irregular()};
}

}  // namespace viommu
