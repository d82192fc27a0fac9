#include "guest_svc/client/service_pair.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <mutex>
#include <thread>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace viommu::client {
namespace {

constexpr auto kReadyTimeout = std::chrono::seconds(20);
constexpr auto kStopTimeout = std::chrono::seconds(5);

// What a signal must clean up.
std::mutex live_mutex;
std::vector<pid_t>& LivePids() {
  static auto* pids = new std::vector<pid_t>();
  return *pids;
}
std::vector<std::string>& LiveFolders() {
  static auto* folders = new std::vector<std::string>();
  return *folders;
}

std::function<void()>& FirstSignal() {
  static auto* stop = new std::function<void()>();
  return *stop;
}

sigset_t EndSignals() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGINT);
  sigaddset(&set, SIGTERM);
  sigaddset(&set, SIGHUP);
  return set;
}

std::string BinaryFolder() {
  if (const char* folder = std::getenv("VIOMMU_BIN")) return folder;
  std::error_code error;
  const std::filesystem::path self = std::filesystem::read_symlink("/proc/self/exe", error);
  return error ? "." : self.parent_path().string();
}

std::string LastLine(const std::string& path) {
  std::ifstream in(path);
  std::string last;
  for (std::string line; std::getline(in, line);) {
    if (!line.empty()) last = line;
  }
  return last;
}

}  // namespace

void HandleSignals() {
  static const sigset_t set = EndSignals();
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
  // A peer that goes away is an error of a call, not the end of this process.
  signal(SIGPIPE, SIG_IGN);
  std::thread([] {
    int signal_number = 0;
    for (;;) {
      sigwait(&set, &signal_number);
      std::lock_guard<std::mutex> lock(live_mutex);
      const std::function<void()> stop = std::exchange(FirstSignal(), nullptr);
      if (!stop) break;
      stop();
    }
    {
      std::lock_guard<std::mutex> lock(live_mutex);
      for (pid_t pid : LivePids()) kill(pid, SIGKILL);
      for (const std::string& folder : LiveFolders()) {
        std::error_code error;
        std::filesystem::remove_all(folder, error);
      }
    }
    _exit(128 + signal_number);
  }).detach();
}

void OnFirstSignal(std::function<void()> stop) {
  std::lock_guard<std::mutex> lock(live_mutex);
  FirstSignal() = std::move(stop);
}

absl::StatusOr<std::unique_ptr<ServicePair>> ServicePair::Start(const PairOptions& options) {
  const char* base = std::getenv("TMPDIR");
  // A socket's path has 107 characters at most.
  std::string folder =
      absl::StrCat(base != nullptr && std::strlen(base) < 60 ? base : "/tmp", "/viommu-XXXXXX");
  if (mkdtemp(folder.data()) == nullptr) {
    return absl::UnavailableError(
        absl::StrCat("cannot make a folder ", folder, ": ", std::strerror(errno)));
  }
  {
    std::lock_guard<std::mutex> lock(live_mutex);
    LiveFolders().push_back(folder);
  }
  std::unique_ptr<ServicePair> pair(new ServicePair(folder));
  std::vector<std::string> hypervisor = {absl::StrCat("--listen=", pair->hypervisor_address()),
                                         "--metrics=off"};
  hypervisor.insert(hypervisor.end(), options.hypervisor_flags.begin(),
                    options.hypervisor_flags.end());
  if (absl::Status s = pair->Launch("hypervisor_svc", std::move(hypervisor)); !s.ok()) return s;
  if (options.guest) {
    std::vector<std::string> guest = {absl::StrCat("--listen=", pair->guest_address()),
                                      absl::StrCat("--hypervisor=", pair->hypervisor_address()),
                                      "--metrics=off"};
    guest.insert(guest.end(), options.guest_flags.begin(), options.guest_flags.end());
    if (absl::Status s = pair->Launch("guest_svc", std::move(guest)); !s.ok()) return s;
  }
  return pair;
}

