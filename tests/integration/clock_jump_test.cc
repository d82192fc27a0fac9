// The wall clock is set while the pair is under load: no session is taken for dead, no call for
// late, and one that is dead is still noticed. Debian's libfaketime stands in for the
// administrator.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <string>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "tests/integration/load_client.h"
#include "tests/integration/probes.h"
#include "tests/integration/service_pair.h"

namespace viommu {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

// What processes that are started within its life take for wall time.
class SettableClock {
 public:
  explicit SettableClock(const std::string& file) {
    const int fd = open(file.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    EXPECT_EQ(ftruncate(fd, sizeof(int64_t)), 0);
    void* page = mmap(nullptr, sizeof(int64_t), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    EXPECT_NE(page, MAP_FAILED);
    close(fd);
    offset_ns_ = static_cast<int64_t*>(page);
    setenv("VIOMMU_TEST_CLOCK", file.c_str(), 1);
    setenv("LD_PRELOAD", VIOMMU_SETTABLE_CLOCK, 1);
  }
  ~SettableClock() {
    unsetenv("LD_PRELOAD");
    unsetenv("VIOMMU_TEST_CLOCK");
    munmap(offset_ns_, sizeof(int64_t));
  }
  // Beside the true time.
  void Set(absl::Duration offset) {
    __atomic_store_n(offset_ns_, absl::ToInt64Nanoseconds(offset), __ATOMIC_RELAXED);
  }

 private:
  int64_t* offset_ns_ = nullptr;
};

TEST(ClockJumpTest, NothingIsTakenForLateOrDeadWhenTheWallClockIsSet) {
  // A sanitizer's runtime and the preloaded library each want to be the first.
  if (kSanitized) GTEST_SKIP() << "sanitized";
  ServicePair pair;
  SettableClock clock(pair.folder().File("clock"));
  pair.StartHypervisor();  // a session lives half a second without its guest
  pair.StartGuest({"--vcpus=4"});
  const std::vector<Target> targets = {MakeTarget(pair.guest(), 0x18),
                                       MakeTarget(pair.guest(), 0x20)};
  const std::string session = pair.guest().Status()->session_ids(0);
  LoadClient load({.guest_address = pair.guest_address, .targets = targets});
  load.Start();
  for (const absl::Duration offset : {absl::Hours(1), -absl::Hours(1), absl::Hours(720),
                                      -absl::Seconds(2), absl::ZeroDuration()}) {
    clock.Set(offset);
    const uint64_t from = load.done();
    EXPECT_TRUE(Eventually([&] { return load.done() >= from + 60; })) << "hangs at " << offset;
  }
  load.Stop();
  History history;
  history.ops = load.TakeOps();
  EXPECT_THAT(CheckHistory(history), IsEmpty());
  for (const Op& op : history.ops) EXPECT_EQ(op.code, absl::StatusCode::kOk);
  const auto status = pair.guest().Status();
  ASSERT_TRUE(status.ok());
  EXPECT_THAT(CheckTotals(history, {status->map_count(), status->unmap_count(),
                                    status->iova_allocated_bytes()}),
              IsEmpty());
  EXPECT_EQ(status->session_ids(0), session);
  EXPECT_THAT(pair.guest_process().Log(), Not(HasSubstr("lost the hypervisor")));
  EXPECT_THAT(SweepMappings(pair.hypervisor(), session, targets, LiveMappings(history)), IsEmpty());
  EXPECT_EQ(Scrape(pair.hypervisor_metrics())["viommu_shadow_mismatches_total"], 0);

  // Set back by an hour just then, its death is still noticed within its time to live.
  clock.Set(-absl::Hours(1));
  pair.KillGuest();
  EXPECT_TRUE(Eventually([&] { return Scrape(pair.hypervisor_metrics())["viommu_sessions"] == 0; }))
      << pair.hypervisor_process().Log();

  // The services did see it: the last line is of an hour ago.
  pair.hypervisor_process().Signal(SIGTERM);
  EXPECT_EQ(pair.hypervisor_process().Wait(), 0);
  const std::string log = pair.hypervisor_process().Log();
  const std::string last = log.substr(log.rfind('\n', log.size() - 2) + 1);
  absl::Time written;
  ASSERT_TRUE(absl::ParseTime("%Y-%m-%dT%H:%M:%E*S", last.substr(0, last.find(' ')),
                              absl::LocalTimeZone(), &written, nullptr))
      << log;
  EXPECT_LT(absl::AbsDuration(absl::Now() - written - absl::Hours(1)), absl::Minutes(10)) << log;
}

}  // namespace
}  // namespace viommu
