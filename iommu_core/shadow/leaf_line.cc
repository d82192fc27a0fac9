#include "iommu_core/shadow/leaf_line.h"

#include <array>

namespace viommu {
namespace {

// Where each entry's answers stand in the word of all masks.
constexpr std::array<EntryLine, 4> kBitOf = [] {
  std::array<EntryLine, 4> bits{};
  for (size_t mask = 0; mask < bits.size(); ++mask) {
    for (size_t i = 0; i < kLineEntries; ++i) bits[mask][i] = uint64_t{1} << (8 * mask + i);
  }
  return bits;
}();
uint64_t BitIf(bool yes, uint64_t bit) { return bit & (uint64_t{0} - static_cast<uint64_t>(yes)); }

}  // namespace

// The loop has no branch, so that the compiler makes vector code of it; 64-bit compares and
// multiplications need more than the x86-64 baseline, hence one version for each level of the
// architecture, chosen when the program starts. Sanitizers are not ready by then.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && \
    !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
__attribute__((target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")))
#endif
LeafMasks
ReadLeafLine(const LeafRules& rules_in, const EntryLine& now, uint64_t* __restrict last,
             EntryLine& __restrict host) {
  const LeafRules rules = rules_in;
  // One accumulator for both halves of the line: where the masks of an entry stand depends on it.
  std::array<uint64_t, 4> bits{};
  for (size_t half = 0; half < 2; ++half) {
    for (size_t j = 0; j < 4; ++j) {
      const size_t i = 4 * half + j;
      const uint64_t effective = rules.Effective(now[i]);
      const uint64_t before = rules.Effective(last[i]);
      host[i] = rules.HostEntry(effective);
      bits[j] |= BitIf(now[i] != last[i], kBitOf[0][i]) | BitIf(effective != 0, kBitOf[1][i]) |
                 BitIf(before != 0, kBitOf[2][i]) | BitIf(effective != before, kBitOf[3][i]);
      last[i] = now[i];
    }
  }
  const uint64_t masks = bits[0] | bits[1] | bits[2] | bits[3];
  return LeafMasks(masks);
}

}  // namespace viommu
