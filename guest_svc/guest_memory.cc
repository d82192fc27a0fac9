#include "guest_svc/guest_memory.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>
#include <vector>

namespace viommu {
namespace {

constexpr size_t kCopyBytes = 1 << 20;

// Copies what was ever written; holes stay holes.
absl::Status CopyContent(const SharedMemory& from, SharedMemory& to) {
  const auto size = static_cast<off_t>(from.size_bytes());
  std::vector<std::byte> buffer(kCopyBytes);
  for (off_t data = lseek(from.fd(), 0, SEEK_DATA); data >= 0 && data < size;) {
    off_t hole = lseek(from.fd(), data, SEEK_HOLE);
    if (hole < 0) hole = size;
    while (data < hole) {
      const std::span<std::byte> piece(buffer.data(),
                                       std::min(kCopyBytes, static_cast<size_t>(hole - data)));
      const PhysAddr address(static_cast<uint64_t>(data));
      if (!from.ReadBytes(address, piece) || !to.WriteBytes(address, piece)) {
        return absl::InternalError("guest memory changed its size");
      }
      data += static_cast<off_t>(piece.size());
    }
    data = lseek(from.fd(), hole, SEEK_DATA);  // ENXIO: no data after the last hole
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<GuestMemory>> GuestMemory::Create(std::string memory_socket,
                                                                 uint64_t size_bytes) {
  absl::StatusOr<std::unique_ptr<GrantedMemory>> memory =
      GrantedMemory::Request(memory_socket, size_bytes);
  if (!memory.ok()) return memory.status();
  return std::unique_ptr<GuestMemory>(
      new GuestMemory(std::move(memory_socket), *std::move(memory)));
}

absl::StatusOr<std::unique_ptr<GuestMemory>> GuestMemory::CreateRemote(uint64_t size_bytes) {
  absl::StatusOr<std::unique_ptr<SharedMemory>> memory = SharedMemory::Create(size_bytes);
  if (!memory.ok()) return memory.status();
  return std::unique_ptr<GuestMemory>(new GuestMemory(*std::move(memory)));
}

absl::Status GuestMemory::Renew(const std::string& refused_token) {
  if (refused_token != token()) return absl::OkStatus();
  absl::StatusOr<std::unique_ptr<GrantedMemory>> fresh =
      GrantedMemory::Request(memory_socket_, size_bytes());
  if (!fresh.ok()) return fresh.status();
  if (absl::Status status = CopyContent(memory_, (*fresh)->memory()); !status.ok()) {
    return status;
  }
  // In place: the machine keeps pointers into its memory (its log of table writes).
  return granted_->Adopt(**fresh);
}

}  // namespace viommu
