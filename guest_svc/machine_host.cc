#include "guest_svc/machine_host.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "iommu_core/base/errors.h"

namespace viommu {
namespace {

using std::chrono::milliseconds;
using Steady = std::chrono::steady_clock;

// The longest an operation waits for the hypervisor or for the machine, whatever its caller allows.
constexpr milliseconds kMaxWait{10'000};
// A caller reads why rather than its own clock's verdict: the answer is sent this long, or a
// quarter of the time that is left, before its deadline.
constexpr milliseconds kAnswerTime{500};
// Whoever had to wait for the machine still gets this long for its own invalidation.
constexpr milliseconds kLeastWait{100};
// A guest that just started gives its hypervisor this long before calls fail.
constexpr milliseconds kBringUpWait{2'000};
constexpr milliseconds kFirstRetry{50};
constexpr milliseconds kMaxRetry{2'000};
constexpr milliseconds kStatsWait{100};
constexpr absl::Duration kPollStep = absl::Milliseconds(50);
// The longest that who waits for a fault record keeps others from the machine.
constexpr absl::Duration kFaultStep = absl::Milliseconds(1);

}  // namespace

MachineHost::MachineHost(const GuestOptions& options, std::string memory_socket,
                         std::shared_ptr<grpc::Channel> channel, GuestMetrics& metrics)
    : options_(options),
      memory_socket_(std::move(memory_socket)),
      channel_(std::move(channel)),
      metrics_(metrics),
      policy_(options.machine.policy),
      force_lazy_(options.machine.force_lazy) {}

MachineHost::~MachineHost() { Stop(); }

void MachineHost::Start() {
  TakeTurn(Steady::now());
  Tick();
  EndTurn();
  thread_ = std::thread([this] { RunUntilStopped(); });
}

void MachineHost::Stop() {
  if (stop_.stopped()) return;
  stop_.Stop();
  if (thread_.joinable()) thread_.join();
  if (!TakeTurn(Steady::now() + kMaxWait)) return;
  for (const auto& sink : sinks_) {
    if (!sink->state().connected) continue;
    if (absl::Status status = sink->Close(); !status.ok()) {
      spdlog::warn("session not closed: {}", std::string(status.message()));
    }
  }
  EndTurn();
}

bool MachineHost::TakeTurn(Time deadline) {
  SteadyLock lock(&mu_);
  if (!mu_.AwaitUntil(deadline, [this] { return !busy_; })) return false;
  busy_ = true;
  return true;
}

void MachineHost::EndTurn() {
  SteadyLock lock(&mu_);
  busy_ = false;
}

absl::Status MachineHost::BringUp() {
  GuestConfig config = options_.machine;
  {
    SteadyLock lock(&mu_);
    config.policy = policy_;
    config.force_lazy = force_lazy_;
  }
  absl::StatusOr<std::unique_ptr<GuestMemory>> memory =
      GuestMemory::Create(options_.remote_memory, memory_socket_, config.ram_bytes);
  if (!memory.ok()) return memory.status();
  std::vector<std::unique_ptr<RemoteSink>> sinks;
  std::vector<InvalidationSink*> raw;
  for (size_t i = 0; i < config.iommu_caching_mode.size(); ++i) {
    RemoteSinkOptions sink;
    sink.hypervisor = options_.hypervisor;
    sink.caps = GuestCapabilities(config, i);
    sink.haw_bits = config.address_width;
    sink.dirty_log_base = DirtyLogBase(config, i).value();
    sink.strategy = options_.hypervisor_strategy;
    sink.wait_spin = std::chrono::microseconds(options_.wait_spin_us);
    sinks.push_back(std::make_unique<RemoteSink>(channel_, **memory, metrics_, sink));
    if (absl::Status status = sinks.back()->Open(); !status.ok()) return status;
    raw.push_back(sinks.back().get());
  }
  auto machine = GuestMachine::Create(config, **memory, clock_, raw);
  if (!machine.ok()) {
    for (const auto& sink : sinks) sink->Close().IgnoreError();  // the machine's error says it all
    return machine.status();
  }
  memory_ = *std::move(memory);
  sinks_ = std::move(sinks);
  machine_ = *std::move(machine);
  spdlog::info("{} vIOMMU(s) up on the hypervisor at {}", sinks_.size(), options_.hypervisor);
  return absl::OkStatus();
}

bool MachineHost::AllConnected() const {
  return std::all_of(sinks_.begin(), sinks_.end(),
                     [](const auto& sink) { return sink->state().connected; });
}

void MachineHost::PollSinks(absl::Duration wait) {
  for (size_t i = 0; i < sinks_.size(); ++i) {
    const std::vector<vtd::FaultRecord> faults = sinks_[i]->Poll(wait);
    for (const vtd::FaultRecord& fault : faults) {
      machine_->RecordFault(static_cast<uint32_t>(i), fault);
    }
    if (faults.empty()) continue;
    SteadyLock lock(&mu_);
    faults_taken_ += faults.size();
  }
}

void MachineHost::Tick() {
  if (machine_ == nullptr) {
    const absl::Status status = BringUp();
    SteadyLock lock(&mu_);
    up_ = status.ok();
    if (!status.ok() && status != last_error_) {
      spdlog::warn("no hypervisor at {} yet: {}; trying again until there is", options_.hypervisor,
                   std::string(status.message()));
    }
    last_error_ = status;
    return;
  }
  PollSinks(absl::ZeroDuration());
  const std::optional<uint64_t> next = machine_->NextTimerNs();
  // A flush without a hypervisor would only hold the machine until it times out.
  if (next.has_value() && *next <= clock_.NowNs() && AllConnected()) {
    if (absl::Status status = machine_->RunTimers(); !status.ok()) {
      spdlog::warn("flush timer: {}", std::string(status.message()));
    }
  }
  const GuestStats stats = machine_->stats();
  SteadyLock lock(&mu_);
  last_stats_ = stats;
}

void MachineHost::RunUntilStopped() {
  milliseconds retry = kFirstRetry;
  const milliseconds tick(std::max(1u, 1000 / options_.machine.hz));
  Time next = Steady::now();
  while (!stop_.WaitFor(tick)) {
    {
      SteadyLock lock(&mu_);
      if (!up_ && Steady::now() < next) continue;
      retry = up_ ? kFirstRetry : std::min(retry * 2, kMaxRetry);
      next = Steady::now() + retry;
    }
    // While an operation has the machine it also runs the timers that matter to it.
    if (!TakeTurn(Steady::now() + tick)) continue;
    Tick();
    EndTurn();
  }
}

absl::Status MachineHost::Run(Time deadline, absl::FunctionRef<absl::Status(GuestMachine&)> work) {
  const Time now = Steady::now();
  // Not beyond kMaxWait: a caller without a deadline gives more than milliseconds can hold.
  const auto given = std::chrono::duration_cast<milliseconds>(
      std::min<Steady::duration>(deadline - now, kMaxWait + kAnswerTime));
  const Time until = now + given - std::min(given / 4, kAnswerTime);
  {
    SteadyLock lock(&mu_);
    if (!mu_.AwaitUntil(std::min<Time>(now + kBringUpWait, until), [this] { return up_; })) {
      return absl::UnavailableError(
          absl::StrCat("no hypervisor at ", options_.hypervisor, " yet (", last_error_.message(),
                       "): start hypervisor_svc --listen=", options_.hypervisor));
    }
  }
  if (!TakeTurn(until)) {
    if (!AllConnected()) return Away();
    return absl::DeadlineExceededError(
        "other operations had the guest until the deadline; nothing was done");
  }
  absl::Cleanup end = [this] { EndTurn(); };
  while (!AllConnected()) {
    if (Steady::now() >= until) return Away();
    PollSinks(kPollStep);
  }
  machine_->set_deadline(std::max(until, Steady::now() + kLeastWait));
  absl::Cleanup no_deadline = [this] { machine_->set_deadline(Time::max()); };
  return work(*machine_);
}

absl::Status MachineHost::Away() const {
  return absl::DeadlineExceededError(
      absl::StrCat("the hypervisor at ", options_.hypervisor,
                   " is away; nothing was done, call again once hypervisor_svc runs again"));
}

PolicyDecision MachineHost::policy() {
  SteadyLock lock(&mu_);
  return DecidePolicy(policy_, force_lazy_, options_.machine.iommu_caching_mode);
}

absl::Status MachineHost::SetPolicy(Policy policy, bool force_lazy) {
  bool up = false;
  {
    SteadyLock lock(&mu_);
    up = up_;
  }
  if (up) {
    const absl::Status status = Run(Steady::now() + kMaxWait, [&](GuestMachine& machine) {
      return machine.SetPolicy(policy, force_lazy);
    });
    if (!status.ok()) return status;
  }
  SteadyLock lock(&mu_);
  policy_ = policy;
  force_lazy_ = force_lazy;
  return absl::OkStatus();
}

void MachineHost::SetPlace(SourceId sid, uint32_t iommu) {
  absl::MutexLock lock(&place_mu_);
  place_[sid.value()] = iommu;
}

absl::StatusOr<std::string> MachineHost::SessionOf(SourceId sid) {
  uint32_t iommu = 0;
  {
    absl::MutexLock lock(&place_mu_);
    const auto found = place_.find(sid.value());
    if (found == place_.end()) return errors::UnknownDevice(sid);
    iommu = found->second;
  }
  const std::string id = sinks_[iommu]->state().session_id;  // attached, so the machine is up
  if (id.empty()) return absl::UnavailableError("the vIOMMU has no session yet");
  return id;
}

void MachineHost::TakeInFaults() {
  if (!TakeTurn(Steady::now() + kStatsWait)) return;
  if (machine_ != nullptr) PollSinks(absl::ZeroDuration());
  EndTurn();
}

uint64_t MachineHost::faults_taken() {
  SteadyLock lock(&mu_);
  return faults_taken_;
}

void MachineHost::AwaitFaults(uint64_t count, absl::Duration wait) {
  const Time deadline = Steady::now() + absl::ToChronoNanoseconds(wait);
  while (faults_taken() < count && Steady::now() < deadline && TakeTurn(deadline)) {
    if (machine_ != nullptr && faults_taken() < count) PollSinks(kFaultStep);
    EndTurn();
  }
}

std::vector<RemoteSink::State> MachineHost::sinks() {
  {
    SteadyLock lock(&mu_);
    if (!up_) return {};
  }
  std::vector<RemoteSink::State> out;
  for (const auto& sink : sinks_) out.push_back(sink->state());
  return out;
}

GuestStats MachineHost::stats() {
  if (TakeTurn(Steady::now() + kStatsWait)) {
    GuestStats now;
    if (machine_ != nullptr) now = machine_->stats();
    EndTurn();
    SteadyLock lock(&mu_);
    return last_stats_ = now;
  }
  SteadyLock lock(&mu_);
  return last_stats_;
}

}  // namespace viommu
