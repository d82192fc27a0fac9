#include "tests/bench/wire_guest.h"

#include <fcntl.h>
#include <grpcpp/create_channel.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <fstream>
#include <iostream>
#include <utility>

#include "iommu_core/vtd/inv_descriptor.h"
#include "svc_common/service_host.h"

namespace viommu {
namespace {

constexpr Iova kResident(uint64_t{1} << 36);
const SourceId kDevice = MakeSourceId(0, 3, 0);

void Check(const absl::Status& status, const char* what) {
  if (status.ok()) return;
  std::fprintf(stderr, "%s: %s\n", what, std::string(status.message()).c_str());
  std::exit(1);
}

}  // namespace

BenchProcess::BenchProcess(std::vector<std::string> args) {
  int to_child[2];
  int from_child[2];
  if (pipe2(to_child, O_CLOEXEC) != 0 || pipe2(from_child, O_CLOEXEC) != 0) std::abort();
  pid_ = fork();
  if (pid_ == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    dup2(to_child[0], STDIN_FILENO);
    dup2(from_child[1], STDOUT_FILENO);
    std::vector<char*> argv;
    for (std::string& arg : args) argv.push_back(arg.data());
    argv.push_back(nullptr);
    execv(argv[0], argv.data());
    _exit(127);
  }
  close(to_child[0]);
  close(from_child[1]);
  in_ = to_child[1];
  out_ = from_child[0];
}

BenchProcess::~BenchProcess() {
  kill(pid_, SIGKILL);
  waitpid(pid_, nullptr, 0);
  close(in_);
  close(out_);
}

std::string BenchProcess::ReadLine() {
  std::string line;
  char c = 0;
  while (read(out_, &c, 1) == 1 && c != '\n') line += c;
  return line;
}

void BenchProcess::WriteLine(const std::string& line) {
  const std::string text = line + "\n";
  if (write(in_, text.data(), text.size()) != static_cast<ssize_t>(text.size())) std::abort();
}

uint64_t BenchProcess::Status(const std::string& key) const {
  std::ifstream in("/proc/" + std::to_string(pid_) + "/status");
  std::string word;
  uint64_t value = 0;
  while (in >> word) {
    if (word == key + ":" && in >> value) return value;
  }
  return 0;
}

std::string SelfPath() {
  char path[4096] = {};
  if (readlink("/proc/self/exe", path, sizeof(path) - 1) <= 0) std::abort();
  return path;
}

std::string BinFolder() {
  const std::string self = SelfPath();
  return self.substr(0, self.rfind('/'));
}

BenchGuest::BenchGuest(const std::string& hypervisor, const std::string& memory_socket,
                       const std::string& strategy, uint64_t pages,
                       std::chrono::microseconds wait_spin)
    : pages_(pages) {
  GuestConfig config;
  config.table_region_bytes = (uint64_t{1} << 20) + pages * 16;
  config.ram_bytes = AlignUp(
      pages * kPageSize * 33 / 32 + config.table_region_bytes + (uint64_t{1} << 20), kMinRamBytes);
  auto memory = GuestMemory::Create(memory_socket, config.ram_bytes);
  Check(memory.status(), "guest memory");
  memory_ = *std::move(memory);
  RemoteSinkOptions options;
  options.hypervisor = hypervisor;
  options.caps = GuestCapabilities(config, 0);
  options.haw_bits = config.address_width;
  options.strategy = strategy;
  options.recover = false;
  options.wait_spin = wait_spin;
  sink_ = std::make_unique<RemoteSink>(
      grpc::CreateCustomChannel(hypervisor, grpc::InsecureChannelCredentials(),
                                ClientChannelArguments()),
      *memory_, metrics_, options);
  Check(sink_->Open(), "session");
  auto machine = GuestMachine::Create(config, *memory_, clock_, {sink_.get()});
  Check(machine.status(), "machine");
  machine_ = *std::move(machine);
  domain_ = *machine_->CreateDomain(64);
  const auto did = machine_->AttachDevice(domain_, kDevice, 0, false);
  Check(did.status(), "device");
  did_ = *did;
  Check(machine_->MapResident(domain_, kResident, pages), "resident pages");
  const auto buffer = machine_->AllocateBuffer(kPageSize);
  Check(buffer.status(), "buffer");
  buffer_ = *buffer;
}

Iova BenchGuest::MapOne() {
  const Segment segment{buffer_, kPageSize};
  const auto iova = machine_->Map(domain_, {&segment, 1}, kReadWrite, 0);
  Check(iova.status(), "map");
  return *iova;
}

void BenchGuest::Unmap(Iova iova) {
  const auto outcome = machine_->Unmap(domain_, iova, kPageSize, 0);
  Check(outcome.status(), "unmap");
}

void BenchGuest::Invalidate(int count, int per_batch, int window) {
  std::vector<vtd::RawDescriptor> raw(static_cast<size_t>(per_batch));
  std::deque<uint64_t> tickets;
  const auto await = [&] {
    const auto done = sink_->Await(tickets.front(), absl::Seconds(20));
    Check(done.status(), "invalidation");
    // Unchanged means unchanged: a page that a limit refused would be tried again.
    if (done->consumed != raw.size() || done->cost.dma_maps != 0) std::abort();
    tickets.pop_front();
  };
  for (int i = 0; i < count; ++i) {
    for (vtd::RawDescriptor& r : raw) {
      vtd::IotlbInvalidate d;
      d.granularity = vtd::Granularity::kPageOrDevice;
      d.domain_id = did_;
      d.address = kResident + (next_page_++ * 5171 % pages_) * kPageSize;
      r = vtd::Encode(d);
    }
    if (static_cast<int>(tickets.size()) >= window) await();
    const auto ticket = sink_->Post(raw, {}, TableClaim::kNone);
    Check(ticket.status(), "doorbell");
    tickets.push_back(*ticket);
  }
  while (!tickets.empty()) await();
}

int ServeTurns(const std::function<void()>& round_trip) {
  std::printf("READY\n");
  std::fflush(stdout);
  int ms = 0;
  while (std::cin >> ms) {
    const auto end = std::chrono::steady_clock::now() + std::chrono::milliseconds(ms);
    uint64_t done = 0;
    for (; std::chrono::steady_clock::now() < end; ++done) round_trip();
    std::printf("%llu\n", static_cast<unsigned long long>(done));
    std::fflush(stdout);
  }
  return 0;
}

int RunBenchGuest(const std::string& hypervisor, const std::string& memory_socket,
                  std::chrono::microseconds wait_spin) {
  BenchGuest guest(hypervisor, memory_socket, "snapshot", 256, wait_spin);
  return ServeTurns([&] { guest.Invalidate(1, 1, 1); });
}

}  // namespace viommu
