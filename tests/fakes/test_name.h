// A name of the product as GoogleTest takes it: letters, digits and underscores.
#ifndef VIOMMU_TESTS_FAKES_TEST_NAME_H_
#define VIOMMU_TESTS_FAKES_TEST_NAME_H_

#include <algorithm>
#include <string>

#include "absl/strings/string_view.h"

namespace viommu {

inline std::string TestName(absl::string_view name) {
  std::string out(name);
  std::replace(out.begin(), out.end(), '-', '_');
  return out;
}

}  // namespace viommu

#endif  // VIOMMU_TESTS_FAKES_TEST_NAME_H_
