#include "svc_common/credentials.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace viommu {
namespace {

using ::testing::HasSubstr;

Address At(const char* text) { return *ParseAddress(text); }

TEST(CredentialsTest, ThisMachineNeedsNone) {
  EXPECT_TRUE(MakeServerCredentials(At("unix:/tmp/x"), {}).ok());
  EXPECT_TRUE(MakeServerCredentials(At("127.0.0.1:0"), {}).ok());
  EXPECT_TRUE(MakeChannelCredentials(At("localhost:1"), {}).ok());
}

TEST(CredentialsTest, BeyondItIsRefusedUnlessSaidSo) {
  const auto refused = MakeServerCredentials(At("0.0.0.0:0"), {});
  EXPECT_TRUE(absl::IsInvalidArgument(refused.status()));
  EXPECT_THAT(refused.status().message(), HasSubstr("--insecure"));
  EXPECT_TRUE(absl::IsInvalidArgument(MakeChannelCredentials(At("10.0.0.1:1"), {}).status()));
  TlsFlags insecure;
  insecure.insecure = true;
  EXPECT_TRUE(MakeServerCredentials(At("0.0.0.0:0"), insecure).ok());
}

TEST(CredentialsTest, AllThreeFilesAndReadable) {
  TlsFlags tls;
  tls.cert = "/nowhere/cert.pem";
  EXPECT_THAT(MakeServerCredentials(At("127.0.0.1:0"), tls).status().message(),
              HasSubstr("all three"));
  tls.key = tls.ca = tls.cert;
  EXPECT_THAT(MakeServerCredentials(At("127.0.0.1:0"), tls).status().message(),
              HasSubstr("/nowhere/cert.pem"));
}

}  // namespace
}  // namespace viommu
