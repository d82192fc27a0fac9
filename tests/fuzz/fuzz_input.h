// Bytes of a fuzz input as numbers, and the check that ends a run.
#ifndef VIOMMU_TESTS_FUZZ_FUZZ_INPUT_H_
#define VIOMMU_TESTS_FUZZ_FUZZ_INPUT_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

// On in every build type, unlike assert.
#define FUZZ_CHECK(condition)                                                            \
  do {                                                                                   \
    if (!(condition)) {                                                                  \
      std::fprintf(stderr, "%s:%d: check failed: %s\n", __FILE__, __LINE__, #condition); \
      std::abort();                                                                      \
    }                                                                                    \
  } while (false)

namespace viommu {

// Little-endian; zeros once the input has ended.
class FuzzInput {
 public:
  FuzzInput(const uint8_t* data, size_t size) : data_(data), size_(size) {}

  bool empty() const { return size_ == 0; }
  template <typename T>
  T Take() {
    T value = 0;
    const size_t taken = std::min(size_, sizeof(T));
    if (taken != 0) std::memcpy(&value, data_, taken);
    data_ += taken;
    size_ -= taken;
    return value;
  }

 private:
  const uint8_t* data_;
  size_t size_;
};

}  // namespace viommu

#endif  // VIOMMU_TESTS_FUZZ_FUZZ_INPUT_H_
