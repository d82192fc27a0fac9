// What wire_bench measures: a guest's own objects over the stream of a real hypervisor_svc, and the
// processes it is made of.
#ifndef VIOMMU_TESTS_BENCH_WIRE_GUEST_H_
#define VIOMMU_TESTS_BENCH_WIRE_GUEST_H_

#include <sys/types.h>

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "guest_svc/guest_memory.h"
#include "guest_svc/guest_metrics.h"
#include "guest_svc/remote_sink.h"
#include "guest_svc/spin_wait.h"
#include "iommu_core/base/clock.h"
#include "iommu_core/dma/guest_machine.h"

namespace viommu {

// A process that ends with this object; its standard input and output are pipes.
class BenchProcess {
 public:
  explicit BenchProcess(std::vector<std::string> args);
  ~BenchProcess();
  BenchProcess(const BenchProcess&) = delete;
  BenchProcess& operator=(const BenchProcess&) = delete;

  std::string ReadLine();
  void WriteLine(const std::string& line);
  // A figure of /proc/PID/status, e.g. "VmRSS" in KiB or "Threads".
  uint64_t Status(const std::string& key) const;

 private:
  pid_t pid_ = -1;
  int in_ = -1;
  int out_ = -1;
};

// Child: says "READY", then for each line "MS" on standard input does `round_trip` for that long
// and prints how many times. Ends with its input.
int ServeTurns(const std::function<void()>& round_trip);

// This program's own path and the folder it is in.
std::string SelfPath();
std::string BinFolder();

// One guest of `strategy` with one device and `pages` mapped 4K pages; the machine, the virtual
// unit and the stream's end are those of guest_svc, driven by the calling thread.
class BenchGuest {
 public:
  BenchGuest(const std::string& hypervisor, const std::string& memory_socket,
             const std::string& strategy, uint64_t pages,
             std::chrono::microseconds wait_spin = kDefaultWaitSpin);

  // Maps one page; returns its address.
  Iova MapOne();
  void Unmap(Iova iova);
  // Posts one-page invalidations of pages that did not change, `per_batch` in each of `count`
  // batches, with at most `window` unanswered.
  void Invalidate(int count, int per_batch, int window);

 private:
  GuestMetrics metrics_;
  std::unique_ptr<GuestMemory> memory_;
  std::unique_ptr<RemoteSink> sink_;
  WallClock clock_;
  std::unique_ptr<GuestMachine> machine_;
  uint32_t domain_ = 0;
  DomainId did_;
  uint64_t pages_;
  uint64_t next_page_ = 0;
  GuestPhys buffer_;
};

// Child: a guest that for each line "MS" on standard input sends page invalidations, one at a time,
// for that long, and prints how many completed. Ends with its input.
int RunBenchGuest(const std::string& hypervisor, const std::string& memory_socket,
                  std::chrono::microseconds wait_spin);

}  // namespace viommu

#endif  // VIOMMU_TESTS_BENCH_WIRE_GUEST_H_
