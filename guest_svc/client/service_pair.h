// A private pair of real service processes, for one command.
#ifndef VIOMMU_GUEST_SVC_CLIENT_SERVICE_PAIR_H_
#define VIOMMU_GUEST_SVC_CLIENT_SERVICE_PAIR_H_

#include <sys/types.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace viommu::client {

// Blocks SIGINT, SIGTERM and SIGHUP in every thread made from now on and starts one that waits for
// them: it ends the processes of every pair, removes their folders and exits with 128 + signal.
// Call first in main.
void HandleSignals();
// The first signal calls `stop` instead, the second one ends the process; empty: back to the above.
void OnFirstSignal(std::function<void()> stop);

struct PairOptions {
  bool guest = true;  // false: only a hypervisor
  std::vector<std::string> hypervisor_flags;
  std::vector<std::string> guest_flags;
};

// Both services on unix sockets in a temporary folder of their own. They end with this object, with
// a signal, and (PR_SET_PDEATHSIG) with this process however it dies.
class ServicePair {
 public:
  // Finds the binaries beside this program's own (VIOMMU_BIN names another folder). Unavailable:
  // one does not start or is not READY in time; the message holds its last line on standard error.
  static absl::StatusOr<std::unique_ptr<ServicePair>> Start(const PairOptions& options);
  ~ServicePair();

  std::string hypervisor_address() const { return "unix:" + folder_ + "/hypervisor.sock"; }
  std::string guest_address() const { return "unix:" + folder_ + "/guest.sock"; }
  std::string memory_socket() const { return folder_ + "/hypervisor.sock.mem"; }
  // Why calls fail now, if one of the processes has ended; OK while both run.
  absl::Status Check();

 private:
  struct Child {
    std::string name;
    std::string log;  // its standard error
    pid_t pid = -1;
    int status = 0;  // once it ended
    bool ended = false;
  };

  explicit ServicePair(std::string folder) : folder_(std::move(folder)) {}
  absl::Status Launch(const std::string& name, std::vector<std::string> args);
  absl::Status Ended(const Child& child) const;

  const std::string folder_;
  std::vector<Child> children_;
};

}  // namespace viommu::client

#endif  // VIOMMU_GUEST_SVC_CLIENT_SERVICE_PAIR_H_
