#include "tests/integration/probes.h"

#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <thread>
#include <utility>

namespace viommu {

bool Eventually(const std::function<bool()>& condition, std::chrono::milliseconds limit) {
  const auto until = std::chrono::steady_clock::now() + kPatience * limit;
  while (std::chrono::steady_clock::now() < until) {
    if (condition()) return true;
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  return condition();
}

uint64_t NumberFromEnvironment(const char* name, uint64_t fallback) {
  const char* value = std::getenv(name);
  return value == nullptr ? fallback : std::strtoull(value, nullptr, 10);
}

ProcessFigures FiguresOf(pid_t pid) {
  ProcessFigures figures;
  const std::string folder = "/proc/" + std::to_string(pid);
  std::ifstream status(folder + "/status");
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with("VmRSS:")) figures.resident_bytes = std::stoull(line.substr(6)) * 1024;
    if (line.starts_with("Threads:")) figures.threads = std::stoull(line.substr(8));
  }
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(folder + "/fd", error)) {
    (void)entry;
    ++figures.descriptors;
  }
  return figures;
}

std::map<std::string, double> Scrape(const std::string& host_and_port) {
  RawConnection connection = RawConnection::Tcp(host_and_port);
  if (!connection.Send("GET /metrics HTTP/1.0\r\nHost: test\r\n\r\n")) return {};
  std::istringstream text(connection.ReadAll(5'000 * kPatience));
  std::map<std::string, double> out;
  for (std::string line; std::getline(text, line);) {
    const size_t space = line.rfind(' ');
    if (line.starts_with("viommu_") && space != std::string::npos) {
      out[line.substr(0, space)] = std::strtod(line.c_str() + space, nullptr);
    }
  }
  return out;
}

RawConnection RawConnection::Tcp(const std::string& host_and_port) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  address.sin_port =
      htons(static_cast<uint16_t>(std::stoi(host_and_port.substr(host_and_port.rfind(':') + 1))));
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0) {
    return RawConnection(fd);
  }
  close(fd);
  return RawConnection(-1);
}

RawConnection RawConnection::Unix(const std::string& path, int type) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::strncpy(address.sun_path, path.c_str(), sizeof(address.sun_path) - 1);
  const int fd = socket(AF_UNIX, type | SOCK_CLOEXEC, 0);
  if (connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0) {
    return RawConnection(fd);
  }
  close(fd);
  return RawConnection(-1);
}

RawConnection::RawConnection(RawConnection&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}

RawConnection::~RawConnection() {
  if (fd_ >= 0) close(fd_);
}

bool RawConnection::Send(const std::string& bytes) {
  size_t sent = 0;
  while (fd_ >= 0 && sent < bytes.size()) {
    pollfd writable{fd_, POLLOUT, 0};
    if (poll(&writable, 1, 5'000) != 1) return false;
    const ssize_t n = send(fd_, bytes.data() + sent, bytes.size() - sent, MSG_NOSIGNAL);
    if (n <= 0) return false;
    sent += static_cast<size_t>(n);
  }
  return fd_ >= 0;
}

std::string RawConnection::ReadAll(int timeout_ms) {
  std::string out;
  char buffer[4096];
  const auto until = std::chrono::steady_clock::now() + std::chrono::milliseconds(timeout_ms);
  while (fd_ >= 0) {
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(
        until - std::chrono::steady_clock::now());
    pollfd readable{fd_, POLLIN, 0};
    if (left.count() <= 0 || poll(&readable, 1, static_cast<int>(left.count())) != 1) break;
    const ssize_t n = recv(fd_, buffer, sizeof(buffer), 0);
    if (n <= 0) break;
    out.append(buffer, static_cast<size_t>(n));
  }
  return out;
}

bool RawConnection::ClosedWithin(int timeout_ms) {
  const auto until = std::chrono::steady_clock::now() + std::chrono::milliseconds(timeout_ms);
  char buffer[4096];
  while (fd_ >= 0 && std::chrono::steady_clock::now() < until) {
    pollfd readable{fd_, POLLIN, 0};
    if (poll(&readable, 1, 50) == 1 && recv(fd_, buffer, sizeof(buffer), MSG_DONTWAIT) <= 0) {
      return true;
    }
  }
  return fd_ < 0;
}

}  // namespace viommu
