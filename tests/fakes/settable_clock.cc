// Preloaded into a service by clock_jump_test: wall time is the true one plus the nanoseconds that
// stand in the file VIOMMU_TEST_CLOCK, at every moment; the monotonic clock is left alone. As in
// the kernel, waits until a wall time are set with it: Abseil's, and with them gRPC's, are such.
// (libfaketime leaves futexes alone, so that a wait lasts as long as the clock was set by.)
#include <dlfcn.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdarg>
#include <cstdint>
#include <cstdlib>

namespace {

constexpr int64_t kSecond = 1'000'000'000;
// How soon a wait notices that the clock was set.
constexpr int64_t kSlice = kSecond / 50;

int64_t Offset() {
  static const int64_t* const offset = [] {
    static const int64_t none = 0;
    const char* path = getenv("VIOMMU_TEST_CLOCK");
    const int fd = path == nullptr ? -1 : open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return &none;
    void* page = mmap(nullptr, sizeof(int64_t), PROT_READ, MAP_SHARED, fd, 0);
    close(fd);
    return page == MAP_FAILED ? &none : static_cast<const int64_t*>(page);
  }();
  return __atomic_load_n(offset, __ATOMIC_RELAXED);
}

template <typename Fn>
Fn* Next(const char* name) {
  return reinterpret_cast<Fn*>(dlsym(RTLD_NEXT, name));
}

int64_t ToNs(const timespec& time) { return time.tv_sec * kSecond + time.tv_nsec; }
timespec ToTimespec(int64_t ns) { return {ns / kSecond, ns % kSecond}; }

int64_t TrueWallNs() {
  static auto* const real = Next<int(clockid_t, timespec*)>("clock_gettime");
  timespec now{};
  real(CLOCK_REALTIME, &now);
  return ToNs(now);
}

}  // namespace

extern "C" {

int clock_gettime(clockid_t clock, timespec* time) noexcept {
  static auto* const real = Next<int(clockid_t, timespec*)>("clock_gettime");
  const int result = real(clock, time);
  if (result == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) {
    *time = ToTimespec(ToNs(*time) + Offset());
  }
  return result;
}

int gettimeofday(timeval* time, void*) noexcept {
  const timespec now = ToTimespec(TrueWallNs() + Offset());
  *time = {now.tv_sec, now.tv_nsec / 1000};
  return 0;
}

time_t time(time_t* out) noexcept {
  const time_t now = (TrueWallNs() + Offset()) / kSecond;
  if (out != nullptr) *out = now;
  return now;
}

long syscall(long number, ...) noexcept {
  static auto* const real = Next<long(long, ...)>("syscall");
  va_list list;
  va_start(list, number);
  long args[6];
  for (long& arg : args) arg = va_arg(list, long);
  va_end(list);
  const auto* until = reinterpret_cast<const timespec*>(args[3]);
  const bool waits_for_wall_time = number == SYS_futex && until != nullptr &&
                                   (args[1] & FUTEX_CLOCK_REALTIME) != 0 &&
                                   (args[1] & FUTEX_CMD_MASK) == FUTEX_WAIT_BITSET;
  if (!waits_for_wall_time) {
    return real(number, args[0], args[1], args[2], args[3], args[4], args[5]);
  }
  const int64_t deadline = ToNs(*until);
  for (;;) {
    const int64_t now = TrueWallNs();
    const timespec slice = ToTimespec(now + std::min(kSlice, deadline - now - Offset()));
    const long result = real(number, args[0], args[1], args[2], &slice, args[4], args[5]);
    if (result == 0 || errno != ETIMEDOUT) return result;
    if (TrueWallNs() + Offset() >= deadline) {
      errno = ETIMEDOUT;
      return -1;
    }
  }
}

}  // extern "C"
