// Eight entries of a guest table at a time.
#ifndef VIOMMU_IOMMU_CORE_SHADOW_ENTRY_LINE_H_
#define VIOMMU_IOMMU_CORE_SHADOW_ENTRY_LINE_H_

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace viommu {

inline constexpr int kLineEntries = 8;  // of 8 bytes: one cache line
struct alignas(64) EntryLine : std::array<uint64_t, kLineEntries> {};

// One entry in place. Read64's std::optional costs more than the load: its parts go through the
// stack, written narrower than they are read.
inline uint64_t LoadEntry(const uint64_t* entry) {
  return __atomic_load_n(entry, __ATOMIC_RELAXED);
}

typedef uint64_t EntryLanes __attribute__((vector_size(16), may_alias));

// Loads each entry of an aligned line once. The guest may store to it meanwhile.
#if defined(__SANITIZE_THREAD__)
inline void LoadLine(const uint64_t* entries, EntryLine& out) {
  for (size_t i = 0; i < out.size(); ++i) out[i] = __atomic_load_n(entries + i, __ATOMIC_RELAXED);
}
#else
// An aligned vector load is a load of each of its 8-byte lanes; volatile keeps it to one.
inline void LoadLine(const uint64_t* entries, EntryLine& out) {
  const auto* from = reinterpret_cast<const volatile EntryLanes*>(entries);
  auto* to = reinterpret_cast<EntryLanes*>(out.data());
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) to[i] = from[i];
}
#endif

// Which entries of two lines differ. `b` is aligned as a line.
class DifferingSlots {
 public:
  DifferingSlots(const EntryLine& a, const uint64_t* b) {
#if defined(__SSE2__)
    // Halves of entries that are equal, 32 bits each, as 16 bits.
    const auto halves = [&](size_t i) {
      const auto* x = reinterpret_cast<const __m128i*>(a.data() + i);
      const auto* y = reinterpret_cast<const __m128i*>(b + i);
      return _mm_cmpeq_epi32(_mm_load_si128(x), _mm_load_si128(y));
    };
    const __m128i low = _mm_packs_epi32(halves(0), halves(2));
    const __m128i high = _mm_packs_epi32(halves(4), halves(6));
    const auto equal = static_cast<uint32_t>(_mm_movemask_epi8(_mm_packs_epi16(low, high)));
    bits_ = (~equal | ~equal >> 1) & 0x5555;
#else
    for (size_t i = 0; i < a.size(); ++i) bits_ |= static_cast<uint32_t>(a[i] != b[i]) << 2 * i;
#endif
  }
  bool none() const { return bits_ == 0; }
  bool several() const { return (bits_ & (bits_ - 1)) != 0; }
  int first() const { return std::countr_zero(bits_) / 2; }

 private:
  uint32_t bits_ = 0;  // bit 2n: entry n
};

// `b` is aligned as a line.
inline bool Differs(const EntryLine& a, const uint64_t* b) {
  const auto* x = reinterpret_cast<const EntryLanes*>(a.data());
  const auto* y = reinterpret_cast<const EntryLanes*>(b);
  const EntryLanes difference = (x[0] ^ y[0]) | (x[1] ^ y[1]) | (x[2] ^ y[2]) | (x[3] ^ y[3]);
  return (difference[0] | difference[1]) != 0;
}

}  // namespace viommu

#endif  // VIOMMU_IOMMU_CORE_SHADOW_ENTRY_LINE_H_
