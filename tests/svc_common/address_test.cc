#include "svc_common/address.h"

#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstring>
#include <fstream>

namespace viommu {
namespace {

TEST(AddressTest, BothForms) {
  const auto unix_socket = ParseAddress("unix:/tmp/a.sock");
  ASSERT_TRUE(unix_socket.ok());
  EXPECT_TRUE(unix_socket->is_unix());
  EXPECT_TRUE(unix_socket->is_local());
  EXPECT_EQ(unix_socket->ToString(), "unix:/tmp/a.sock");
  EXPECT_EQ(ParseAddress("unix:///tmp/a.sock")->unix_path, "/tmp/a.sock");
  EXPECT_EQ(ParseAddress("[::1]:80")->ToString(), "[::1]:80");
  EXPECT_EQ(ParseAddress("localhost:0")->port, 0);
}

TEST(AddressTest, LocalIsThisMachineOnly) {
  for (const char* local : {"127.0.0.1:1", "127.8.8.8:1", "localhost:1", "[::1]:1"}) {
    EXPECT_TRUE(ParseAddress(local)->is_local()) << local;
  }
  for (const char* remote : {"0.0.0.0:1", "10.0.0.1:1", "[::]:1", "example.org:1"}) {
    EXPECT_FALSE(ParseAddress(remote)->is_local()) << remote;
  }
}

TEST(AddressTest, WhatIsNone) {
  for (const char* wrong : {"", "unix:", "host", "host:", ":80", "host:65536", "host:x"}) {
    EXPECT_TRUE(absl::IsInvalidArgument(ParseAddress(wrong).status())) << wrong;
  }
  EXPECT_FALSE(ParseAddress("unix:/" + std::string(107, 'x')).ok());
}

TEST(AddressTest, TheMemorySocketIsDerivedOnBothSidesAlike) {
  EXPECT_EQ(DefaultMemorySocket(*ParseAddress("unix:/run/hv.sock")), "/run/hv.sock.mem");
  setenv("XDG_RUNTIME_DIR", "/run/user/7", 1);
  EXPECT_EQ(DefaultMemorySocket(*ParseAddress("127.0.0.1:7001")),
            "/run/user/7/viommu/mem-7001.sock");
  EXPECT_EQ(DefaultMemorySocket(*ParseAddress("localhost:7001")),
            "/run/user/7/viommu/mem-7001.sock");
  unsetenv("XDG_RUNTIME_DIR");
}

class StaleSocketTest : public ::testing::Test {
 protected:
  StaleSocketTest() {
    EXPECT_NE(mkdtemp(folder_), nullptr);
    path_ = std::string(folder_) + "/s";
  }
  ~StaleSocketTest() override {
    unlink(path_.c_str());
    rmdir(folder_);
  }
  int Listen(int type) {
    const int fd = socket(AF_UNIX, type, 0);
    sockaddr_un sun{};
    sun.sun_family = AF_UNIX;
    std::strncpy(sun.sun_path, path_.c_str(), sizeof(sun.sun_path) - 1);
    EXPECT_EQ(bind(fd, reinterpret_cast<sockaddr*>(&sun), sizeof(sun)), 0);
    EXPECT_EQ(listen(fd, 1), 0);
    return fd;
  }
  char folder_[32] = "/tmp/viommu-test-XXXXXX";
  std::string path_;
};

TEST_F(StaleSocketTest, ALeftOverFileIsRemoved) {
  close(Listen(SOCK_STREAM));  // the file stays, as after a crash
  ASSERT_EQ(access(path_.c_str(), F_OK), 0);
  EXPECT_TRUE(ClearStaleSocket(path_).ok());
  EXPECT_NE(access(path_.c_str(), F_OK), 0);
}

TEST_F(StaleSocketTest, ALiveListenerOfEitherKindIsLeftAlone) {
  for (const int type : {SOCK_STREAM, SOCK_SEQPACKET}) {
    const int fd = Listen(type);
    EXPECT_TRUE(absl::IsAlreadyExists(ClearStaleSocket(path_))) << type;
    EXPECT_EQ(access(path_.c_str(), F_OK), 0);
    close(fd);
    unlink(path_.c_str());
  }
}

TEST_F(StaleSocketTest, AnotherKindOfFileIsLeftAlone) {
  std::ofstream(path_) << "precious";
  EXPECT_TRUE(absl::IsAlreadyExists(ClearStaleSocket(path_)));
  EXPECT_EQ(access(path_.c_str(), F_OK), 0);
  EXPECT_TRUE(absl::IsNotFound(ClearStaleSocket("/nowhere/at/all")));
}

}  // namespace
}  // namespace viommu
