#include "tests/integration/load_client.h"

#include <chrono>
#include <cstring>
#include <random>
#include <utility>

#include "absl/strings/match.h"

namespace viommu {
namespace {

constexpr uint64_t kPage = 4096;
constexpr std::chrono::milliseconds kPauseWhileAway{2};
constexpr size_t kMinLive = 4;

std::string Bytes(uint64_t data) { return std::string(reinterpret_cast<const char*>(&data), 8); }

uint64_t Number(const std::string& bytes) {
  uint64_t data = 0;
  std::memcpy(&data, bytes.data(), std::min<size_t>(bytes.size(), 8));
  return data;
}

}  // namespace

int64_t HistoryNow() { return std::chrono::steady_clock::now().time_since_epoch().count(); }

Outage RestartHypervisor(ServicePair& pair, std::chrono::milliseconds pause,
                         const std::vector<std::string>& flags) {
  pair.KillHypervisor();
  Outage outage{HistoryNow(), 0};
  std::this_thread::sleep_for(pause);
  outage.restarted_ns = HistoryNow();
  pair.StartHypervisor(flags);
  return outage;
}

bool NothingDone(const absl::Status& status) {
  const std::string text(status.message());
  return absl::StrContains(text, "nothing was done") || absl::StartsWith(text, "no hypervisor at");
}

struct LoadClient::Worker {
  Worker(const Options& options, uint32_t number)
      : guest(options.guest_address),
        target(options.targets[number % options.targets.size()]),
        vcpu(number),
        keep(options.keep_history),
        next_mapping((uint64_t{number} << 40) + 1),
        random(options.seed * 1'000 + number) {}

  Op Begin(Op::Kind kind, const LiveMapping& mapping) const {
    Op op;
    op.kind = kind;
    op.domain = target.domain;
    op.mapping = mapping.mapping;
    op.iova = mapping.iova;
    op.size_bytes = mapping.size_bytes;
    op.start_ns = HistoryNow();
    return op;
  }
  void End(Op op, const absl::Status& status) {
    op.end_ns = HistoryNow();
    op.code = status.code();
    op.nothing_done = !status.ok() && NothingDone(status);
    if (!status.ok()) std::this_thread::sleep_for(kPauseWhileAway);
    if (keep) ops.push_back(op);
  }

  void Map() {
    LiveMapping mapping;
    mapping.domain = target.domain;
    mapping.mapping = next_mapping++;
    mapping.size_bytes = kPage * (1 + random() % 4);
    Op op = Begin(Op::Kind::kMap, mapping);
    const auto mapped = guest.Map(target.domain, mapping.size_bytes, vcpu);
    if (mapped.ok()) {
      op.iova = mapping.iova = mapped->iova();
      op.guest_pa = mapping.guest_pa = mapped->guest_pa();
    }
    End(op, mapped.status());
    if (!mapped.ok()) return;
    live.push_back(mapping);
    Write(mapping);
    Read(mapping);
  }
  void Write(const LiveMapping& mapping) {
    Op op = Begin(Op::Kind::kWrite, mapping);
    op.data = random() | 1;
    const auto written =
        guest.Write(target.source_id, mapping.iova + mapping.size_bytes - 8, Bytes(op.data));
    if (written.ok()) op.fault_reason = written->fault_reason();
    End(op, written.status());
  }
  void Read(const LiveMapping& mapping) {
    Op op = Begin(Op::Kind::kRead, mapping);
    const auto read = guest.Read(target.source_id, mapping.iova + mapping.size_bytes - 8, 8);
    if (read.ok()) {
      op.fault_reason = read->fault_reason();
      op.data = Number(read->read_data());
    }
    End(op, read.status());
  }
  void Unmap(size_t index) {
    const LiveMapping mapping = live[index];
    const Op op = Begin(Op::Kind::kUnmap, mapping);
    const auto unmapped = guest.Unmap(target.domain, mapping.iova, mapping.size_bytes, vcpu);
    End(op, unmapped.status());
    if (!unmapped.ok() && NothingDone(unmapped.status())) return;
    live[index] = live.back();
    live.pop_back();
    Read(mapping);  // must be blocked by now, unless the IOVA has a new owner
  }

  GuestCalls guest;
  const Target target;
  const uint32_t vcpu;
  const bool keep;
  uint64_t next_mapping;
  std::mt19937_64 random;
  std::vector<LiveMapping> live;
  std::vector<Op> ops;
  std::thread thread;
};

LoadClient::LoadClient(Options options) : options_(std::move(options)) {
  for (uint32_t i = 0; i < options_.threads; ++i) {
    workers_.push_back(std::make_unique<Worker>(options_, i));
  }
}

LoadClient::~LoadClient() { Stop(); }

void LoadClient::Start() {
  stop_ = false;
  for (const auto& worker : workers_) {
    worker->thread = std::thread([this, w = worker.get()] { Work(*w); });
  }
}

void LoadClient::Stop() {
  stop_ = true;
  for (const auto& worker : workers_) {
    if (worker->thread.joinable()) worker->thread.join();
  }
}

void LoadClient::Work(Worker& worker) {
  while (!stop_) {
    const size_t live = worker.live.size();
    const uint64_t dice = worker.random() % 4;
    if (live < kMinLive || (dice < 2 && live < options_.max_live)) {
      worker.Map();
    } else if (dice == 2) {
      const LiveMapping mapping = worker.live[worker.random() % live];
      worker.Write(mapping);
      worker.Read(mapping);
    } else {
      worker.Unmap(worker.random() % live);
    }
    ++done_;
  }
}

std::vector<Op> LoadClient::TakeOps() {
  std::vector<Op> out;
  for (const auto& worker : workers_) {
    out.insert(out.end(), worker->ops.begin(), worker->ops.end());
    worker->ops.clear();
  }
  return out;
}

std::vector<LiveMapping> LoadClient::live() const {
  std::vector<LiveMapping> out;
  for (const auto& worker : workers_) {
    out.insert(out.end(), worker->live.begin(), worker->live.end());
  }
  return out;
}

}  // namespace viommu
