// The memory image reader on any bytes.
#include <cstddef>
#include <cstdint>

#include "fuzz_input.h"
#include "iommu_core/load/memory_image.h"
#include "memory_file.h"

using namespace viommu;  // NOLINT(google-build-using-namespace)

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const MemoryFile file(data, size);
  absl::StatusOr<MemoryImage> image = ReadMemoryImage(file.path());
  if (!image.ok()) {
    FUZZ_CHECK(image.status().code() == absl::StatusCode::kInvalidArgument);
    return 0;
  }
  uint64_t last = 0;
  for (const uint64_t page : image->pages) {
    FUZZ_CHECK(IsAligned(page, kPageSize) && page < image->end);
    FUZZ_CHECK(page == 0 || page > last);
    last = page;
    FUZZ_CHECK(image->memory->Read64(PhysAddr(page)).has_value());
  }
  return 0;
}
