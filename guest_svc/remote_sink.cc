#include "guest_svc/remote_sink.h"

#include <sched.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <random>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "svc_common/conversions.h"
#include "svc_common/random_id.h"

namespace viommu {
namespace {

using std::chrono::microseconds;
using std::chrono::milliseconds;
using Steady = std::chrono::steady_clock;

constexpr milliseconds kFirstBackoff{25};
constexpr milliseconds kMaxBackoff{2'000};
// An attempt to open a stream gets at least this long, whatever its caller can wait.
constexpr milliseconds kMinOpenTime{500};
// Completions that nobody awaited (an earlier Await ran out of time) are kept up to this number.
constexpr size_t kMaxUnclaimed = 1024;
constexpr int kMaxMessagesPerPoll = 256;
constexpr size_t kMaxLooseFaults = 4096;

milliseconds Jitter(milliseconds backoff) {
  thread_local std::minstd_rand random(std::random_device{}());
  return backoff / 2 + milliseconds(random() % static_cast<uint64_t>(backoff.count() / 2 + 1));
}

// Whoever polls there keeps from its work whom it waits for.
bool OneCpuOnly() {
  cpu_set_t cpus;
  return sched_getaffinity(0, sizeof(cpus), &cpus) == 0 && CPU_COUNT(&cpus) == 1;
}

void SetClaim(TableClaim claim, v1::InvalidationBatch& batch) {
  batch.set_quiet(claim != TableClaim::kNone);
  batch.set_settled(claim == TableClaim::kSettled);
}

Steady::time_point DeadlineAfter(absl::Duration timeout) {
  return Steady::now() + absl::ToChronoNanoseconds(timeout);
}

}  // namespace

RemoteSink::RemoteSink(std::shared_ptr<grpc::Channel> channel, GuestMemory& memory,
                       GuestMetrics& metrics, RemoteSinkOptions options)
    : stub_(v1::HypervisorService::NewStub(std::move(channel))),
      memory_(memory),
      metrics_(metrics),
      options_(std::move(options)),
      instance_id_(RandomId()),
      spin_(OneCpuOnly() ? microseconds(0) : options_.wait_spin) {
  if (memory_.remote()) memory_thread_ = std::thread([this] { ServeMemory(); });
}

RemoteSink::~RemoteSink() { StopServingMemory(); }

absl::Status RemoteSink::Open() {
  const Turn turn(*this);
  absl::Status status = OpenStream(DeadlineAfter(options_.call_timeout));
  if (!status.ok()) stream_ = nullptr;
  return status;
}

absl::Status RemoteSink::Close() {
  const Turn turn(*this);
  over_ = true;
  last_error_ = absl::UnavailableError("the session is closed");
  if (stream_ == nullptr) return absl::OkStatus();
  v1::InvalidateRequest request;
  request.mutable_close();
  stream_->Send(request);
  stream_->SendDone();
  const Time deadline = DeadlineAfter(options_.call_timeout);
  while (const auto message = stream_->Receive(deadline)) AnswerAboutMemory(*message);
  absl::Status status =
      stream_->ended().value_or(absl::DeadlineExceededError("the session did not close in time"));
  stream_ = nullptr;
  absl::MutexLock state(&state_mu_);
  state_.connected = false;
  return status;
}

RemoteSink::State RemoteSink::state() const {
  absl::MutexLock lock(&state_mu_);
  return state_;
}

absl::Status RemoteSink::OpenStream(Time deadline) {
  auto stream = std::make_unique<SinkStream>(*stub_);
  v1::InvalidateRequest request;
  v1::OpenSession* open = request.mutable_open();
  open->set_session_id(session_id_);
  open->set_guest_instance_id(instance_id_);
  open->set_stream_epoch(++epoch_);
  open->set_oldest_retained_sequence(pending_.empty() ? next_sequence_ : pending_.front().sequence);
  open->set_next_sequence(next_sequence_);
  open->set_guest_ram_bytes(memory_.size_bytes());
  if (memory_.remote()) {
    open->set_memory_kind(v1::GUEST_MEMORY_KIND_REMOTE);
  } else {
    open->set_memory_kind(v1::GUEST_MEMORY_KIND_SHARED);
    open->set_memory_token(memory_.token());
  }
  open->set_guest_cap(options_.caps.cap);
  open->set_guest_ecap(options_.caps.ecap);
  open->set_guest_haw_bits(static_cast<uint32_t>(options_.haw_bits));
  if (!memory_.remote()) open->set_dirty_log_base(options_.dirty_log_base);
  open->set_strategy(options_.strategy);
  open->set_verify(options_.verify);
  stream->Send(request);
  const std::optional<v1::InvalidateResponse> first = stream->Receive(deadline);
  if (!first.has_value()) {
    return stream->ended().value_or(absl::DeadlineExceededError("no answer in time"));
  }
  if (!first->has_opened()) return absl::InternalError("the first answer is not SessionOpened");
  const v1::SessionOpened& opened = first->opened();
  window_ = std::max(1u, opened.limits().max_outstanding_batches());
  session_id_ = opened.session_id();
  stream_ = std::move(stream);
  {
    absl::MutexLock state(&state_mu_);
    state_ = {true, session_id_, opened.strategy()};
  }
  if (lost_) spdlog::info("hypervisor at {} is back", options_.hypervisor);
  lost_ = false;
  backoff_ = milliseconds(0);
  awaiting_reset_ = opened.reset_follows();
  if (awaiting_reset_) return absl::OkStatus();  // Rebuild comes with it
  for (size_t i = 0; i < pending_.size(); ++i) {
    if (pending_[i].sequence >= opened.resume_sequence()) {
      SendPending(i);
      break;
    }
  }
  return absl::OkStatus();
}

void RemoteSink::SendPending(size_t first) {
  for (size_t i = first; i < pending_.size(); ++i) {
    // The guest may have gone on since: its tables need not match after this batch any more.
    if (pending_[i].request.has_batch()) {
      SetClaim(TableClaim::kNone, *pending_[i].request.mutable_batch());
    }
    stream_->Send(pending_[i].request);
  }
}

void RemoteSink::Broken(const absl::Status& status) {
  stream_ = nullptr;
  last_error_ = status;
  {
    absl::MutexLock state(&state_mu_);
    state_.connected = false;
  }
  if (!options_.recover) {
    over_ = true;
    return;
  }
  if (!lost_) {
    metrics_.CountReconnect(status.code());
    spdlog::warn("lost the hypervisor at {}: {}; trying again until it is back",
                 options_.hypervisor, std::string(status.message()));
    lost_ = true;
  }
  if (!memory_.remote() && ErrorReason(status) == "UNKNOWN_MEMORY") {
    // A restarted hypervisor made none of our memory.
    if (absl::Status renewed = memory_.Renew(memory_.token()); renewed.ok()) {
      spdlog::info("guest memory moved into a region of the restarted hypervisor");
      next_attempt_ = Steady::now();
      return;
    }
  }
  backoff_ = std::clamp(backoff_ * 2, kFirstBackoff, kMaxBackoff);
  next_attempt_ = Steady::now() + Jitter(backoff_);
}

bool RemoteSink::Step(Time deadline, SpinWait* spin) {
  if (over_) return false;
  if (stream_ == nullptr) {
    if (next_attempt_ > deadline) {
      std::this_thread::sleep_until(deadline);
      return false;
    }
    std::this_thread::sleep_until(next_attempt_);
    const Time now = Steady::now();
    const Time limit = std::min(std::max(deadline, now + kMinOpenTime),
                                now + absl::ToChronoNanoseconds(options_.call_timeout));
    if (absl::Status status = OpenStream(limit); !status.ok()) Broken(status);
    return true;
  }
  if (std::optional<v1::InvalidateResponse> response = stream_->Receive(deadline, spin)) {
    Handle(*response);
    return true;
  }
  if (!stream_->ended().has_value()) return false;
  const absl::Status end = *stream_->ended();
  Broken(end.ok() ? absl::UnavailableError("the hypervisor closed the stream") : end);
  return true;
}

void RemoteSink::Handle(const v1::InvalidateResponse& response) {
  if (response.has_completion()) return HandleCompletion(response.completion());
  if (AnswerAboutMemory(response)) return;
  if (response.has_reset_required()) {
    spdlog::warn(
        "hypervisor at {} asks for a replay ({}): devices, registers and a global "
        "invalidation are sent again",
        options_.hypervisor, v1::ResetRequired::Reason_Name(response.reset_required().reason()));
    return Rebuild(response.reset_required().resume_sequence());
  }
}

void RemoteSink::HandleCompletion(const v1::Completion& completion) {
  SinkCompletion result;
  result.cost = FromProto(completion.cost());
  result.error = static_cast<vtd::Iqei>(completion.iqei());
  result.consumed = completion.consumed_descriptor_count();
  result.stale_dma_hits = completion.stale_dma_hits();
  result.refused_pages = completion.refused_page_count();
  result.pinned_pages = completion.pinned_page_count();
  for (const v1::FaultRecord& fault : completion.faults()) {
    result.faults.push_back(FromProto(fault));
  }
  const Time now = Steady::now();
  while (!pending_.empty() && pending_.front().sequence <= completion.sequence()) {
    const Pending request = std::move(pending_.front());
    pending_.pop_front();
    metrics_.ack_wall().Observe(static_cast<uint64_t>((now - request.posted).count()));
    const bool exact = request.sequence == completion.sequence();
    if (exact && completion.status().code() != 0 && request.tickets.empty()) {
      spdlog::error("hypervisor at {} refused a part of the replay: {}", options_.hypervisor,
                    completion.status().message());
    }
    for (const auto& [ticket, descriptors] : request.tickets) {
      Done done;
      if (exact) {
        done.status = FromRpcStatus(completion.status());
        done.completion = std::exchange(result, {});
      }
      if (!exact || request.rebuild) {
        done.completion.consumed = descriptors;
        done.completion.error = vtd::Iqei::kNone;
      }
      done_[ticket] = std::move(done);
    }
  }
  // Faults that came by themselves, or with a request that nobody waits for.
  for (const vtd::FaultRecord& fault : result.faults) {
    if (loose_faults_.size() < kMaxLooseFaults) loose_faults_.push_back(fault);
  }
  while (done_.size() > kMaxUnclaimed) {
    done_.erase(std::min_element(done_.begin(), done_.end(),
                                 [](const auto& a, const auto& b) { return a.first < b.first; }));
  }
}

void RemoteSink::Rebuild(uint64_t first_sequence) {
  std::vector<std::pair<uint64_t, uint32_t>> tickets;
  for (const Pending& request : pending_) {
    tickets.insert(tickets.end(), request.tickets.begin(), request.tickets.end());
  }
  pending_.clear();
  awaiting_reset_ = false;
  next_sequence_ = first_sequence;
  const auto add = [this](v1::InvalidateRequest request) {
    pending_.push_back({next_sequence_++, std::move(request), Steady::now(), {}, true});
  };
  for (const auto& [sid, device_tlb] : devices_) {
    v1::InvalidateRequest request;
    request.mutable_device()->set_sequence(next_sequence_);
    request.mutable_device()->set_source_id(sid);
    request.mutable_device()->set_present(true);
    request.mutable_device()->set_device_tlb(device_tlb);
    add(std::move(request));
  }
  v1::InvalidateRequest registers;
  registers.mutable_registers()->set_sequence(next_sequence_);
  registers.mutable_registers()->set_root_table(registers_.root_table.value());
  registers.mutable_registers()->set_translation_enabled(registers_.translation_enabled);
  add(std::move(registers));

  v1::InvalidateRequest global;
  global.mutable_batch()->set_sequence(next_sequence_);
  vtd::IotlbInvalidate iotlb;
  iotlb.granularity = vtd::Granularity::kGlobal;
  for (const vtd::RawDescriptor& d :
       {vtd::Encode(vtd::ContextCacheInvalidate{}), vtd::Encode(iotlb)}) {
    global.mutable_batch()->add_descriptor_words(d.qw0);
    global.mutable_batch()->add_descriptor_words(d.qw1);
  }
  add(std::move(global));
  pending_.back().tickets = std::move(tickets);
  SendPending(0);
}

uint64_t RemoteSink::Enqueue(v1::InvalidateRequest request, uint32_t descriptors) {
  const uint64_t sequence = next_sequence_++;
  if (request.has_batch()) {
    request.mutable_batch()->set_sequence(sequence);
  } else if (request.has_registers()) {
    request.mutable_registers()->set_sequence(sequence);
  } else {
    request.mutable_device()->set_sequence(sequence);
  }
  const uint64_t ticket = next_ticket_++;
  if (stream_ != nullptr && !awaiting_reset_) stream_->Send(request);
  pending_.push_back({sequence, std::move(request), Steady::now(), {{ticket, descriptors}}, false});
  return ticket;
}

absl::Status RemoteSink::Unreachable() const {
  return absl::DeadlineExceededError(absl::StrCat(
      "the hypervisor at ", options_.hypervisor, " did not complete the invalidation in time",
      last_error_.ok() ? "" : absl::StrCat(" (", last_error_.message(), ")"),
      "; is hypervisor_svc running there? It is tried again"));
}

absl::Status RemoteSink::CheckRoom() const {
  if (over_) {
    return absl::UnavailableError(
        absl::StrCat("the session on ", options_.hypervisor, " is over: ", last_error_.message()));
  }
  // What is not acknowledged is kept for the next stream, and that is bounded.
  if (pending_.size() >= window_) {
    return absl::UnavailableError(absl::StrCat(window_, " requests wait for the hypervisor at ",
                                               options_.hypervisor, " already"));
  }
  return absl::OkStatus();
}

absl::StatusOr<uint64_t> RemoteSink::Post(std::span<const vtd::RawDescriptor> descriptors,
                                          std::span<const DeviceTouch> touches, TableClaim claim) {
  const Turn turn(*this);
  if (absl::Status status = CheckRoom(); !status.ok()) return status;
  v1::InvalidateRequest request;
  v1::InvalidationBatch* batch = request.mutable_batch();
  SetClaim(claim, *batch);
  batch->mutable_descriptor_words()->Reserve(static_cast<int>(2 * descriptors.size()));
  for (const vtd::RawDescriptor& d : descriptors) {
    batch->add_descriptor_words(d.qw0);
    batch->add_descriptor_words(d.qw1);
  }
  for (const DeviceTouch& touch : touches) {
    batch->add_touch_words(uint64_t{touch.source_id.value()} << 1 | (touch.write ? 1 : 0));
    batch->add_touch_words(touch.iova.value());
  }
  return Enqueue(std::move(request), static_cast<uint32_t>(descriptors.size()));
}

absl::StatusOr<SinkCompletion> RemoteSink::Await(uint64_t ticket, absl::Duration timeout) {
  const Turn turn(*this);
  return AwaitLocked(ticket, DeadlineAfter(timeout));
}

absl::StatusOr<SinkCompletion> RemoteSink::AwaitLocked(uint64_t ticket, Time deadline) {
  while (true) {
    if (const auto found = done_.find(ticket); found != done_.end()) {
      Done done = std::move(found->second);
      done_.erase(found);
      if (!done.status.ok()) return done.status;
      return std::move(done.completion);
    }
    if (over_) {
      return absl::UnavailableError(absl::StrCat("the session on ", options_.hypervisor,
                                                 " is over: ", last_error_.message()));
    }
    if (!Step(deadline, &spin_) && Steady::now() >= deadline) return Unreachable();
    if (stream_ == nullptr && Steady::now() >= deadline) return Unreachable();
  }
}

absl::Status RemoteSink::UpdateRegisters(const UnitRegisters& registers) {
  const Turn turn(*this);
  if (absl::Status status = CheckRoom(); !status.ok()) return status;
  registers_ = registers;
  v1::InvalidateRequest request;
  request.mutable_registers()->set_root_table(registers.root_table.value());
  request.mutable_registers()->set_translation_enabled(registers.translation_enabled);
  const uint64_t ticket = Enqueue(std::move(request), 0);
  return AwaitLocked(ticket, DeadlineAfter(options_.call_timeout)).status();
}

absl::Status RemoteSink::UpdateDevice(SourceId sid, bool present, bool has_device_tlb) {
  const Turn turn(*this);
  if (absl::Status status = CheckRoom(); !status.ok()) return status;
  const bool added = present && !devices_.contains(sid.value());
  if (present) {
    devices_[sid.value()] = has_device_tlb;
  } else {
    devices_.erase(sid.value());
  }
  v1::InvalidateRequest request;
  request.mutable_device()->set_source_id(sid.value());
  request.mutable_device()->set_present(present);
  request.mutable_device()->set_device_tlb(has_device_tlb);
  const uint64_t ticket = Enqueue(std::move(request), 0);
  absl::Status status = AwaitLocked(ticket, DeadlineAfter(options_.call_timeout)).status();
  if (!status.ok() && !absl::IsDeadlineExceeded(status) && added) devices_.erase(sid.value());
  return status;
}

std::vector<vtd::FaultRecord> RemoteSink::Poll(absl::Duration wait) {
  const Turn turn(*this);
  // Faults that came while somebody awaited a completion are here already.
  Time deadline = loose_faults_.empty() ? DeadlineAfter(wait) : Steady::now();
  for (int i = 0; i < kMaxMessagesPerPoll && Step(deadline); ++i) {
    if (!loose_faults_.empty()) deadline = Steady::now();
  }
  return std::exchange(loose_faults_, {});
}

}  // namespace viommu
