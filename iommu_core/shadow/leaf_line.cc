#include "iommu_core/shadow/leaf_line.h"

namespace viommu {

// The loop has no branch, so that the compiler makes vector code of it; 64-bit compares and
// multiplications need more than the x86-64 baseline, hence one version for each level of the
// architecture, chosen when the program starts. Sanitizers are not ready by then.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && \
    !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
__attribute__((target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")))
#endif
void ReadLeafLine(const LeafRules& rules_in, const EntryLine& now, uint64_t* __restrict last,
                  LeafLine& __restrict out) {
  const LeafRules rules = rules_in;
  EntryLine bits;
  for (size_t i = 0; i < now.size(); ++i) {
    const uint64_t effective = rules.Effective(now[i]);
    const uint64_t before = rules.Effective(last[i]);
    out.host[i] = rules.HostEntry(effective);
    bits[i] =
        static_cast<uint64_t>(now[i] != last[i]) | static_cast<uint64_t>(effective != 0) << 8 |
        static_cast<uint64_t>(before != 0) << 16 | static_cast<uint64_t>(effective != before) << 24;
    last[i] = now[i];
  }
  uint64_t masks = 0;
  for (size_t i = 0; i < now.size(); ++i) masks |= bits[i] << i;
  out.differing = masks & 0xff;
  out.is = masks >> 8 & 0xff;
  out.was = masks >> 16 & 0xff;
  out.changed = masks >> 24 & 0xff;
}

}  // namespace viommu
