#include "iommu_core/load/memory_image.h"

#include <fstream>
#include <map>
#include <string>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "iommu_core/load/table_listing.h"
#include "iommu_core/load/trace_line.h"
#include "nlohmann/json.hpp"
#include "tests/iommu_core/load/temp_file.h"

namespace viommu {
namespace {

using testing::HasSubstr;

std::string Record(uint64_t address, char fill) {
  std::string record(reinterpret_cast<const char*>(&address), sizeof(address));
  record += std::string("table\0\0\0", 8);
  return record + std::string(4096, fill);
}

TEST(MemoryImage, SparseAndFlat) {
  for (bool gzip : {false, true}) {
    TempFile sparse("VTDPGS01" + Record(0x5000, 1) + Record(0x2000, 2), gzip);
    const auto image = ReadMemoryImage(sparse.path());
    ASSERT_TRUE(image.ok()) << image.status();
    EXPECT_TRUE(image->sparse);
    EXPECT_EQ(image->end, 0x6000u);
    EXPECT_EQ(image->pages, (std::vector<uint64_t>{0x2000, 0x5000}));
    EXPECT_EQ(image->memory->Read64(PhysAddr(0x5008)), 0x0101010101010101u);
    EXPECT_EQ(image->memory->Read64(PhysAddr(0x3000)),
              std::nullopt);  // not in the file

    TempFile flat(std::string(4096, '\0') + std::string(4096, 3) + std::string(4096, '\0'), gzip);
    const auto ram = ReadMemoryImage(flat.path());
    ASSERT_TRUE(ram.ok()) << ram.status();
    EXPECT_FALSE(ram->sparse);
    EXPECT_EQ(ram->end, 0x3000u);
    EXPECT_EQ(ram->pages, (std::vector<uint64_t>{0x1000}));
    EXPECT_EQ(ram->memory->Read64(PhysAddr(0x1000)), 0x0303030303030303u);
    EXPECT_EQ(ram->memory->Read64(PhysAddr(0x2000)), 0u);
    EXPECT_EQ(ram->memory->Read64(PhysAddr(0x3000)), std::nullopt);
  }
}

TEST(MemoryImage, Refuses) {
  const std::string one = Record(0x2000, 1);
  struct Case {
    std::string content;
    const char* want;
  };
  for (const Case& c : {Case{"#!/bin/sh\necho\n", "is no memory image: neither"},
                        Case{"", "is no memory image: empty"},
                        Case{"VTDPGS01", "is no memory image: no page in it"},
                        Case{"VTDPGS01" + one.substr(0, 100), "is truncated in record 0"},
                        Case{"VTDPGS01" + one + one.substr(0, 4), "is truncated in record 1"},
                        Case{"VTDPGS01" + one + one, "page 0x2000 is in it twice"},
                        Case{"VTDPGS01" + Record(0x2001, 1), "record 0 has address 0x2001"}}) {
    TempFile file(c.content);
    const auto image = ReadMemoryImage(file.path());
    ASSERT_FALSE(image.ok()) << c.want;
    EXPECT_THAT(std::string(image.status().message()), HasSubstr(c.want));
  }
  EXPECT_FALSE(ReadMemoryImage("/nonexistent").ok());
  EXPECT_FALSE(ReadMemoryImage("/").ok());
  const std::string whole = ReadAll(
      absl::StrCat(VIOMMU_TEST_DATA, "/linux/6.1_cmon_strict0_snap/snap0/table_pages.bin.gz"));
  TempFile cut(whole.substr(0, whole.size() / 2));
  EXPECT_THAT(std::string(ReadMemoryImage(cut.path()).status().message()),
              HasSubstr("is truncated (gzip)"));
}

class SnapshotTest : public testing::TestWithParam<const char*> {
 protected:
  std::string File(const char* name) const {
    return absl::StrCat(VIOMMU_TEST_DATA, "/linux/", GetParam(), "/snap0/", name);
  }
};

// The tables of a real guest hold exactly what its trace says is mapped, page by page.
TEST_P(SnapshotTest, ListingEqualsTheTrace) {
  const auto image = ReadMemoryImage(File("table_pages.bin.gz"));
  ASSERT_TRUE(image.ok()) << image.status();
  const nlohmann::json snapshot = nlohmann::json::parse(std::ifstream(File("snapshot.json")));
  const auto reg = [&](const char* name) {
    return std::stoull(snapshot["registers"][name].get<std::string>(), nullptr, 16);
  };
  WalkRules rules;
  rules.caps = {reg("CAP"), reg("ECAP")};
  rules.haw_bits = rules.caps.max_guest_width();
  const auto devices =
      ListDevices(*image->memory, rules, PhysAddr(vtd::rtaddr::Rta::kMask & reg("RTADDR")));
  EXPECT_EQ(devices.size(), snapshot["contexts"].size());
  const auto list = ListMappings(*image->memory, rules, devices, std::nullopt);
  ASSERT_TRUE(list.ok()) << list.status();

  std::map<std::pair<uint16_t, uint64_t>, uint64_t> want;
  std::ifstream expected(File("expected_mappings.jsonl"));
  for (std::string line; std::getline(expected, line);) {
    const nlohmann::json j = nlohmann::json::parse(line);
    const uint64_t iova = std::stoull(j["iova"].get<std::string>(), nullptr, 16);
    const uint64_t pa = std::stoull(j["pa"].get<std::string>(), nullptr, 16);
    for (const auto& device : j["devices"]) {
      const auto sid = ParseBdf(device.get<std::string>());
      ASSERT_TRUE(sid.has_value());
      for (uint64_t at = 0; at < j["size"].get<uint64_t>(); at += kPageSize) {
        want[{*sid, iova + at}] = pa + at;
      }
    }
  }
  ASSERT_GT(want.size(), 1000u);
  std::map<std::pair<uint16_t, uint64_t>, uint64_t> got;
  for (size_t i = 0; i < list->size(); ++i) {
    const ListedMapping& m = (*list)[i];
    for (uint64_t at = 0; at < m.range.size_bytes(); at += kPageSize) {
      got[{m.source_id.value(), m.range.first.value() + at}] = m.guest_pa.value() + at;
    }
    if (i == 0) continue;
    // Maximal: a neighbour that continued it would have been joined.
    const ListedMapping& before = (*list)[i - 1];
    EXPECT_FALSE(before.source_id == m.source_id && before.range.end == m.range.first &&
                 before.guest_pa + before.range.size_bytes() == m.guest_pa &&
                 before.access == m.access);
  }
  EXPECT_EQ(got, want);

  const SourceId nvme = MakeSourceId(0, 3, 0);
  const auto one = ListMappings(*image->memory, rules, devices, nvme);
  ASSERT_TRUE(one.ok());
  ASSERT_FALSE(one->empty());
  for (const ListedMapping& m : *one) EXPECT_EQ(m.source_id, nvme);
}

INSTANTIATE_TEST_SUITE_P(BothWidths, SnapshotTest,
                         testing::Values("6.1_cmon_strict0_snap", "6.1_cmoff_strict0_snap_aw48"));

TEST(TableListing, Names) { EXPECT_EQ(BdfName(SourceId(0x4207)), "0000:42:00.7"); }

}  // namespace
}  // namespace viommu
