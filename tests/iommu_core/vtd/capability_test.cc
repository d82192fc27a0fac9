#include "iommu_core/vtd/capability.h"

#include <gtest/gtest.h>

namespace viommu::vtd {
namespace {

// Registers of a real Skylake server, as a kernel report printed them.
TEST(CapabilityTest, SkylakeServer) {
  const Capabilities c{0x8d2078c106f0466, 0xf020df};
  EXPECT_FALSE(c.caching_mode());
  EXPECT_TRUE(c.page_selective());
  EXPECT_EQ(c.max_address_mask(), 18);
  EXPECT_EQ(c.max_guest_width(), 48);
  EXPECT_FALSE(c.SupportsWidth(39));
  EXPECT_TRUE(c.SupportsWidth(48));
  EXPECT_TRUE(c.large_2m());
  EXPECT_TRUE(c.large_1g());
  EXPECT_EQ(c.fault_records(), 8);
  EXPECT_EQ(c.fault_record_offset(), 0x100u);
  EXPECT_EQ(c.domain_count(), 65536u);
  EXPECT_EQ(c.domain_id_bits(), 16);
  EXPECT_EQ(c.iotlb_offset(), 0x200u);
  EXPECT_TRUE(c.queued_invalidation());
  EXPECT_TRUE(c.device_tlb());
  EXPECT_TRUE(c.pass_through());
  EXPECT_TRUE(c.snoop_control());
}

// The unit that the recorded QEMU cases assume.
TEST(CapabilityTest, Qemu) {
  for (const int width : {39, 48}) {
    const Capabilities c = QemuCapabilities(width, true);
    EXPECT_TRUE(c.caching_mode());
    EXPECT_EQ(c.max_guest_width(), width);
    EXPECT_TRUE(c.SupportsWidth(39));
    EXPECT_EQ(c.SupportsWidth(48), width == 48);
    EXPECT_EQ(c.max_address_mask(), 18);
    EXPECT_EQ(c.fault_records(), 1);
    EXPECT_EQ(c.fault_record_offset(), 0x220u);
    EXPECT_EQ(c.iotlb_offset(), 0xf0u);
    EXPECT_TRUE(c.pass_through());
    EXPECT_FALSE(c.snoop_control());
    EXPECT_FALSE(c.device_tlb());
    EXPECT_FALSE(QemuCapabilities(width, false).caching_mode());
    EXPECT_EQ(QemuCapabilities(width, false).cap | cap::Cm::kMask, c.cap);
  }
}

}  // namespace
}  // namespace viommu::vtd
