#include "svc_common/address.h"

#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace viommu {
namespace {

constexpr size_t kMaxSocketPath = sizeof(sockaddr_un::sun_path) - 1;

std::string RuntimeFolder() {
  const char* xdg = std::getenv("XDG_RUNTIME_DIR");
  if (xdg != nullptr && *xdg == '/') return absl::StrCat(xdg, "/viommu");
  return absl::StrCat("/tmp/viommu-", getuid());
}

}  // namespace

bool Address::is_local() const {
  return is_unix() || host == "localhost" || host == "::1" || absl::StartsWith(host, "127.");
}

std::string Address::ToString() const {
  if (is_unix()) return absl::StrCat("unix:", unix_path);
  if (host.find(':') != std::string::npos) return absl::StrCat("[", host, "]:", port);
  return absl::StrCat(host, ":", port);
}

absl::StatusOr<Address> ParseAddress(const std::string& text) {
  Address address;
  if (absl::StartsWith(text, "unix:")) {
    address.unix_path = text.substr(5);
    if (absl::StartsWith(address.unix_path, "///")) address.unix_path.erase(0, 2);
    if (address.unix_path.empty() || address.unix_path.size() > kMaxSocketPath) {
      return absl::InvalidArgumentError(absl::StrCat("'", text, "': a unix socket path has 1 to ",
                                                     kMaxSocketPath, " characters"));
    }
    return address;
  }
  const size_t colon = text.rfind(':');
  uint32_t port = 0;
  if (colon == std::string::npos || colon == 0 ||
      !absl::SimpleAtoi(text.substr(colon + 1), &port) || port > 65535) {
    return absl::InvalidArgumentError(
        absl::StrCat("'", text, "' is not an address: write unix:PATH or HOST:PORT"));
  }
  address.host = text.substr(0, colon);
  if (address.host.size() > 2 && address.host.front() == '[' && address.host.back() == ']') {
    address.host = address.host.substr(1, address.host.size() - 2);
  }
  address.port = static_cast<uint16_t>(port);
  return address;
}

absl::Status ClearStaleSocket(const std::string& path) {
  const size_t slash = path.rfind('/');
  const std::string folder = slash == std::string::npos ? "." : path.substr(0, slash + 1);
  struct stat st {};
  if (stat(folder.c_str(), &st) != 0 || !S_ISDIR(st.st_mode)) {
    return absl::NotFoundError(
        absl::StrCat("cannot listen on unix:", path, ": no folder ", folder));
  }
  if (access(folder.c_str(), W_OK) != 0) {
    return absl::PermissionDeniedError(
        absl::StrCat("cannot listen on unix:", path, ": folder ", folder, " is not writable"));
  }
  if (lstat(path.c_str(), &st) != 0) return absl::OkStatus();
  if (!S_ISSOCK(st.st_mode)) {
    return absl::AlreadyExistsError(
        absl::StrCat("cannot listen on unix:", path, ": the file exists and is no socket"));
  }
  // Stream and seqpacket sockets refuse each other with EPROTOTYPE, which also proves a listener.
  const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (fd < 0) return absl::ErrnoToStatus(errno, "socket");
  sockaddr_un sun{};
  sun.sun_family = AF_UNIX;
  std::strncpy(sun.sun_path, path.c_str(), kMaxSocketPath);
  const bool listener =
      connect(fd, reinterpret_cast<sockaddr*>(&sun), sizeof(sun)) == 0 || errno != ECONNREFUSED;
  close(fd);
  if (listener) {
    return absl::AlreadyExistsError(absl::StrCat(
        "cannot listen on unix:", path, ": address in use, another process listens there"));
  }
  if (unlink(path.c_str()) != 0) {
    return absl::ErrnoToStatus(errno, absl::StrCat("cannot remove the stale socket ", path));
  }
  return absl::OkStatus();
}

std::string DefaultMemorySocket(const Address& grpc) {
  if (grpc.is_unix()) return absl::StrCat(grpc.unix_path, ".mem");
  return absl::StrCat(RuntimeFolder(), "/mem-", grpc.port, ".sock");
}

absl::Status PrepareRuntimeFolder() {
  const std::string folder = RuntimeFolder();
  if (mkdir(folder.c_str(), 0700) != 0 && errno != EEXIST) {
    return absl::ErrnoToStatus(errno, absl::StrCat("cannot make the folder ", folder));
  }
  struct stat st {};
  if (lstat(folder.c_str(), &st) != 0 || !S_ISDIR(st.st_mode) || st.st_uid != getuid() ||
      (st.st_mode & 077) != 0) {
    return absl::PermissionDeniedError(absl::StrCat(
        folder, " must be a folder that only its owner may enter (or give --memory_socket)"));
  }
  return absl::OkStatus();
}

}  // namespace viommu
