#include "svc_common/memory_channel.h"

#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"

namespace viommu {
namespace {

// A hypervisor answers within microseconds; one that is stopped must not hang its guest.
constexpr timeval kReplyTimeout{5, 0};

}  // namespace

absl::StatusOr<std::unique_ptr<GrantedMemory>> GrantedMemory::Request(
    const std::string& socket_path, uint64_t size_bytes) {
  sockaddr_un sun{};
  sun.sun_family = AF_UNIX;
  if (socket_path.empty() || socket_path.size() >= sizeof(sun.sun_path)) {
    return absl::InvalidArgumentError(
        absl::StrCat("'", socket_path, "' is not a usable memory socket path"));
  }
  std::memcpy(sun.sun_path, socket_path.data(), socket_path.size());
  const int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
  if (fd < 0) return absl::ErrnoToStatus(errno, "socket");
  absl::Cleanup close_fd = [fd] { close(fd); };
  setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &kReplyTimeout, sizeof(kReplyTimeout));
  setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &kReplyTimeout, sizeof(kReplyTimeout));
  if (connect(fd, reinterpret_cast<sockaddr*>(&sun), sizeof(sun)) != 0) {
    return absl::UnavailableError(
        absl::StrCat("no hypervisor on memory socket ", socket_path, ": ", std::strerror(errno),
                     " (is hypervisor_svc running? --memory_socket names its socket)"));
  }
  MemoryRequest request;
  request.size_bytes = size_bytes;
  if (send(fd, &request, sizeof(request), MSG_NOSIGNAL) != sizeof(request)) {
    return absl::UnavailableError(absl::StrCat("memory socket: ", std::strerror(errno)));
  }

  MemoryReply reply;
  iovec iov{&reply, sizeof(reply)};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))];
  msghdr message{};
  message.msg_iov = &iov;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof(control);
  const ssize_t got = recvmsg(fd, &message, MSG_CMSG_CLOEXEC);
  int region = -1;
  if (const cmsghdr* c = CMSG_FIRSTHDR(&message);
      got > 0 && c != nullptr && c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS) {
    std::memcpy(&region, CMSG_DATA(c), sizeof(region));
  }
  absl::Cleanup close_region = [&region] {
    if (region >= 0) close(region);
  };
  if (got != sizeof(reply)) {
    return absl::UnavailableError("the memory socket gave no answer");
  }
  reply.token[sizeof(reply.token) - 1] = '\0';
  reply.message[sizeof(reply.message) - 1] = '\0';
  if (reply.code != 0) {
    return absl::Status(static_cast<absl::StatusCode>(reply.code), reply.message);
  }
  if (region < 0) return absl::InternalError("the memory socket's answer holds no descriptor");
  absl::StatusOr<std::unique_ptr<SharedMemory>> memory = SharedMemory::FromFd(region, size_bytes);
  if (!memory.ok()) return memory.status();
  std::move(close_region).Cancel();  // the memory owns it now
  std::move(close_fd).Cancel();
  return std::unique_ptr<GrantedMemory>(new GrantedMemory(fd, reply.token, *std::move(memory)));
}

absl::Status GrantedMemory::Adopt(GrantedMemory& fresh) {
  if (absl::Status status = memory_->Adopt(*fresh.memory_); !status.ok()) return status;
  std::swap(connection_, fresh.connection_);
  std::swap(token_, fresh.token_);
  return absl::OkStatus();
}

GrantedMemory::~GrantedMemory() { close(connection_); }

}  // namespace viommu
