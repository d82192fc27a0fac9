#include "iommu_core/pt/psi_cover.h"

#include <gtest/gtest.h>

namespace viommu {
namespace {

struct Vector {
  uint64_t first_pfn;
  uint64_t pages;
  int mask;
  uint64_t base;
};

// Vectors of Linux's calculate_psi_aligned_address; the fourth equals a logged descriptor.
constexpr Vector kVectors[] = {
    {0x17f, 2, 8, 0x100000},      {0x1000, 3, 2, 0x1000000},     {0x1001, 3, 2, 0x1000000},
    {0xf9a00, 32, 5, 0xf9a00000}, {0xfe980, 128, 7, 0xfe980000}, {0x7ffff, 2, 20, 0},
    {0xffff0, 17, 21, 0},
};

TEST(PsiCoverTest, MasksMatchLinux) {
  for (const Vector& v : kVectors) {
    EXPECT_EQ(AddressMaskOf(v.first_pfn, v.pages), v.mask) << std::hex << v.first_pfn;
  }
}

TEST(PsiCoverTest, FallsBackToDomainAboveMamv) {
  const auto caps = vtd::QemuCapabilities(48, true);  // MAMV 18
  for (const Vector& v : kVectors) {
    const auto d = InvalidationFor(MakeRange(Iova(v.first_pfn << 12), v.pages << 12), DomainId(8),
                                   false, caps);
    if (v.mask > 18) {
      EXPECT_EQ(d.granularity, vtd::Granularity::kDomain);
    } else {
      EXPECT_EQ(d.granularity, vtd::Granularity::kPageOrDevice);
      EXPECT_EQ(d.address.value(), v.base);
      EXPECT_EQ(d.address_mask, v.mask);
    }
  }
}

TEST(PsiCoverTest, EncodesTheLoggedDescriptors) {
  const auto caps = vtd::QemuCapabilities(48, true);
  const auto psi =
      vtd::Encode(InvalidationFor(MakeRange(Iova(0xf9a00000), 32 << 12), DomainId(8), false, caps));
  EXPECT_EQ(psi.qw0, 0x800f2u);
  EXPECT_EQ(psi.qw1, 0xf9a00005u);
  EXPECT_EQ(vtd::Encode(DomainInvalidation(DomainId(1), caps)).qw0, 0x100e2u);
}

TEST(PsiCoverTest, ExactPiecesCoverExactly) {
  for (uint64_t first : {0x1ull, 0x17full, 0x40000ull, 0x3ffffull}) {
    for (uint64_t pages : {1ull, 2ull, 33ull, 511ull, 4097ull}) {
      uint64_t at = first;
      for (const IovaRange& piece : ExactPieces(MakeRange(Iova(first << 12), pages << 12), 18)) {
        EXPECT_EQ(piece.first.value() >> 12, at);
        EXPECT_TRUE(IsAligned(piece.first.value(), piece.size_bytes()));
        at += piece.size_bytes() >> 12;
      }
      EXPECT_EQ(at, first + pages);
    }
  }
}

}  // namespace
}  // namespace viommu
