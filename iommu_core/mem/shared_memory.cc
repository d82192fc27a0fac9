#include "iommu_core/mem/shared_memory.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "iommu_core/base/errors.h"

namespace viommu {
namespace {

constexpr int kSeals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;

absl::Status Errno(absl::string_view what) { return absl::ErrnoToStatus(errno, what); }

}  // namespace

absl::StatusOr<std::unique_ptr<SharedMemory>> SharedMemory::Create(uint64_t size_bytes) {
  if (size_bytes == 0 || !IsAligned(size_bytes, kPageSize)) {
    return errors::Invalid("guest memory must be a positive multiple of 4096 bytes");
  }
  const int fd = memfd_create("viommu-guest-ram", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  if (fd < 0) return Errno("memfd_create");
  if (ftruncate(fd, static_cast<off_t>(size_bytes)) != 0) {
    const absl::Status status = Errno("cannot size guest memory");
    close(fd);
    return status;
  }
  if (fcntl(fd, F_ADD_SEALS, kSeals) != 0) {
    const absl::Status status = Errno("cannot seal guest memory");
    close(fd);
    return status;
  }
  auto memory = FromFd(fd, size_bytes);
  if (!memory.ok()) close(fd);
  return memory;
}

absl::StatusOr<std::unique_ptr<SharedMemory>> SharedMemory::FromFd(int fd, uint64_t size_bytes) {
  const int seals = fcntl(fd, F_GET_SEALS);
  if (seals < 0 || (seals & kSeals) != kSeals) {
    return absl::FailedPreconditionError("guest memory is not a sealed memfd");
  }
  struct stat st {};
  if (fstat(fd, &st) != 0) return Errno("fstat");
  if (static_cast<uint64_t>(st.st_size) != size_bytes || size_bytes == 0) {
    return absl::FailedPreconditionError(
        absl::StrCat("guest memory is ", st.st_size, " bytes, expected ", size_bytes));
  }
  void* base = mmap(nullptr, size_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (base == MAP_FAILED) return Errno("cannot map guest memory");
  return std::unique_ptr<SharedMemory>(
      new SharedMemory(fd, static_cast<std::byte*>(base), size_bytes));
}

absl::Status SharedMemory::Adopt(const SharedMemory& fresh) {
  if (fresh.size_bytes_ != size_bytes_) {
    return absl::FailedPreconditionError("the regions have different sizes");
  }
  const int fd = fcntl(fresh.fd_, F_DUPFD_CLOEXEC, 0);
  if (fd < 0) return Errno("cannot keep the new guest memory");
  if (mmap(base_, size_bytes_, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0) ==
      MAP_FAILED) {
    const absl::Status status = Errno("cannot map guest memory");
    close(fd);
    return status;
  }
  close(fd_);
  fd_ = fd;
  return absl::OkStatus();
}

SharedMemory::~SharedMemory() {
  munmap(base_, size_bytes_);
  close(fd_);
}

std::optional<uint64_t> SharedMemory::Read64(PhysAddr address) const {
  if (!Inside(address, sizeof(uint64_t))) return std::nullopt;
  return __atomic_load_n(reinterpret_cast<const uint64_t*>(base_ + address.value()),
                         __ATOMIC_ACQUIRE);
}

bool SharedMemory::Write64(PhysAddr address, uint64_t value) {
  if (!Inside(address, sizeof(uint64_t))) return false;
  __atomic_store_n(reinterpret_cast<uint64_t*>(base_ + address.value()), value, __ATOMIC_RELEASE);
  return true;
}

std::optional<uint32_t> SharedMemory::Read32(PhysAddr address) const {
  if (!Inside(address, sizeof(uint32_t))) return std::nullopt;
  return __atomic_load_n(reinterpret_cast<const uint32_t*>(base_ + address.value()),
                         __ATOMIC_ACQUIRE);
}

bool SharedMemory::Write32(PhysAddr address, uint32_t value) {
  if (!Inside(address, sizeof(uint32_t))) return false;
  __atomic_store_n(reinterpret_cast<uint32_t*>(base_ + address.value()), value, __ATOMIC_RELEASE);
  return true;
}

bool SharedMemory::ReadBytes(PhysAddr address, std::span<std::byte> out) const {
  if (!Inside(address, out.size())) return false;
  std::memcpy(out.data(), base_ + address.value(), out.size());
  return true;
}

bool SharedMemory::WriteBytes(PhysAddr address, std::span<const std::byte> in) {
  if (!Inside(address, in.size())) return false;
  std::memcpy(base_ + address.value(), in.data(), in.size());
  return true;
}

const uint64_t* SharedMemory::PageInPlace(PhysAddr page) const {
  if (!Inside(page, kPageSize)) return nullptr;
  return reinterpret_cast<const uint64_t*>(base_ + page.value());
}

}  // namespace viommu
