#include "hypervisor_svc/memory_broker.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <chrono>
#include <cstring>
#include <functional>
#include <thread>

#include "svc_common/memory_channel.h"
#include "tests/fakes/temp_folder.h"

namespace viommu {
namespace {

constexpr uint64_t kRam = uint64_t{1} << 20;

// Waits for what another thread is about to do; the test fails after five seconds.
bool Eventually(const std::function<bool()>& condition) {
  for (int i = 0; i < 1000; ++i) {
    if (condition()) return true;
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  return false;
}

class MemoryBrokerTest : public ::testing::Test {
 protected:
  MemoryBrokerTest() : path_(folder_.File("m.sock")) {
    auto broker = MemoryBroker::Start(path_, {uint64_t{4} << 20, 2});
    EXPECT_TRUE(broker.ok()) << broker.status();
    broker_ = *std::move(broker);
  }

  TempFolder folder_;
  std::string path_;
  std::unique_ptr<MemoryBroker> broker_;
};

TEST_F(MemoryBrokerTest, BothSidesSeeTheSameMemory) {
  const auto granted = GrantedMemory::Request(path_, kRam);
  ASSERT_TRUE(granted.ok()) << granted.status();
  const auto region = broker_->Find((*granted)->token());
  ASSERT_NE(region, nullptr);
  ASSERT_TRUE((*granted)->memory().Write64(PhysAddr(0x1000), 0x1234));
  EXPECT_EQ(region->Read64(PhysAddr(0x1000)), 0x1234u);
  EXPECT_EQ(broker_->Find(std::string(32, '0')), nullptr);
}

TEST_F(MemoryBrokerTest, TheGuestCanNeitherShrinkNorUnsealIt) {
  const auto granted = GrantedMemory::Request(path_, kRam);
  ASSERT_TRUE(granted.ok());
  const int fd = (*granted)->memory().fd();
  const int seals = fcntl(fd, F_GET_SEALS);
  EXPECT_EQ(seals & (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL),
            F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL);
  EXPECT_NE(ftruncate(fd, 4096), 0);
  EXPECT_NE(ftruncate(fd, 2 * kRam), 0);
  EXPECT_NE(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE), 0);
}

TEST_F(MemoryBrokerTest, OnlyTheOwnerMayConnect) {
  struct stat st {};
  ASSERT_EQ(stat(path_.c_str(), &st), 0);
  EXPECT_EQ(st.st_mode & 0777, 0600u);
}

TEST_F(MemoryBrokerTest, ARegionOutlivesItsConnectionOnlyWhileASessionHoldsIt) {
  auto first = GrantedMemory::Request(path_, kRam);
  ASSERT_TRUE(first.ok());
  const std::string token = (*first)->token();
  std::shared_ptr<SharedMemory> held = broker_->Find(token);
  first->reset();
  // Another guest's request is answered after the disconnect was handled or before; wait for it.
  EXPECT_TRUE(Eventually([&] { return held.use_count() == 1; }));
  EXPECT_NE(broker_->Find(token), nullptr);
  held.reset();
  EXPECT_EQ(broker_->Find(token), nullptr);
}

TEST_F(MemoryBrokerTest, LimitsAreNamed) {
  EXPECT_TRUE(absl::IsResourceExhausted(GrantedMemory::Request(path_, 5 << 20).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(GrantedMemory::Request(path_, 4097).status()));
  const auto a = GrantedMemory::Request(path_, kRam);
  const auto b = GrantedMemory::Request(path_, kRam);
  ASSERT_TRUE(a.ok() && b.ok());
  const absl::Status third = GrantedMemory::Request(path_, kRam).status();
  EXPECT_TRUE(absl::IsResourceExhausted(third) || absl::IsUnavailable(third)) << third;
}

TEST_F(MemoryBrokerTest, RubbishIsRefusedAndTheNextGuestServed) {
  const int fd = socket(AF_UNIX, SOCK_SEQPACKET, 0);
  sockaddr_un sun{};
  sun.sun_family = AF_UNIX;
  std::strncpy(sun.sun_path, path_.c_str(), sizeof(sun.sun_path) - 1);
  ASSERT_EQ(connect(fd, reinterpret_cast<sockaddr*>(&sun), sizeof(sun)), 0);
  ASSERT_EQ(send(fd, "rubbish", 7, 0), 7);
  MemoryReply reply;
  ASSERT_EQ(recv(fd, &reply, sizeof(reply), 0), static_cast<ssize_t>(sizeof(reply)));
  EXPECT_EQ(reply.code, static_cast<uint32_t>(absl::StatusCode::kInvalidArgument));
  close(fd);
  EXPECT_TRUE(GrantedMemory::Request(path_, kRam).ok());
}

TEST_F(MemoryBrokerTest, TheSocketIsGoneWithTheBroker) {
  broker_.reset();
  EXPECT_NE(access(path_.c_str(), F_OK), 0);
  EXPECT_TRUE(absl::IsUnavailable(GrantedMemory::Request(path_, kRam).status()));
}

}  // namespace
}  // namespace viommu
