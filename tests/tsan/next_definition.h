// For definitions that take the place of a shared library's, by the dynamic linker's order.
#ifndef VIOMMU_TESTS_TSAN_NEXT_DEFINITION_H_
#define VIOMMU_TESTS_TSAN_NEXT_DEFINITION_H_

#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>

namespace viommu {

// The library's own `name`; aborts where no library has one.
template <typename Fn>
Fn* NextDefinition(const char* name) {
  void* found = dlsym(RTLD_NEXT, name);
  if (found == nullptr) {
    std::fprintf(stderr, "tsan: no library has %s\n", name);
    std::abort();
  }
  return reinterpret_cast<Fn*>(found);
}

}  // namespace viommu

#endif  // VIOMMU_TESTS_TSAN_NEXT_DEFINITION_H_
