// Threads that map, use and unmap memory through guest_svc and record every call.
#ifndef VIOMMU_TESTS_INTEGRATION_LOAD_CLIENT_H_
#define VIOMMU_TESTS_INTEGRATION_LOAD_CLIENT_H_

#include <atomic>
#include <chrono>
#include <string>
#include <thread>
#include <vector>

#include "tests/integration/history.h"
#include "tests/integration/service_pair.h"

namespace viommu {

class LoadClient {
 public:
  struct Options {
    std::string guest_address;
    std::vector<Target> targets;  // thread i works in targets[i % size]
    uint32_t threads = 4;         // thread i is vCPU i
    uint64_t seed = 1;
    size_t max_live = 24;  // mappings of one thread
    // What a soak cannot keep: only the violations that a thread can see by itself are recorded.
    bool keep_history = true;
  };

  explicit LoadClient(Options options);
  ~LoadClient();

  void Start();
  // Every call under way is answered first.
  void Stop();
  // After Stop.
  std::vector<Op> TakeOps();
  uint64_t done() const { return done_.load(); }
  // Mappings still there, if no history is kept.
  std::vector<LiveMapping> live() const;

 private:
  struct Worker;
  void Work(Worker& worker);

  const Options options_;
  std::atomic<bool> stop_{false};
  std::atomic<uint64_t> done_{0};
  std::vector<std::unique_ptr<Worker>> workers_;
};

// The clock of Op and Outage.
int64_t HistoryNow();
// kill -9, `pause`, and a successor with `flags`: what of that belongs in the history.
Outage RestartHypervisor(ServicePair& pair, std::chrono::milliseconds pause,
                         const std::vector<std::string>& flags);
// The service says that it did not even start.
bool NothingDone(const absl::Status& status);

}  // namespace viommu

#endif  // VIOMMU_TESTS_INTEGRATION_LOAD_CLIENT_H_
