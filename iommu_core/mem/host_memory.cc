#include "iommu_core/mem/host_memory.h"

#include <sys/mman.h>

#include <cerrno>
#include <cstring>

#include "absl/status/status.h"
#include "iommu_core/base/errors.h"

namespace viommu {

absl::StatusOr<std::unique_ptr<HostMemory>> HostMemory::Create(uint64_t capacity_pages) {
  if (capacity_pages == 0 || capacity_pages > (uint64_t{1} << 32)) {
    return errors::Invalid("host memory holds 1 to 2^32 pages");
  }
  void* base = mmap(nullptr, capacity_pages << kPageShift, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (base == MAP_FAILED) return absl::ErrnoToStatus(errno, "reserving modelled host memory");
  return std::unique_ptr<HostMemory>(new HostMemory(static_cast<std::byte*>(base), capacity_pages));
}

HostMemory::~HostMemory() { munmap(base_, capacity_pages_ << kPageShift); }

std::optional<uint64_t> HostMemory::Read64(PhysAddr address) const {
  if (!Inside(address, sizeof(uint64_t))) return std::nullopt;
  return __atomic_load_n(reinterpret_cast<const uint64_t*>(base_ + address.value()),
                         __ATOMIC_ACQUIRE);
}

bool HostMemory::Write64(PhysAddr address, uint64_t value) {
  if (!Inside(address, sizeof(uint64_t))) return false;
  __atomic_store_n(reinterpret_cast<uint64_t*>(base_ + address.value()), value, __ATOMIC_RELEASE);
  return true;
}

std::optional<uint32_t> HostMemory::Read32(PhysAddr address) const {
  if (!Inside(address, sizeof(uint32_t))) return std::nullopt;
  return __atomic_load_n(reinterpret_cast<const uint32_t*>(base_ + address.value()),
                         __ATOMIC_ACQUIRE);
}

bool HostMemory::Write32(PhysAddr address, uint32_t value) {
  if (!Inside(address, sizeof(uint32_t))) return false;
  __atomic_store_n(reinterpret_cast<uint32_t*>(base_ + address.value()), value, __ATOMIC_RELEASE);
  return true;
}

bool HostMemory::ReadBytes(PhysAddr address, std::span<std::byte> out) const {
  if (!Inside(address, out.size())) return false;
  std::memcpy(out.data(), base_ + address.value(), out.size());
  return true;
}

bool HostMemory::WriteBytes(PhysAddr address, std::span<const std::byte> in) {
  if (!Inside(address, in.size())) return false;
  std::memcpy(base_ + address.value(), in.data(), in.size());
  return true;
}

const uint64_t* HostMemory::PageInPlace(PhysAddr page) const {
  return Inside(page, kPageSize) ? Entries(page) : nullptr;
}

absl::StatusOr<PhysAddr> HostMemory::Allocate() {
  if (!free_.empty()) {
    const PhysAddr frame(uint64_t{free_.back()} << kPageShift);
    free_.pop_back();
    return frame;
  }
  if (next_ == capacity_pages_) return absl::ResourceExhaustedError("no free host table page");
  return PhysAddr(next_++ << kPageShift);  // fresh anonymous memory reads as zero
}

void HostMemory::Free(PhysAddr frame) {
  std::memset(Entries(frame), 0, kPageSize);
  FreeZeroed(frame);
}

void HostMemory::FreeZeroed(PhysAddr frame) {
  free_.push_back(static_cast<uint32_t>(frame.value() >> kPageShift));
}

}  // namespace viommu
