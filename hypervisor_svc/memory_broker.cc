#include "hypervisor_svc/memory_broker.h"

#include <poll.h>
#include <spdlog/spdlog.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <vector>

#include "absl/strings/str_cat.h"
#include "iommu_core/base/errors.h"
#include "svc_common/address.h"
#include "svc_common/memory_channel.h"
#include "svc_common/random_id.h"

namespace viommu {
namespace {

bool SendReply(int connection, const MemoryReply& reply, int region) {
  iovec iov{const_cast<MemoryReply*>(&reply), sizeof(reply)};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  msghdr message{};
  message.msg_iov = &iov;
  message.msg_iovlen = 1;
  if (region >= 0) {
    message.msg_control = control;
    message.msg_controllen = sizeof(control);
    cmsghdr* c = CMSG_FIRSTHDR(&message);
    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    c->cmsg_len = CMSG_LEN(sizeof(int));
    std::memcpy(CMSG_DATA(c), &region, sizeof(region));
  }
  return sendmsg(connection, &message, MSG_NOSIGNAL | MSG_DONTWAIT) == sizeof(reply);
}

}  // namespace

absl::StatusOr<std::unique_ptr<MemoryBroker>> MemoryBroker::Start(std::string path, Limits limits) {
  sockaddr_un sun{};
  sun.sun_family = AF_UNIX;
  if (path.empty() || path.size() >= sizeof(sun.sun_path)) {
    return absl::InvalidArgumentError(
        absl::StrCat("--memory_socket: '", path, "' is not a usable socket path"));
  }
  std::memcpy(sun.sun_path, path.data(), path.size());
  if (absl::Status status = ClearStaleSocket(path); !status.ok()) return status;
  const int listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (listener < 0) return absl::ErrnoToStatus(errno, "socket");
  const mode_t mask = umask(0177);
  const int bound = bind(listener, reinterpret_cast<sockaddr*>(&sun), sizeof(sun));
  const int error = errno;
  umask(mask);
  if (bound != 0 || listen(listener, 64) != 0) {
    close(listener);
    return absl::UnavailableError(
        absl::StrCat("cannot listen on memory socket ", path, ": ", std::strerror(error)));
  }
  const int wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  auto broker =
      std::unique_ptr<MemoryBroker>(new MemoryBroker(std::move(path), limits, listener, wake));
  broker->thread_ = std::thread([raw = broker.get()] { raw->Serve(); });
  return broker;
}

MemoryBroker::~MemoryBroker() {
  const uint64_t one = 1;
  if (write(wake_, &one, sizeof(one)) != sizeof(one)) spdlog::error("memory broker: cannot stop");
  thread_.join();
  close(listener_);
  close(wake_);
  unlink(path_.c_str());
}

std::shared_ptr<SharedMemory> MemoryBroker::Find(const std::string& token) {
  absl::MutexLock lock(&mu_);
  const auto found = regions_.find(token);
  return found == regions_.end() ? nullptr : found->second.memory.lock();
}

void MemoryBroker::Serve() {
  std::vector<pollfd> fds = {{wake_, POLLIN, 0}, {listener_, POLLIN, 0}};
  while (true) {
    if (poll(fds.data(), fds.size(), -1) < 0 && errno != EINTR) break;
    if (fds[0].revents != 0) break;
    for (size_t i = fds.size(); i-- > 2;) {
      if (fds[i].revents == 0) continue;
      if ((fds[i].revents & POLLIN) != 0 && Answer(fds[i].fd)) continue;
      Disconnected(fds[i].fd);
      close(fds[i].fd);
      fds.erase(fds.begin() + static_cast<ptrdiff_t>(i));
    }
    if ((fds[1].revents & POLLIN) != 0) {
      const int connection = accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK);
      // Idle connections are bounded as regions are; a guest that meets the bound is told so.
      if (connection >= 0 && fds.size() - 2 >= limits_.max_regions) {
        Refuse(connection, errors::LimitReached("--max_sessions", limits_.max_regions));
        close(connection);
      } else if (connection >= 0) {
        fds.push_back({connection, POLLIN, 0});
      }
    }
  }
  for (size_t i = 2; i < fds.size(); ++i) close(fds[i].fd);
}

bool MemoryBroker::Refuse(int connection, const absl::Status& status) {
  refused_.fetch_add(1, std::memory_order_relaxed);
  MemoryReply reply;
  reply.code = static_cast<uint32_t>(status.code());
  std::strncpy(reply.message, std::string(status.message()).c_str(), sizeof(reply.message) - 1);
  SendReply(connection, reply, -1);
  return false;
}

bool MemoryBroker::Answer(int connection) {
  MemoryRequest request;
  const ssize_t got = recv(connection, &request, sizeof(request), MSG_DONTWAIT | MSG_TRUNC);
  if (got <= 0) return got < 0 && (errno == EAGAIN || errno == EINTR);
  if (got != sizeof(request) || request.magic != MemoryRequest::kMagic) {
    return Refuse(connection, absl::InvalidArgumentError("not a memory request"));
  }
  if (request.size_bytes > limits_.max_region_bytes) {
    return Refuse(connection,
                  errors::LimitReached("--max_guest_ram_bytes", limits_.max_region_bytes));
  }
  {
    absl::MutexLock lock(&mu_);
    if (token_of_connection_.contains(connection)) {
      return Refuse(connection, absl::FailedPreconditionError("one region for each connection"));
    }
    absl::erase_if(regions_, [](const auto& r) { return r.second.memory.expired(); });
    if (regions_.size() >= limits_.max_regions) {
      return Refuse(connection, errors::LimitReached("--max_sessions", limits_.max_regions));
    }
  }
  absl::StatusOr<std::unique_ptr<SharedMemory>> memory = SharedMemory::Create(request.size_bytes);
  if (!memory.ok()) return Refuse(connection, memory.status());
  const std::shared_ptr<SharedMemory> region = *std::move(memory);
  const std::string token = RandomId();
  {
    absl::MutexLock lock(&mu_);
    regions_[token] = {region, region};
    token_of_connection_[connection] = token;
  }
  MemoryReply reply;
  std::memcpy(reply.token, token.data(), token.size());
  return SendReply(connection, reply, region->fd());
}

void MemoryBroker::Disconnected(int connection) {
  std::shared_ptr<SharedMemory> released;  // unmapped outside the lock
  absl::MutexLock lock(&mu_);
  const auto found = token_of_connection_.find(connection);
  if (found == token_of_connection_.end()) return;
  const auto region = regions_.find(found->second);
  if (region != regions_.end()) {
    released = std::move(region->second.while_connected);
    if (released.use_count() == 1) regions_.erase(region);
  }
  token_of_connection_.erase(found);
}

}  // namespace viommu
