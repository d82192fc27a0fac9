#include "hypervisor_svc/guest_session.h"

#include <chrono>
#include <utility>

#include "absl/strings/str_cat.h"
#include "iommu_core/base/errors.h"
#include "svc_common/conversions.h"

namespace viommu {
namespace {

// Device touches beside one doorbell; a real device issues more than one access a descriptor.
constexpr int kMaxTouches = 65'536;

absl::Status Malformed(const std::string& what) {
  return WithReason(absl::InvalidArgumentError(what), "MALFORMED_MESSAGE");
}

absl::Status Ended() {
  return WithReason(absl::NotFoundError("the session has ended"), "UNKNOWN_SESSION");
}

absl::Status Rebuilding() {
  return WithReason(absl::UnavailableError("the session is being rebuilt; try again"),
                    "REBUILDING");
}

absl::Status Fenced() {
  return WithReason(absl::AbortedError("a stream with a higher epoch took the session"), "FENCED");
}

TableClaim ClaimOf(const v1::InvalidationBatch& batch) {
  if (batch.settled()) return TableClaim::kSettled;
  return batch.quiet() ? TableClaim::kQuiet : TableClaim::kNone;
}

// One synchronisation: its wall time, and the session's meter while it goes on.
class SyncTimer {
 public:
  SyncTimer(WallHistogram& histogram, WorkMeter& meter)
      : histogram_(histogram), meter_(meter), start_(std::chrono::steady_clock::now()) {
    meter_.busy_since_ns.store(start_.time_since_epoch().count(), std::memory_order_relaxed);
  }
  ~SyncTimer() {
    const auto elapsed = static_cast<uint64_t>(
        std::chrono::nanoseconds(std::chrono::steady_clock::now() - start_).count());
    meter_.busy_since_ns.store(-1, std::memory_order_relaxed);
    meter_.work_wall_ns.fetch_add(elapsed, std::memory_order_relaxed);
    histogram_.Observe(elapsed);
  }

