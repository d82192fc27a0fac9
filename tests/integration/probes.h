// How tests look at services from outside: /proc, the metrics endpoint, raw sockets. And how long
// they are patient.
#ifndef VIOMMU_TESTS_INTEGRATION_PROBES_H_
#define VIOMMU_TESTS_INTEGRATION_PROBES_H_

#include <sys/types.h>

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <string>

namespace viommu {

// Sanitized services are slower; nothing here measures speed, so it only waits longer.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
inline constexpr int kPatience = 5;
inline constexpr bool kSanitized = true;
#else
inline constexpr int kPatience = 1;
inline constexpr bool kSanitized = false;
#endif

// Whether `condition` came true in time, which sanitizers stretch.
bool Eventually(const std::function<bool()>& condition,
                std::chrono::milliseconds limit = std::chrono::seconds(20));
// Value of an environment variable that makes a test long; `fallback` if not set.
uint64_t NumberFromEnvironment(const char* name, uint64_t fallback);

// A process from outside; all 0 once it is gone.
struct ProcessFigures {
  uint64_t resident_bytes = 0;
  uint64_t threads = 0;
  uint64_t descriptors = 0;
};
ProcessFigures FiguresOf(pid_t pid);

// "name{labels}" -> value; empty if the endpoint gives no answer within five seconds.
std::map<std::string, double> Scrape(const std::string& host_and_port);

// A socket without any protocol. Connects to 127.0.0.1:port, or to a unix socket.
class RawConnection {
 public:
  static RawConnection Tcp(const std::string& host_and_port);
  static RawConnection Unix(const std::string& path, int type);
  RawConnection(RawConnection&& other) noexcept;
  ~RawConnection();

  bool connected() const { return fd_ >= 0; }
  // False: the other side no longer takes it.
  bool Send(const std::string& bytes);
  // What arrives until the other side closes, or until `timeout_ms` have passed.
  std::string ReadAll(int timeout_ms);
  // Whether the other side closed within `timeout_ms`.
  bool ClosedWithin(int timeout_ms);

 private:
  explicit RawConnection(int fd) : fd_(fd) {}
  int fd_ = -1;
};

}  // namespace viommu

#endif  // VIOMMU_TESTS_INTEGRATION_PROBES_H_
