// Unguessable names of sessions, instances and memory regions.
#ifndef VIOMMU_SVC_COMMON_RANDOM_ID_H_
#define VIOMMU_SVC_COMMON_RANDOM_ID_H_

#include <string>

namespace viommu {

// 128 bits of the kernel's randomness as 32 hexadecimal digits.
std::string RandomId();

}  // namespace viommu

#endif  // VIOMMU_SVC_COMMON_RANDOM_ID_H_
