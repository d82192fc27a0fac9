#include "svc_common/flags.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>

namespace viommu {
namespace {

using ::testing::HasSubstr;

class FlagsTest : public ::testing::Test {
 protected:
  FlagsTest() : flags_("program", "does something") {
    flags_.AddString("name", &name_, "a name");
    flags_.AddBool("force_lazy", &lazy_, "a switch");
    flags_.AddNumber("ram_bytes", &ram_, 4096, uint64_t{1} << 40, "a size");
  }

  absl::StatusOr<FlagSet::Outcome> Parse(const std::vector<std::string>& args) {
    return flags_.Parse(args, [this](const char* variable) -> const char* {
      const auto found = env_.find(variable);
      return found == env_.end() ? nullptr : found->second.c_str();
    });
  }

  std::string name_ = "nobody";
  bool lazy_ = false;
  uint64_t ram_ = 8192;
  std::map<std::string, std::string> env_;
  FlagSet flags_;
};

TEST_F(FlagsTest, DefaultsStayWhenNothingIsGiven) {
  ASSERT_TRUE(Parse({}).ok());
  EXPECT_EQ(name_, "nobody");
  EXPECT_FALSE(lazy_);
  EXPECT_EQ(ram_, 8192u);
}

TEST_F(FlagsTest, EveryFormOfAFlag) {
  ASSERT_TRUE(Parse({"--name=a=b", "--force-lazy", "--ram_bytes", "2m"}).ok());
  EXPECT_EQ(name_, "a=b");
  EXPECT_TRUE(lazy_);
  EXPECT_EQ(ram_, uint64_t{2} << 20);
  ASSERT_TRUE(Parse({"--noforce_lazy"}).ok());
  EXPECT_FALSE(lazy_);
}

TEST_F(FlagsTest, TheCommandLineGoesBeforeTheEnvironment) {
  env_ = {{"VIOMMU_NAME", "env"}, {"VIOMMU_FORCE_LAZY", "1"}, {"VIOMMU_RAM_BYTES", "0x2000"}};
  ASSERT_TRUE(Parse({"--name=line"}).ok());
  EXPECT_EQ(name_, "line");
  EXPECT_TRUE(lazy_);
  EXPECT_EQ(ram_, 0x2000u);
}

TEST_F(FlagsTest, WrongFlagsAreNamed) {
  EXPECT_THAT(Parse({"--nmae=x"}).status().message(), HasSubstr("--nmae"));
  EXPECT_THAT(Parse({"stray"}).status().message(), HasSubstr("stray"));
  EXPECT_THAT(Parse({"--name"}).status().message(), HasSubstr("needs a value"));
  EXPECT_THAT(Parse({"--ram_bytes=12q"}).status().message(), HasSubstr("--ram_bytes"));
  EXPECT_THAT(Parse({"--ram_bytes=1"}).status().message(), HasSubstr("between"));
  EXPECT_THAT(Parse({"--force_lazy=maybe"}).status().message(), HasSubstr("maybe"));
  env_["VIOMMU_RAM_BYTES"] = "much";
  EXPECT_THAT(Parse({}).status().message(), HasSubstr("VIOMMU_RAM_BYTES"));
}

TEST_F(FlagsTest, HelpNamesEveryFlagAndItsDefault) {
  EXPECT_EQ(*Parse({"--help"}), FlagSet::Outcome::kHelp);
  EXPECT_THAT(flags_.Help(), HasSubstr("--ram_bytes"));
  EXPECT_THAT(flags_.Help(), HasSubstr("(default: nobody)"));
}

TEST(ParseNumberTest, NothingThatOverflows) {
  EXPECT_EQ(*ParseNumber("18446744073709551615"), ~uint64_t{0});
  EXPECT_FALSE(ParseNumber("18446744073709551616").ok());
  EXPECT_FALSE(ParseNumber("16777216t").ok());
  EXPECT_FALSE(ParseNumber("-1").ok());
  EXPECT_FALSE(ParseNumber("1kk").ok());
}

}  // namespace
}  // namespace viommu
