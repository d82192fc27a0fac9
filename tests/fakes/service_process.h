// One of our services as a real process: started, awaited until READY, stopped or killed.
#ifndef VIOMMU_TESTS_FAKES_SERVICE_PROCESS_H_
#define VIOMMU_TESTS_FAKES_SERVICE_PROCESS_H_

#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <fstream>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

namespace viommu {

class ServiceProcess {
 public:
  // `log` gets standard error.
  ServiceProcess(const std::string& binary, std::vector<std::string> args, std::string log)
      : log_(std::move(log)) {
    int out[2];
    EXPECT_EQ(pipe2(out, O_CLOEXEC), 0);
    pid_ = fork();
    if (pid_ == 0) {
      const int err = open(log_.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
      dup2(out[1], STDOUT_FILENO);
      dup2(err, STDERR_FILENO);
      std::vector<char*> argv = {const_cast<char*>(binary.c_str())};
      for (std::string& arg : args) argv.push_back(arg.data());
      argv.push_back(nullptr);
      execv(argv[0], argv.data());
      _exit(127);
    }
    close(out[1]);
    out_ = out[0];
  }
  ~ServiceProcess() {
    if (pid_ > 0) {
      kill(pid_, SIGKILL);
      waitpid(pid_, nullptr, 0);
    }
    close(out_);
  }
  ServiceProcess(const ServiceProcess&) = delete;
  ServiceProcess& operator=(const ServiceProcess&) = delete;

  // The READY line; empty if the process ended or said nothing within 20 seconds.
  std::string Ready() {
    std::string line;
    pollfd fd{out_, POLLIN, 0};
    char c = 0;
    while (poll(&fd, 1, 20'000) == 1 && read(out_, &c, 1) == 1 && c != '\n') line += c;
    return line;
  }
  pid_t pid() const { return pid_; }
  void Signal(int number) {
    kill(pid_, number);
    // Threads go on until one of them has taken the signal; this returns when all have stopped.
    if (number == SIGSTOP) {
      EXPECT_EQ(waitpid(pid_, nullptr, WUNTRACED), pid_);
    }
  }
  // Exit code, or minus the signal that ended it; -1000 after 20 seconds.
  int Wait() {
    for (int i = 0; i < 2000; ++i) {
      int status = 0;
      if (waitpid(pid_, &status, WNOHANG) == pid_) {
        pid_ = -1;
        return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    return -1000;
  }
  std::string Log() const {
    std::ifstream in(log_);
    std::stringstream text;
    text << in.rdbuf();
    return text.str();
  }

 private:
  const std::string log_;
  pid_t pid_ = -1;
  int out_ = -1;
};

// Value of `key=` in a READY line.
inline std::string ReadyField(const std::string& line, const std::string& key) {
  const size_t at = line.find(key + "=");
  if (at == std::string::npos) return "";
  const size_t begin = at + key.size() + 1;
  return line.substr(begin, line.find(' ', begin) - begin);
}

}  // namespace viommu

#endif  // VIOMMU_TESTS_FAKES_SERVICE_PROCESS_H_