absl::Status ServicePair::Launch(const std::string& name, std::vector<std::string> args) {
  const std::string binary = BinaryFolder() + "/" + name;
  if (access(binary.c_str(), X_OK) != 0) {
    return absl::UnavailableError(absl::StrCat("there is no ", name, " beside this program (",
                                               binary, "); VIOMMU_BIN names its folder"));
  }
  Child child;
  child.name = name;
  child.log = absl::StrCat(folder_, "/", name, ".log");
  int ready[2];
  if (pipe2(ready, O_CLOEXEC) != 0) return absl::UnavailableError("no pipe");
  const int log = open(child.log.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
  std::vector<char*> argv = {const_cast<char*>(binary.c_str())};
  for (std::string& arg : args) argv.push_back(arg.data());
  argv.push_back(nullptr);
  const pid_t parent = getpid();
  child.pid = fork();
  if (child.pid == 0) {
    // Only async-signal-safe calls from here on.
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) _exit(1);
    setpgid(0, 0);  // a terminal's Ctrl-C is for this program, which then ends them
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, nullptr);
    signal(SIGPIPE, SIG_DFL);
    dup2(ready[1], STDOUT_FILENO);
    if (log >= 0) dup2(log, STDERR_FILENO);
    execv(binary.c_str(), argv.data());
    _exit(127);
  }
  close(ready[1]);
  if (log >= 0) close(log);
  if (child.pid < 0) {
    close(ready[0]);
    return absl::UnavailableError(absl::StrCat("cannot start ", name));
  }
  {
    std::lock_guard<std::mutex> lock(live_mutex);
    LivePids().push_back(child.pid);
  }
  children_.push_back(child);

  std::string text;
  const auto deadline = std::chrono::steady_clock::now() + kReadyTimeout;
  bool is_ready = false;
  bool closed = false;
  while (!is_ready && !closed) {
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(
        deadline - std::chrono::steady_clock::now());
    pollfd wait{ready[0], POLLIN, 0};
    if (left.count() <= 0 || poll(&wait, 1, static_cast<int>(left.count())) == 0) break;
    char buffer[512];
    const ssize_t got = read(ready[0], buffer, sizeof(buffer));
    if (got <= 0) {
      closed = got == 0;
      continue;
    }
    text.append(buffer, static_cast<size_t>(got));
    is_ready = absl::StrContains(text, "READY ") && absl::StrContains(text, "\n");
  }
  // Nobody reads further lines; the services print none.
  close(ready[0]);
  if (is_ready) return absl::OkStatus();
  if (closed) {
    Child& started = children_.back();
    waitpid(started.pid, &started.status, 0);
    started.ended = true;
    return Ended(started);
  }
  return absl::UnavailableError(absl::StrCat(name, " is not ready after ", kReadyTimeout.count(),
                                             " seconds: ", LastLine(child.log)));
}

absl::Status ServicePair::Ended(const Child& child) const {
  const std::string how = WIFSIGNALED(child.status)
                              ? absl::StrCat("was ended by signal ", WTERMSIG(child.status))
                              : absl::StrCat("ended with code ", WEXITSTATUS(child.status));
  const std::string line = LastLine(child.log);
  return absl::UnavailableError(
      absl::StrCat(child.name, " ", how, line.empty() ? "" : absl::StrCat(": ", line)));
}

absl::Status ServicePair::Check() {
  for (Child& child : children_) {
    if (!child.ended && waitpid(child.pid, &child.status, WNOHANG) == child.pid) child.ended = true;
    if (child.ended) return Ended(child);
  }
  return absl::OkStatus();
}

ServicePair::~ServicePair() {
  // The guest first: it closes its sessions.
  for (auto child = children_.rbegin(); child != children_.rend(); ++child) {
    if (!child->ended) {
      kill(child->pid, SIGTERM);
      const auto deadline = std::chrono::steady_clock::now() + kStopTimeout;
      while (waitpid(child->pid, &child->status, WNOHANG) == 0) {
        if (std::chrono::steady_clock::now() > deadline) {
          kill(child->pid, SIGKILL);
          waitpid(child->pid, &child->status, 0);
          break;
        }
        std::this_thread::sleep_for(std::chrono::milliseconds(2));
      }
    }
    std::lock_guard<std::mutex> lock(live_mutex);
    std::erase(LivePids(), child->pid);
  }
  std::error_code error;
  std::filesystem::remove_all(folder_, error);
  std::lock_guard<std::mutex> lock(live_mutex);
  std::erase(LiveFolders(), folder_);
}

}  // namespace viommu::client
