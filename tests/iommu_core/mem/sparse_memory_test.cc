#include "iommu_core/mem/sparse_memory.h"

#include <gtest/gtest.h>

#include <array>
#include <map>
#include <random>
#include <vector>

namespace viommu {
namespace {

// The recorded QEMU machine: RAM below 2 GiB and above 4 GiB.
SparseMemory QemuRam() {
  return SparseMemory(
      {{PhysAddr(0), PhysAddr(0x80000000)}, {PhysAddr(0x100000000), PhysAddr(0x200000000)}});
}

TEST(SparseMemoryTest, ReadsZeroInsideRamAndNothingOutside) {
  const SparseMemory memory = QemuRam();
  EXPECT_EQ(memory.Read64(PhysAddr(0x7ffffff8)), 0u);
  EXPECT_FALSE(memory.Read64(PhysAddr(0x80000000)));
  EXPECT_FALSE(memory.Read64(PhysAddr(0xfffffff8)));
  EXPECT_EQ(memory.Read64(PhysAddr(0x100000000)), 0u);
  EXPECT_FALSE(memory.Read64(PhysAddr(0x200000000)));
  EXPECT_FALSE(memory.Read32(PhysAddr(0xfed90000)));
  EXPECT_EQ(memory.resident_pages(), 0u);
  ASSERT_NE(memory.PageInPlace(PhysAddr(0x1000)), nullptr);
  EXPECT_EQ(memory.PageInPlace(PhysAddr(0x1000))[511], 0u);
  EXPECT_EQ(memory.PageInPlace(PhysAddr(0x80000000)), nullptr);
}

TEST(SparseMemoryTest, OnlyWrittenPagesExist) {
  SparseMemory memory = QemuRam();
  ASSERT_TRUE(memory.Write64(PhysAddr(0x5008), 42));
  EXPECT_EQ(memory.resident_pages(), 1u);
  EXPECT_EQ(memory.Read64(PhysAddr(0x5008)), 42u);
  EXPECT_EQ(memory.PageInPlace(PhysAddr(0x5000))[1], 42u);
  EXPECT_FALSE(memory.Write64(PhysAddr(0x80000000), 42));
  EXPECT_FALSE(memory.Write32(PhysAddr(0x80000000), 42));
  EXPECT_EQ(memory.resident_pages(), 1u);
  memory.Drop(PhysAddr(0x5000));
  EXPECT_EQ(memory.Read64(PhysAddr(0x5008)), 0u);
  EXPECT_EQ(memory.resident_pages(), 0u);
}

TEST(SparseMemoryTest, BulkAccessIsAllOrNothing) {
  SparseMemory memory = QemuRam();
  std::vector<std::byte> data(3 * kPageSize, std::byte{0x5a});
  // Across page borders, unaligned.
  ASSERT_TRUE(memory.WriteBytes(PhysAddr(0x1800), data));
  EXPECT_EQ(memory.resident_pages(), 4u);
  std::vector<std::byte> back(3 * kPageSize);
  ASSERT_TRUE(memory.ReadBytes(PhysAddr(0x1800), back));
  EXPECT_EQ(back, data);
  EXPECT_EQ(memory.Read64(PhysAddr(0x17f8)), 0u);
  // The end of RAM inside the range: nothing is stored, nothing is read.
  EXPECT_FALSE(memory.WriteBytes(PhysAddr(0x7ffff000), data));
  EXPECT_EQ(memory.Read64(PhysAddr(0x7ffff000)), 0u);
  back.assign(back.size(), std::byte{1});
  EXPECT_FALSE(memory.ReadBytes(PhysAddr(0x7ffff000), back));
  EXPECT_EQ(back[0], std::byte{1});
  // Sizes that would wrap the address space.
  EXPECT_FALSE(memory.ReadBytes(PhysAddr(~uint64_t{0} - 10), back));
}

TEST(SparseMemoryTest, RandomAccessMatchesAPlainMap) {
  SparseMemory memory({{PhysAddr(0), PhysAddr(0x10000)}});
  std::map<uint64_t, std::byte> model;
  std::mt19937_64 rng(3);
  for (int step = 0; step < 20000; ++step) {
    const uint64_t at = rng() % 0x10000;
    if (rng() % 2 == 0) {
      std::vector<std::byte> data(rng() % 300);
      for (auto& b : data) b = static_cast<std::byte>(rng());
      const bool inside = at + data.size() <= 0x10000;
      ASSERT_EQ(memory.WriteBytes(PhysAddr(at), data), inside);
      if (inside) {
        for (size_t i = 0; i < data.size(); ++i) model[at + i] = data[i];
      }
    } else {
      const uint64_t word = at & ~uint64_t{7};
      uint64_t expected = 0;
      for (uint64_t i = 8; i-- > 0;) {
        const auto it = model.find(word + i);
        expected = expected << 8 | (it == model.end() ? 0 : std::to_integer<uint64_t>(it->second));
      }
      ASSERT_EQ(memory.Read64(PhysAddr(word)), expected);
    }
  }
}

TEST(SimpleFrameAllocatorTest, AscendingThenLastFreedFirst) {
  SparseMemory memory = QemuRam();
  SimpleFrameAllocator frames(memory, PhysAddr(0x10000), PhysAddr(0x13000));
  EXPECT_EQ(*frames.Allocate(), PhysAddr(0x10000));
  EXPECT_EQ(*frames.Allocate(), PhysAddr(0x11000));
  frames.Free(PhysAddr(0x10000));
  frames.Free(PhysAddr(0x11000));
  EXPECT_EQ(frames.allocated(), 0u);
  EXPECT_EQ(*frames.Allocate(), PhysAddr(0x11000));
  EXPECT_EQ(*frames.Allocate(), PhysAddr(0x10000));
  EXPECT_EQ(*frames.Allocate(), PhysAddr(0x12000));
  EXPECT_EQ(frames.Allocate().status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(frames.allocated(), 3u);
}

// A table page that still held its last life's entries would map memory nobody asked for.
TEST(SimpleFrameAllocatorTest, FramesAreZeroed) {
  SparseMemory memory = QemuRam();
  SimpleFrameAllocator frames(memory, PhysAddr(0x10000), PhysAddr(0x20000));
  const PhysAddr frame = *frames.Allocate();
  ASSERT_TRUE(memory.Write64(frame + 8, 0x5003));
  frames.Free(frame);
  ASSERT_EQ(*frames.Allocate(), frame);
  EXPECT_EQ(memory.Read64(frame + 8), 0u);
}

TEST(SimpleFrameAllocatorTest, FramesOutsideRamAreRefused) {
  SparseMemory memory = QemuRam();
  SimpleFrameAllocator frames(memory, PhysAddr(0x80000000), PhysAddr(0x90000000));
  EXPECT_EQ(frames.Allocate().status().code(), absl::StatusCode::kOutOfRange);
  EXPECT_EQ(frames.allocated(), 0u);
}

}  // namespace
}  // namespace viommu