 private:
  WallHistogram& histogram_;
  WorkMeter& meter_;
  const std::chrono::steady_clock::time_point start_;
};

}  // namespace

GuestSession::GuestSession(SessionInfo info, std::shared_ptr<PhysicalMemory> memory,
                           std::shared_ptr<RemoteGuest> remote,
                           std::unique_ptr<HypervisorSession> core, HypervisorCounters& counters)
    : info_(std::move(info)),
      remote_(std::move(remote)),
      counters_(counters),
      // The memory lives as long as the last call that still uses the core.
      core_(core.release(), [memory = std::move(memory)](HypervisorSession* c) { delete c; }) {}

std::shared_ptr<HypervisorSession> GuestSession::core() {
  absl::MutexLock lock(&state_mu_);
  return core_;
}

absl::Status GuestSession::Attach(const v1::OpenSession& open, std::shared_ptr<StreamHandle> stream,
                                  bool replaces_unknown, std::vector<v1::InvalidateResponse>& out) {
  // A remote guest that comes on a new stream will not answer on the older one any more.
  if (remote_ != nullptr && open.stream_epoch() > attached_epoch_.load()) {
    remote_->pages->Stop(Fenced());
  }
  PatientLock lock(&mu_);
  if (open.stream_epoch() <= epoch_) {
    return WithReason(
        absl::AbortedError(absl::StrCat("stream epoch ", open.stream_epoch(), " is not above ",
                                        epoch_, ", the session's latest")),
        "STALE_EPOCH");
  }
  std::shared_ptr<StreamHandle> older;
  uint64_t completed = 0;
  {
    absl::MutexLock state(&state_mu_);
    if (core_ == nullptr) return Ended();
    if (remote_ != nullptr) remote_->pages->Attach(stream);
    older = std::exchange(stream_, std::move(stream));
    progress_.connected = true;
    progress_.disconnected_at = SteadyTime::max();
    completed = progress_.completed_sequence;
  }
  epoch_ = open.stream_epoch();
  attached_epoch_.store(epoch_);
  if (older != nullptr) {
    older->End(Fenced());
  }
  if (replaces_unknown) {
    Reset(v1::ResetRequired::REASON_UNKNOWN_SESSION, out);
  } else if (awaiting_replay_ || open.oldest_retained_sequence() > completed + 1 ||
             open.next_sequence() < completed + 1) {
    Reset(v1::ResetRequired::REASON_SEQUENCE_GAP, out);
  } else {
    for (const v1::Completion& completion : retained_) {
      if (completion.sequence() < open.oldest_retained_sequence()) continue;
      *out.emplace_back().mutable_completion() = completion;
    }
  }
  return absl::OkStatus();
}

bool GuestSession::Detach(uint64_t epoch) {
  PatientLock lock(&mu_);
  if (epoch != epoch_) return false;
  absl::MutexLock state(&state_mu_);
  stream_ = nullptr;
  progress_.connected = false;
  progress_.disconnected_at = std::chrono::steady_clock::now();
  return true;
}

absl::Status GuestSession::CheckBatch(const v1::InvalidationBatch& batch) const {
  const int words = batch.wide() ? 4 : 2;
  if (batch.descriptor_words_size() % words != 0) {
    return Malformed(absl::StrCat(batch.descriptor_words_size(), " descriptor words are no whole ",
                                  "number of ", words, "-word descriptors"));
  }
  if (static_cast<uint32_t>(batch.descriptor_words_size() / words) > info_.max_batch_descriptors) {
    return errors::LimitReached("--max_batch_descriptors", info_.max_batch_descriptors);
  }
  if (batch.touch_words_size() % 2 != 0 || batch.touch_words_size() / 2 > kMaxTouches) {
    return Malformed(absl::StrCat(batch.touch_words_size(), " touch words: pairs, at most ",
                                  kMaxTouches, " of them"));
  }
  for (int i = 0; i < batch.touch_words_size(); i += 2) {
    if (batch.touch_words(i) >> 17 != 0) return Malformed("a touch names no 16-bit source id");
  }
  return absl::OkStatus();
}

absl::Status GuestSession::Handle(uint64_t epoch, const v1::InvalidateRequest& request,
                                  std::vector<v1::InvalidateResponse>& out) {
  PatientLock lock(&mu_);
  if (epoch != epoch_) {
    return Fenced();
  }
  uint64_t sequence = 0;
  switch (request.request_case()) {
    case v1::InvalidateRequest::kBatch: {
      if (absl::Status status = CheckBatch(request.batch()); !status.ok()) return status;
      sequence = request.batch().sequence();
      break;
    }
    case v1::InvalidateRequest::kRegisters:
      sequence = request.registers().sequence();
      break;
    case v1::InvalidateRequest::kDevice:
      if (request.device().source_id() > 0xffff) return Malformed("a source id has 16 bits");
      sequence = request.device().sequence();
      break;
    case v1::InvalidateRequest::kOpen:
      return Malformed("the session is open already");
    case v1::InvalidateRequest::kTablePages:
    case v1::InvalidateRequest::kMemoryWritten:
      return Malformed("nothing of the guest's memory was asked for");
    default:
      return Malformed("an empty or unknown message");
  }
  if (sequence == 0) return Malformed("sequences start at 1");

  const uint64_t completed = progress().completed_sequence;
  // Sent before the guest heard of the reset: its replay covers it.
  if (awaiting_replay_ && sequence <= completed) return absl::OkStatus();
  if (sequence <= completed) {
    // Done before: acknowledged again, not counted again.
    v1::Completion* again = out.emplace_back().mutable_completion();
    again->set_sequence(completed);
    for (const v1::Completion& completion : retained_) {
      if (completion.sequence() == sequence) *again = completion;
    }
    return absl::OkStatus();
  }
  if (sequence > completed + 1) {
    // What was sent after the gap and before the guest heard of it is dropped without a word.
    if (!awaiting_replay_) Reset(v1::ResetRequired::REASON_SEQUENCE_GAP, out);
    return absl::OkStatus();
  }
  if (core() == nullptr) return Ended();
  if (long_work_) StreamThreads::BeginLong();
  StreamThreads::SetMeter(&work_);
  const uint64_t slices = work_.slices.load(std::memory_order_relaxed);
  const absl::Status status = HandleInTurn(request, out);
  // Not by time alone: this thread may have lost its CPU in the middle of a short one.
  // A remote guest's request steps aside by itself when it waits for pages.
  long_work_ = remote_ == nullptr && work_.slices.load(std::memory_order_relaxed) != slices &&
               StreamThreads::Elapsed() >= StreamThreads::kLeadTime;
  StreamThreads::SetMeter(nullptr);
  if (long_work_ || remote_ != nullptr) stats();  // kept for those who ask during the next one
  return status;
}

absl::Status GuestSession::HandleInTurn(const v1::InvalidateRequest& request,
                                        std::vector<v1::InvalidateResponse>& out) {
  const uint64_t sequence = progress().completed_sequence + 1;
  awaiting_replay_ = false;
  pull_status_ = absl::OkStatus();
  v1::Completion& completion = *out.emplace_back().mutable_completion();
  completion.set_sequence(sequence);
  SyncCost cost;
  if (request.has_batch()) {
    cost = HandleBatch(request.batch(), completion);
  } else if (request.has_registers()) {
    HandleRegisters(request.registers(), completion);
  } else {
    HandleDevice(request.device(), completion);
  }
  if (!pull_status_.ok()) {
    // What could not be read was taken for absent: neither the shadow nor its completion counts.
    out.pop_back();
    awaiting_replay_ = true;
    if (absl::IsResourceExhausted(pull_status_)) {
      counters_.remote_failures[static_cast<size_t>(RemoteFailure::kLimit)].fetch_add(
          1, std::memory_order_relaxed);
    }
    return pull_status_;
  }
  retained_.push_back(completion);
  if (retained_.size() > info_.max_outstanding_batches) retained_.pop_front();
  {
    absl::MutexLock state(&state_mu_);
    progress_.completed_sequence = sequence;
    progress_.batches += request.has_batch() ? 1 : 0;
  }
  ResetAfterMismatch(cost, out);
  return absl::OkStatus();
}

absl::Status GuestSession::PullStatus() const {
  return remote_ == nullptr ? absl::OkStatus() : remote_->memory->status();
}

void GuestSession::NotePulls() {
  pull_status_ = PullStatus();
  if (!pull_status_.ok()) rebuilding_ = true;
}

absl::Status GuestSession::AccessStatus() const {
  if (rebuilding_) return Rebuilding();
  const absl::Status pulled = PullStatus();
  if (pulled.ok()) return pulled;
  return WithReason(absl::UnavailableError(
                        absl::StrCat("the guest's memory cannot be reached: ", pulled.message(),
                                     "; try again once it is back")),
                    "REMOTE_MEMORY");
}

void GuestSession::ResetAfterMismatch(const SyncCost& cost,
                                      std::vector<v1::InvalidateResponse>& out) {
  if (cost.verified_pages != 0 && cost.shadow_mismatches == 0) mismatch_reset_ = false;
  // What a replay does not mend would only ask for the next one.
  if (cost.shadow_mismatches == 0 || std::exchange(mismatch_reset_, true)) return;
  {
    // The guest may have sent on. None of that may be taken for the replay, nor the replay for it.
    absl::MutexLock state(&state_mu_);
    progress_.completed_sequence += info_.max_outstanding_batches;
  }
  Reset(v1::ResetRequired::REASON_SHADOW_MISMATCH, out);
}

SyncCost GuestSession::HandleBatch(const v1::InvalidationBatch& batch, v1::Completion& completion) {
  const size_t words = batch.wide() ? 4 : 2;
  const uint64_t* word = batch.descriptor_words().data();
  descriptors_.resize(static_cast<size_t>(batch.descriptor_words_size()) / words);
  for (vtd::RawDescriptor& d : descriptors_) {
    d = words == 4 ? vtd::RawDescriptor{word[0], word[1], word[2], word[3]}
                   : vtd::RawDescriptor{word[0], word[1]};
    word += words;
  }
  const uint64_t* touch_word = batch.touch_words().data();
  touches_.resize(static_cast<size_t>(batch.touch_words_size() / 2));
  for (DeviceTouch& touch : touches_) {
    touch = {SourceId(static_cast<uint16_t>(touch_word[0] >> 1)), Iova(touch_word[1]),
             (touch_word[0] & 1) != 0};
    touch_word += 2;
  }
  const std::shared_ptr<HypervisorSession> core = this->core();
  PatientLock working(&core_mu_);
  SinkCompletion done;
  {
    SyncTimer timer(counters_.sync_wall[static_cast<int>(SyncTrigger::kBatch)]
                                       [static_cast<int>(info_.strategy)],
                    work_);
    done = core->Apply(descriptors_, touches_, ClaimOf(batch));
    rebuilding_ = false;
    NotePulls();
  }
  *completion.mutable_cost() = ToProto(done.cost);
  for (const vtd::FaultRecord& fault : done.faults) *completion.add_faults() = ToProto(fault);
  completion.set_iqei(static_cast<uint32_t>(done.error));
  completion.set_consumed_descriptor_count(done.consumed);
  completion.set_refused_page_count(done.refused_pages);
  completion.set_stale_dma_hits(done.stale_dma_hits);
  completion.set_pinned_page_count(done.pinned_pages);
  if (done.faults.size() >= info_.max_faults_retained) {
    completion.set_dropped_fault_count(core->stats().faults_dropped);
  }
  RetainFaults(done.faults);
  return done.cost;
}

void GuestSession::HandleRegisters(const v1::RegisterUpdate& update, v1::Completion& completion) {
  PatientLock working(&core_mu_);
  SyncTimer timer(counters_.sync_wall[static_cast<int>(SyncTrigger::kRegisters)]
                                     [static_cast<int>(info_.strategy)],
                  work_);
  const absl::Status status =
      core()->UpdateRegisters({PhysAddr(update.root_table()), update.translation_enabled()});
  NotePulls();
  if (!status.ok()) *completion.mutable_status() = ToRpcStatus(status);
}

void GuestSession::HandleDevice(const v1::DeviceUpdate& update, v1::Completion& completion) {
  PatientLock working(&core_mu_);
  SyncTimer timer(
      counters_.sync_wall[static_cast<int>(SyncTrigger::kDevice)][static_cast<int>(info_.strategy)],
      work_);
  const auto sid = static_cast<uint16_t>(update.source_id());
  const auto known = devices_.find(sid);
  const std::shared_ptr<HypervisorSession> core = this->core();
  absl::Status status;
  // Replays may state again what is so already.
  if (known != devices_.end() && (!update.present() || known->second != update.device_tlb())) {
    status = core->RemoveDevice(SourceId(sid));
    if (status.ok()) devices_.erase(known);
  }
  if (status.ok() && update.present() && !devices_.contains(sid)) {
    status = core->AddDevice(SourceId(sid), update.device_tlb());
    if (status.ok()) devices_[sid] = update.device_tlb();
    NotePulls();
  }
  if (!status.ok()) *completion.mutable_status() = ToRpcStatus(status);
}

void GuestSession::Reset(v1::ResetRequired::Reason reason,
                         std::vector<v1::InvalidateResponse>& out) {
  {
    StreamThreads::StepAside();  // to empty a shadow takes as long as it is large
    PatientLock working(&core_mu_);
    const std::shared_ptr<HypervisorSession> core = this->core();
    for (const auto& [sid, device_tlb] : devices_) core->RemoveDevice(SourceId(sid)).IgnoreError();
    devices_.clear();
    core->UpdateRegisters({})
        .IgnoreError();  // translation off: nothing to look at, nothing to refuse
    rebuilding_ = true;
  }
  retained_.clear();
  awaiting_replay_ = true;
  counters_.resyncs[reason].fetch_add(1, std::memory_order_relaxed);
  v1::ResetRequired* reset = out.emplace_back().mutable_reset_required();
  reset->set_reason(reason);
  reset->set_resume_sequence(progress().completed_sequence + 1);
}

SessionStats GuestSession::End() {
  if (remote_ != nullptr) remote_->pages->Stop(Ended());  // nobody waits for the guest any more
  PatientLock lock(&mu_);
  absl::MutexLock working(&core_mu_);
  const std::shared_ptr<HypervisorSession> core = this->core();
  if (core == nullptr) return {};
  for (const auto& [sid, device_tlb] : devices_) core->RemoveDevice(SourceId(sid)).IgnoreError();
  devices_.clear();
  SessionStats last = core->stats();
  std::shared_ptr<StreamHandle> stream;
  std::shared_ptr<HypervisorSession> released;  // after the lock: it is the expensive part
  {
    absl::MutexLock state(&state_mu_);
    released = std::move(core_);
    stream = std::move(stream_);
    progress_.connected = false;
    progress_.ended = true;
  }
  if (stream != nullptr) stream->End(Ended());
  return last;
}

absl::StatusOr<DmaResult> GuestSession::Dma(SourceId sid, Iova iova, bool write,
                                            std::span<std::byte> data, uint32_t* recorded) {
  DmaResult result;
  std::vector<vtd::FaultRecord> faults;
  {
    absl::MutexLock working(&core_mu_);
    // Asked for under the lock: what ends while an access waits has no device to be blocked.
    const std::shared_ptr<HypervisorSession> core = this->core();
    if (core == nullptr) return Ended();
    if (rebuilding_) return Rebuilding();
    result = core->Dma(sid, iova, write, data, /*probe=*/false);
    faults = core->TakeFaults();
    if (absl::Status status = AccessStatus(); !status.ok()) return status;
  }
  *recorded = static_cast<uint32_t>(faults.size());
  if (faults.empty()) return result;
  RetainFaults(faults);
  // Sequence 0 acknowledges nothing: the answer to what was completed last may still be on its way
  // to the stream's queue, and the guest would take this for it.
  v1::InvalidateResponse response;
  response.mutable_completion();
  std::shared_ptr<StreamHandle> stream;
  {
    absl::MutexLock state(&state_mu_);
    stream = stream_;
  }
  for (const vtd::FaultRecord& fault : faults) {
    *response.mutable_completion()->add_faults() = ToProto(fault);
  }
  if (stream != nullptr) stream->Push(response);
  return result;
}

absl::StatusOr<DeviceTranslation> GuestSession::Translate(SourceId sid, Iova iova, Access access) {
  absl::MutexLock working(&core_mu_);
  const std::shared_ptr<HypervisorSession> core = this->core();
  if (core == nullptr) return Ended();
  auto translation = core->Translate(sid, iova, access);
  if (absl::Status status = AccessStatus(); !status.ok()) return status;
  return translation;
}

absl::StatusOr<std::vector<LeafMapping>> GuestSession::Mappings(SourceId sid) {
  absl::MutexLock working(&core_mu_);
  const std::shared_ptr<HypervisorSession> core = this->core();
  if (core == nullptr) return Ended();
  auto mappings = core->FlattenShadow(sid);
  if (absl::Status status = AccessStatus(); !status.ok()) return status;
  return mappings;
}

std::vector<SourceId> GuestSession::devices() {
  absl::MutexLock lock(&mu_);
  std::vector<SourceId> out;
  for (const auto& [sid, device_tlb] : devices_) out.push_back(SourceId(sid));
  return out;
}

void GuestSession::RetainFaults(const std::vector<vtd::FaultRecord>& faults) {
  if (faults.empty()) return;
  absl::MutexLock lock(&fault_mu_);
  faults_.insert(faults_.end(), faults.begin(), faults.end());
  while (faults_.size() > info_.max_faults_retained) {
    faults_.pop_front();
    ++first_fault_;
  }
}

uint64_t GuestSession::ReadFaults(uint64_t* next, size_t limit,
                                  std::vector<vtd::FaultRecord>* out) {
  absl::MutexLock lock(&fault_mu_);
  const uint64_t lost = first_fault_ > *next ? first_fault_ - *next : 0;
  *next += lost;
  for (size_t i = *next - first_fault_; i < faults_.size() && out->size() < limit; ++i, ++*next) {
    out->push_back(faults_[i]);
  }
  return lost;
}

GuestSession::Progress GuestSession::progress() {
  absl::MutexLock lock(&state_mu_);
  return progress_;
}

SessionStats GuestSession::stats() {
  const std::shared_ptr<HypervisorSession> core = this->core();
  if (core == nullptr) return {};
  if (!core_mu_.TryLock()) {
    absl::MutexLock lock(&state_mu_);
    return last_stats_;
  }
  const SessionStats now = core->stats();
  core_mu_.Unlock();
  absl::MutexLock lock(&state_mu_);
  return last_stats_ = now;
}

}  // namespace viommu
