// Hands guests their memory: a sealed memfd and a token for OpenSession
// (svc_common/memory_channel.h).
#ifndef VIOMMU_HYPERVISOR_SVC_MEMORY_BROKER_H_
#define VIOMMU_HYPERVISOR_SVC_MEMORY_BROKER_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "iommu_core/mem/shared_memory.h"

namespace viommu {

class MemoryBroker {
 public:
  struct Limits {
    uint64_t max_region_bytes = 0;
    uint32_t max_regions = 0;
  };

  // Listens on `path`, owner-only. AlreadyExists: somebody else does.
  static absl::StatusOr<std::unique_ptr<MemoryBroker>> Start(std::string path, Limits limits);
  ~MemoryBroker();

  // The region of a token; null: no such token. A token is good while its guest's connection is
  // open or a session holds the region.
  std::shared_ptr<SharedMemory> Find(const std::string& token) ABSL_LOCKS_EXCLUDED(mu_);
  const std::string& path() const { return path_; }
  // Requests that were answered with an error.
  uint64_t refused() const { return refused_.load(std::memory_order_relaxed); }

 private:
  struct Region {
    std::shared_ptr<SharedMemory> while_connected;
    std::weak_ptr<SharedMemory> memory;
  };

  MemoryBroker(std::string path, Limits limits, int listener, int wake)
      : path_(std::move(path)), limits_(limits), listener_(listener), wake_(wake) {}
  void Serve();
  // Says why, and counts it. False: as Answer.
  bool Refuse(int connection, const absl::Status& status);
  // Answers the one request of a connection. False: the connection is of no more use.
  bool Answer(int connection) ABSL_LOCKS_EXCLUDED(mu_);
  void Disconnected(int connection) ABSL_LOCKS_EXCLUDED(mu_);

  const std::string path_;
  const Limits limits_;
  const int listener_;
  const int wake_;  // eventfd: stop
  std::atomic<uint64_t> refused_{0};

  absl::Mutex mu_;
  absl::flat_hash_map<std::string, Region> regions_ ABSL_GUARDED_BY(mu_);
  absl::flat_hash_map<int, std::string> token_of_connection_ ABSL_GUARDED_BY(mu_);
  std::thread thread_;
};

}  // namespace viommu

#endif  // VIOMMU_HYPERVISOR_SVC_MEMORY_BROKER_H_
