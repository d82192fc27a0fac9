// Guest memory as saved in a file: the tables of a stopped guest.
#ifndef VIOMMU_IOMMU_CORE_LOAD_MEMORY_IMAGE_H_
#define VIOMMU_IOMMU_CORE_LOAD_MEMORY_IMAGE_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "iommu_core/mem/sparse_memory.h"

namespace viommu {

// Bytes of one image, unpacked.
inline constexpr uint64_t kMaxImageBytes = uint64_t{64} << 30;
// Pages of a sparse image; each holds 4 KiB of memory here.
inline constexpr uint64_t kMaxImagePages = uint64_t{1} << 22;

struct MemoryImage {
  std::unique_ptr<SparseMemory> memory;
  bool sparse = false;
  uint64_t end = 0;             // first byte past the highest page in the file
  std::vector<uint64_t> pages;  // addresses of pages that hold something, ascending
};

// Either the sparse format (8 bytes "VTDPGS01", then records of little-endian u64 address, 8 bytes
// of kind, 4096 bytes) or a flat RAM image, byte 0 at address 0; both gzip'd or not. In a sparse
// image, memory is only what the file holds: a table elsewhere cannot be read. InvalidArgument
// names the file and what is wrong: "is no memory image", truncated, a page twice.
absl::StatusOr<MemoryImage> ReadMemoryImage(const std::string& path);

}  // namespace viommu

#endif  // VIOMMU_IOMMU_CORE_LOAD_MEMORY_IMAGE_H_
