// Random numbers that are the same on every machine and in every standard library.
#ifndef VIOMMU_IOMMU_CORE_LOAD_RANDOM_H_
#define VIOMMU_IOMMU_CORE_LOAD_RANDOM_H_

#include <array>
#include <bit>
#include <cstdint>

namespace viommu {

// xoshiro256** (Blackman and Vigna, 2018), seeded by splitmix64. Integers only:
// floating-point distributions differ between libraries.
class Random {
 public:
  explicit Random(uint64_t seed) {
    for (uint64_t& word : state_) {
      seed += 0x9e3779b97f4a7c15;
      uint64_t z = seed;
      z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
      z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
      word = z ^ (z >> 31);
    }
  }

  uint64_t Next() {
    const uint64_t result = std::rotl(state_[1] * 5, 7) * 9;
    const uint64_t t = state_[1] << 17;
    state_[2] ^= state_[0];
    state_[3] ^= state_[1];
    state_[1] ^= state_[2];
    state_[0] ^= state_[3];
    state_[2] ^= t;
    state_[3] = std::rotl(state_[3], 45);
    return result;
  }

  // Below `bound`, which is not 0 and less than 2^32. The bias is below 2^-32.
  uint64_t Below(uint64_t bound) { return ((Next() >> 32) * bound) >> 32; }

  // Around `mean`, uniform in [mean / 2, mean * 3 / 2].
  uint64_t Around(uint64_t mean) { return mean - mean / 2 + Below(mean + 1); }

 private:
  std::array<uint64_t, 4> state_;
};

}  // namespace viommu

#endif  // VIOMMU_IOMMU_CORE_LOAD_RANDOM_H_
