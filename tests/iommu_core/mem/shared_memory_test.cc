#include "iommu_core/mem/shared_memory.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <thread>

namespace viommu {
namespace {

constexpr uint64_t kSize = 16 * kPageSize;

int Memfd(uint64_t size_bytes, int seals) {
  const int fd = memfd_create("test", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  EXPECT_EQ(ftruncate(fd, static_cast<off_t>(size_bytes)), 0);
  EXPECT_EQ(fcntl(fd, F_ADD_SEALS, seals), 0);
  return fd;
}

// A guest must be able neither to shrink its memory under the hypervisor's mapping (that is SIGBUS
// there) nor to undo the seal.
TEST(SharedMemoryTest, SealedAgainstItsHolder) {
  auto memory = SharedMemory::Create(kSize);
  ASSERT_TRUE(memory.ok()) << memory.status();
  EXPECT_EQ(fcntl((*memory)->fd(), F_GET_SEALS), F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL);
  EXPECT_EQ(ftruncate((*memory)->fd(), kPageSize), -1);
  EXPECT_EQ(errno, EPERM);
  EXPECT_EQ(ftruncate((*memory)->fd(), 2 * kSize), -1);
  EXPECT_EQ(errno, EPERM);
  EXPECT_EQ(fcntl((*memory)->fd(), F_ADD_SEALS, F_SEAL_WRITE), -1);
  EXPECT_EQ(errno, EPERM);
}

TEST(SharedMemoryTest, SizesThatAreNoMemory) {
  EXPECT_EQ(SharedMemory::Create(0).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(SharedMemory::Create(kSize + 1).status().code(), absl::StatusCode::kInvalidArgument);
}

// What arrives over a socket is checked before it is mapped.
TEST(SharedMemoryTest, ReceivedDescriptorMustBeSealed) {
  const auto code = [](int fd, uint64_t size_bytes) {
    const absl::Status status = SharedMemory::FromFd(fd, size_bytes).status();
    close(fd);
    return status.code();
  };
  EXPECT_EQ(code(Memfd(kSize, F_SEAL_GROW | F_SEAL_SEAL), kSize),
            absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(code(Memfd(kSize, F_SEAL_SHRINK | F_SEAL_GROW), kSize),
            absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(code(open("/dev/zero", O_RDWR | O_CLOEXEC), kSize),
            absl::StatusCode::kFailedPrecondition);
  // Sealed, but not of the size that its sender said.
  constexpr int kSeals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;
  EXPECT_EQ(code(Memfd(kSize, kSeals), kSize / 2), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(code(Memfd(kSize, kSeals), kSize * 2), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(code(Memfd(0, kSeals), 0), absl::StatusCode::kFailedPrecondition);
  EXPECT_FALSE(SharedMemory::FromFd(-1, kSize).ok());
}

TEST(SharedMemoryTest, TwoMappingsAreOneMemory) {
  auto guest = SharedMemory::Create(kSize);
  ASSERT_TRUE(guest.ok());
  auto hypervisor = SharedMemory::FromFd(dup((*guest)->fd()), kSize);
  ASSERT_TRUE(hypervisor.ok()) << hypervisor.status();
  ASSERT_TRUE((*guest)->Write64(PhysAddr(0x2008), 0x1122334455667788));
  EXPECT_EQ((*hypervisor)->Read64(PhysAddr(0x2008)), 0x1122334455667788u);
  EXPECT_EQ((*hypervisor)->Read32(PhysAddr(0x200c)), 0x11223344u);
  ASSERT_TRUE((*hypervisor)->Write32(PhysAddr(0x2008), 7));
  EXPECT_EQ((*guest)->Read64(PhysAddr(0x2008)), 0x1122334400000007u);
  EXPECT_EQ((*guest)->PageInPlace(PhysAddr(0x2000))[1], 0x1122334400000007u);
}

TEST(SharedMemoryTest, NothingBeyondTheEnd) {
  auto made = SharedMemory::Create(kSize);
  ASSERT_TRUE(made.ok());
  SharedMemory& memory = **made;
  EXPECT_TRUE(memory.Read64(PhysAddr(kSize - 8)));
  for (const uint64_t address : {kSize - 4, kSize, kSize + 8, ~uint64_t{0} - 7, ~uint64_t{0}}) {
    EXPECT_FALSE(memory.Read64(PhysAddr(address))) << address;
    EXPECT_FALSE(memory.Write64(PhysAddr(address), 1)) << address;
  }
  EXPECT_FALSE(memory.Read32(PhysAddr(kSize)));
  EXPECT_FALSE(memory.Write32(PhysAddr(~uint64_t{0} - 3), 1));
  EXPECT_EQ(memory.PageInPlace(PhysAddr(kSize)), nullptr);
  EXPECT_EQ(memory.PageInPlace(PhysAddr(~kPageMask)), nullptr);
  // A bulk access that leaves the memory does nothing at all.
  std::array<std::byte, 64> data;
  data.fill(std::byte{0xaa});
  EXPECT_FALSE(memory.WriteBytes(PhysAddr(kSize - 32), data));
  EXPECT_EQ(memory.Read64(PhysAddr(kSize - 32)), 0u);
  EXPECT_FALSE(memory.ReadBytes(PhysAddr(kSize - 32), data));
  EXPECT_EQ(data[0], std::byte{0xaa});
}

// A reader sees one of the values stored, never a mixture.
TEST(SharedMemoryTest, StoresAreAtomic) {
  auto made = SharedMemory::Create(kSize);
  ASSERT_TRUE(made.ok());
  SharedMemory& memory = **made;
  std::atomic<bool> stop{false};
  std::thread writer([&] {
    for (uint64_t i = 0; !stop.load(std::memory_order_relaxed); ++i) {
      memory.Write64(PhysAddr(0x1000), (i & 1) != 0 ? ~uint64_t{0} : 0);
    }
  });
  for (int i = 0; i < 200000; ++i) {
    const uint64_t value = *memory.Read64(PhysAddr(0x1000));
    ASSERT_TRUE(value == 0 || value == ~uint64_t{0});
  }
  stop = true;
  writer.join();
}

}  // namespace
}  // namespace viommu
