// Eight entries of a guest table at a time.
#ifndef VIOMMU_IOMMU_CORE_SHADOW_ENTRY_LINE_H_
#define VIOMMU_IOMMU_CORE_SHADOW_ENTRY_LINE_H_

#include <array>
#include <cstddef>
#include <cstdint>

namespace viommu {

inline constexpr int kLineEntries = 8;  // of 8 bytes: one cache line
using EntryLine = std::array<uint64_t, kLineEntries>;

// One entry in place. Read64's std::optional costs more than the load: its parts go through the
// stack, written narrower than they are read.
inline uint64_t LoadEntry(const uint64_t* entry) {
  return __atomic_load_n(entry, __ATOMIC_RELAXED);
}

// Loads each entry of an aligned line once. The guest may store to it meanwhile.
#if defined(__SANITIZE_THREAD__)
inline void LoadLine(const uint64_t* entries, EntryLine& out) {
  for (size_t i = 0; i < out.size(); ++i) out[i] = __atomic_load_n(entries + i, __ATOMIC_RELAXED);
}
#else
// An aligned vector load is a load of each of its 8-byte lanes; volatile keeps it to one.
typedef uint64_t EntryLanes __attribute__((vector_size(16), may_alias));
inline void LoadLine(const uint64_t* entries, EntryLine& out) {
  const auto* from = reinterpret_cast<const volatile EntryLanes*>(entries);
  auto* to = reinterpret_cast<EntryLanes*>(out.data());
  for (int i = 0; i < 4; ++i) to[i] = from[i];
}
#endif

inline bool Differs(const EntryLine& a, const uint64_t* b) {
  uint64_t difference = 0;
  for (size_t i = 0; i < a.size(); ++i) difference |= a[i] ^ b[i];
  return difference != 0;
}

}  // namespace viommu

#endif  // VIOMMU_IOMMU_CORE_SHADOW_ENTRY_LINE_H_
