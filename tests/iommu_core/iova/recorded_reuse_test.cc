// What the allocator gives out for a recorded stream of driver calls, against what the real kernel
// gave out (tests/data/linux/README.md).
#include <gtest/gtest.h>

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "iommu_core/iova/iova_allocator.h"
#include "iommu_core/load/dma_api_ops.h"
#include "iommu_core/load/trace_parser.h"

namespace viommu {
namespace {

struct Outcome {
  uint64_t calls = 0;
  uint64_t different = 0;
};

// Which recorded IOVA each of ours stands for. Two calls that the recording shows in the other
// order than the kernel served them would leave a permutation behind that never heals; exchanging
// the two names at the first difference counts such an event once.
class Names {
 public:
  // True if `ours` already stood for `recorded`.
  bool Bind(uint64_t ours, uint64_t recorded) {
    if (Of(ours) == recorded) return true;
    const uint64_t other = OwnerOf(recorded);
    Set(other, Of(ours));
    Set(ours, recorded);
    return false;
  }

 private:
  uint64_t Of(uint64_t ours) const {
    const auto it = name_.find(ours);
    return it == name_.end() ? ours : it->second;
  }
  uint64_t OwnerOf(uint64_t recorded) const {
    const auto it = owner_.find(recorded);
    return it == owner_.end() ? recorded : it->second;
  }
  void Set(uint64_t ours, uint64_t recorded) {
    name_[ours] = recorded;
    owner_[recorded] = ours;
  }

  std::map<uint64_t, uint64_t> name_;
  std::map<uint64_t, uint64_t> owner_;
};

// The domain of one device through our allocator, driver call by driver call on the recorded CPUs.
Outcome Replay(const std::string& run, SourceId device) {
  const auto trace = ReadTrace(std::string(VIOMMU_TEST_DATA) + "/linux/" + run + "/trace.txt.gz");
  EXPECT_TRUE(trace.ok()) << trace.status();
  if (!trace.ok()) return {};
  const std::vector<LoadOp> ops = ToDmaApiOps(trace->ops).ops;
  std::map<uint64_t, uint64_t> list_bytes;  // by tag
  std::optional<uint32_t> domain;
  for (const LoadOp& op : ops) {
    if (op.kind == LoadOp::Kind::kMap) list_bytes[op.tag] += op.size_bytes;
    if (op.kind == LoadOp::Kind::kAttach && op.source_id == device) domain = op.domain;
  }
  IovaAllocator allocator({.cpus = trace->info.cpus, .dma_mask_bits = 64, .address_width = 39});
  // iova_reserve_iommu_regions: q35's PCI window below 4 GiB with 1 GiB of RAM.
  EXPECT_TRUE(allocator.Reserve({Iova(0xc0000000), Iova(0xfec00000)}).ok());
  Outcome out;
  Names names;
  std::map<uint64_t, Iova> live;  // by tag
  for (const LoadOp& op : ops) {
    if (!op.choose_iova || op.domain != domain) continue;
    if (op.kind == LoadOp::Kind::kMap) {
      if (live.contains(op.tag)) continue;  // a later piece of the list
      const auto iova = allocator.Allocate(list_bytes[op.tag], op.cpu);
      EXPECT_TRUE(iova.ok()) << iova.status();
      if (!iova.ok()) return out;
      live[op.tag] = *iova;
      ++out.calls;
      if (!names.Bind(iova->value(), op.iova.value())) ++out.different;
    } else if (const auto it = live.find(op.tag); it != live.end()) {
      allocator.Free(it->second, list_bytes[op.tag], op.cpu);
    }
  }
  return out;
}

constexpr SourceId kNvme = MakeSourceId(0, 3, 0);
constexpr SourceId kNic = MakeSourceId(0, 4, 0);

// Receive buffers and rings: every address as the kernel chose it, from 0xfffff000 downwards.
TEST(RecordedReuseTest, NicRingsExactly) {
  for (const char* run : {"6.1_cmon_strict1_r4k", "6.1_cmon_strict0_huge"}) {
    const Outcome o = Replay(run, kNic);
    EXPECT_EQ(o.calls, 257u);
    EXPECT_EQ(o.different, 0u) << run;
  }
}

// Steady reuse from the magazines of two CPUs. What differs are calls that an interrupt on the same
// CPU overtook between the allocator and the tracepoint.
TEST(RecordedReuseTest, NvmeReadsReuseLastInFirstOut) {
  const Outcome o = Replay("6.1_cmon_strict1_r4k", kNvme);
  EXPECT_EQ(o.calls, 21022u);
  EXPECT_LE(o.different, o.calls / 100);
}

TEST(RecordedReuseTest, NvmeWritesOf128KiB) {
  const Outcome o = Replay("6.1_cmon_strict0_w128k", kNvme);
  EXPECT_EQ(o.calls, 1558u);
  EXPECT_LE(o.different, o.calls * 3 / 100);
}

// 2 and 4 MiB: always from the tree, below the PCI window once the top is taken.
TEST(RecordedReuseTest, HugeBuffersFromTheTree) {
  const Outcome o = Replay("6.1_cmon_strict0_huge", kNvme);
  EXPECT_EQ(o.calls, 740u);
  EXPECT_LE(o.different, o.calls * 2 / 100);
}

}  // namespace
}  // namespace viommu
