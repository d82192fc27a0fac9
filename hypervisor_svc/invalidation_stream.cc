#include "hypervisor_svc/invalidation_stream.h"

#include <spdlog/spdlog.h>

#include <chrono>
#include <utility>

#include "absl/strings/str_cat.h"
#include "svc_common/conversions.h"
#include "svc_common/credentials.h"
#include "svc_common/steady_deadline.h"

namespace viommu {
namespace {

constexpr std::chrono::seconds kLastWriteTime{1};
// No guest answers that soon after it was answered: it had sent on before.
constexpr std::chrono::microseconds kSentBefore{3};

// Completions are cumulative: two that report nothing but work are one of the later sequence.
bool IsPlain(const v1::InvalidateResponse& response) {
  if (!response.has_completion()) return false;
  const v1::Completion& completion = response.completion();
  return completion.iqei() == 0 && !completion.has_status() && completion.faults().empty() &&
         completion.stale_dma_hits() == 0 && completion.cost().descriptor_count() != 0;
}

void MergePlain(const v1::Completion& earlier, v1::Completion& later) {
  SyncCost cost = FromProto(earlier.cost());
  cost += FromProto(later.cost());
  *later.mutable_cost() = ToProto(cost);
}

}  // namespace

void InvalidationStream::RequestCall(grpc::ServerCompletionQueue* queue) {
  {
    absl::MutexLock lock(&mu_);
    self_ = shared_from_this();
  }
  queue_ = queue;
  service_.service_.RequestInvalidate(&context_, &call_, queue, queue, &accept_tag_);
}

void InvalidationStream::OnDone(Op op, bool ok) {
  const std::shared_ptr<InvalidationStream> keep = shared_from_this();
  switch (op) {
    case Op::kAccept: {
      if (ok) {
        OnAccepted();
        break;
      }
      absl::MutexLock lock(&mu_);  // the server is shutting down: there was no call
      self_ = nullptr;
      return;
    }
    case Op::kRead:
      OnRead(ok);
      break;
    case Op::kWrite:
      OnWritten(ok);
      break;
    case Op::kFinish: {
      absl::MutexLock lock(&mu_);
      finished_ = true;
      if (last_write_alarm_set_) last_write_alarm_.Cancel();
      if (open_alarm_set_) open_alarm_.Cancel();
      break;
    }
    case Op::kLastWriteAlarm: {
      absl::MutexLock lock(&mu_);
      last_write_alarm_set_ = false;
      if (ok && !finished_) context_.TryCancel();
      break;
    }
    case Op::kOpenAlarm: {
      absl::MutexLock lock(&mu_);
      open_alarm_set_ = false;
      if (!ok || ending_.has_value()) break;
      EndLocked(WithReason(
          absl::DeadlineExceededError(absl::StrCat("no session was opened within ",
                                                   service_.registry_.options().open_timeout_ms,
                                                   " ms (--open_timeout_ms)")),
          "NOT_OPENED"));
      break;
    }
  }
  {
    absl::MutexLock lock(&mu_);
    if (!finished_ || reading_ || writing_ || handling_ || last_write_alarm_set_ ||
        open_alarm_set_ || self_ == nullptr) {
      return;
    }
    self_ = nullptr;
  }
  if (session_ != nullptr) session_->Detach(epoch_);
  service_.Forget(this);
}

void InvalidationStream::OnAccepted() {
  service_.Accept();
  identity_ = PeerIdentity(context_);
  const absl::Status admitted = service_.Admit(this);
  absl::MutexLock lock(&mu_);
  if (!admitted.ok()) {
    service_.registry_.counters().CountRefusal(admitted.code());
    return EndLocked(admitted);
  }
  open_alarm_set_ = true;
  open_alarm_.Set(
      queue_,
      GrpcDeadline(std::chrono::steady_clock::now() +
                   std::chrono::milliseconds(service_.registry_.options().open_timeout_ms)),
      &open_alarm_tag_);
  ReadNextLocked();
}

void InvalidationStream::OnRead(bool ok) {
  absl::MutexLock lock(&mu_);
  reading_ = false;
  if (ending_.has_value()) return;
  if (!ok) return EndLocked(absl::OkStatus());  // the guest closed its side, or is gone
  const bool answer = incoming_.has_table_pages() || incoming_.has_memory_written();
  if (answer && answers_awaited_ > 0) {
    --answers_awaited_;
    pages_->Deliver(this, std::exchange(incoming_, {}));
    if (handling_) {
      ReadForAnswersLocked();
    } else if (HasRoomLocked()) {
      ReadNextLocked();
    }
    return;
  }
  pipelined_ = !to_write_.empty() || std::chrono::steady_clock::now() - last_write_ < kSentBefore;
  waiting_.push_back(std::exchange(incoming_, {}));
  if (handling_) return ReadForAnswersLocked();  // whoever does that takes this one next
  handling_ = true;
  Responses out;
  while (!waiting_.empty() && !ending_.has_value()) {
    request_ = std::move(waiting_.front());
    waiting_.pop_front();
    // Not else: by itself it sends the guest a window update in a packet of its own.
    if (pipelined_ && !reading_ && waiting_.empty() && HasRoomLocked()) ReadNextLocked();
    ReadForAnswersLocked();  // a device access may wait for one, and this request for the access
    mu_.Unlock();
    out.clear();
    const absl::Status status = Handle(out);
    mu_.Lock();
    QueueLocked(std::move(out));
    if (!status.ok() && !ending_.has_value()) {
      spdlog::debug("stream ends: {}", std::string(status.message()));
      service_.registry_.counters().CountRefusal(status.code());
      EndLocked(status);
    }
    if (!writing_ && !to_write_.empty()) {
      if (pipelined_ && !held_ && StreamThreads::Leads()) {
        held_ = true;
        service_.Hold(shared_from_this());
      } else if (!held_) {
        WriteNextLocked();
      }
    }
    if (!reading_ && waiting_.empty() && !ending_.has_value() && HasRoomLocked()) {
      ReadNextLocked();
    }
  }
  handling_ = false;
}

absl::Status InvalidationStream::Handle(Responses& out) {
  if (session_ == nullptr) return Open(out);
  if (!request_.has_close()) return session_->Handle(epoch_, request_, out);
  StreamThreads::StepAside();  // to give memory back takes time
  session_->Detach(epoch_);    // this stream ends with OK, not as one whose session was taken away
  service_.registry_.Close(session_);
  session_ = nullptr;
  absl::MutexLock lock(&mu_);
  EndLocked(absl::OkStatus());
  return absl::OkStatus();
}

absl::Status InvalidationStream::Open(Responses& out) {
  if (!request_.has_open()) {
    return WithReason(absl::InvalidArgumentError("the first message must open a session"),
                      "MALFORMED_MESSAGE");
  }
  {
    absl::MutexLock lock(&mu_);
    open_alarm_.Cancel();
  }
  StreamThreads::StepAside();
  absl::StatusOr<std::shared_ptr<GuestSession>> session =
      service_.registry_.Open(request_.open(), identity_, shared_from_this(), out);
  if (!session.ok()) return session.status();
  session_ = *std::move(session);
  epoch_ = request_.open().stream_epoch();
  return absl::OkStatus();
}

void InvalidationStream::OnWritten(bool ok) {
  absl::MutexLock lock(&mu_);
  writing_ = false;
  if (!ok) {  // broken: the pending read fails too and ends the stream
    to_write_.clear();
    answers_to_write_ = 0;
  }
  if (!to_write_.empty()) {
    if (!held_) WriteNextLocked();
  } else if (ending_.has_value()) {
    EndLocked(*ending_);
  }
  if (!reading_ && !handling_ && !ending_.has_value() && HasRoomLocked()) ReadNextLocked();
}

void InvalidationStream::Flush() {
  absl::MutexLock lock(&mu_);
  held_ = false;
  if (!writing_ && !to_write_.empty()) WriteNextLocked();
}

bool InvalidationStream::HasRoomLocked() const {
  // A guest that sends without reading its completions is not read from until it does.
  return answers_to_write_ < service_.registry_.options().max_outstanding_batches;
}

void InvalidationStream::Push(const v1::InvalidateResponse& response) {
  absl::MutexLock lock(&mu_);
  QueueLocked({response});
  if (opened_ && !writing_ && !held_ && !to_write_.empty()) WriteNextLocked();
}

void InvalidationStream::Ask(const v1::InvalidateResponse& question,
                             const std::shared_ptr<GuestPages>& pages) {
  {
    absl::MutexLock lock(&mu_);
    if (!ending_.has_value()) {
      pages_ = pages;
      ++answers_awaited_;
      QueueLocked({question});
      if (opened_ && !writing_) WriteNextLocked();
      return ReadForAnswersLocked();
    }
  }
  pages->Detach(this, absl::UnavailableError("stream ended"));
}

void InvalidationStream::QueueLocked(Responses responses) {
  if (ending_.has_value() || finishing_) return;
  for (v1::InvalidateResponse& response : responses) {
    ++answers_to_write_;
    if (response.has_opened()) {  // before what others may have pushed already
      opened_ = true;
      to_write_.push_front({std::move(response)});
      continue;
    }
    if (!to_write_.empty() && IsPlain(to_write_.back().response) && IsPlain(response)) {
      Outgoing& last = to_write_.back();
      MergePlain(last.response.completion(), *response.mutable_completion());
      last.response.Swap(&response);
      ++last.answers;
      continue;
    }
    to_write_.push_back({std::move(response)});
  }
}

void InvalidationStream::End(const absl::Status& status) {
  absl::MutexLock lock(&mu_);
  if (ending_.has_value()) return;
  EndLocked(status);
  // A peer that does not read would keep the last write, and with it the end, waiting for ever.
  if (!writing_) return;
  last_write_alarm_set_ = true;
  last_write_alarm_.Set(queue_, GrpcDeadline(std::chrono::steady_clock::now() + kLastWriteTime),
                        &last_write_alarm_tag_);
}

void InvalidationStream::EndLocked(const absl::Status& status) {
  if (finishing_) return;
  ending_ = status;
  if (pages_ != nullptr) pages_->Detach(this, absl::UnavailableError("stream ended"));
  if (!writing_ && !to_write_.empty()) WriteNextLocked();
  if (writing_) return;  // OnWritten comes back here: Finish may not overtake a write
  finishing_ = true;
  call_.Finish(ToGrpcStatus(status), &finish_tag_);
}

void InvalidationStream::WriteNextLocked() {
  writing_ = true;
  call_.Write(to_write_.front().response, &write_tag_);  // serialises it before it returns
  answers_to_write_ -= to_write_.front().answers;
  to_write_.pop_front();
  last_write_ = std::chrono::steady_clock::now();
}

void InvalidationStream::ReadNextLocked() {
  reading_ = true;
  call_.Read(&incoming_, &read_tag_);
}

void InvalidationStream::ReadForAnswersLocked() {
  // A guest has no more requests on their way than its session allows.
  if (answers_awaited_ > 0 && !reading_ &&
      waiting_.size() < service_.registry_.options().max_outstanding_batches) {
    ReadNextLocked();
  }
}

}  // namespace viommu
