#include "hypervisor_svc/invalidation_stream.h"

#include <spdlog/spdlog.h>

#include <chrono>
#include <utility>

#include "svc_common/conversions.h"
#include "svc_common/credentials.h"

namespace viommu {
namespace {

constexpr std::chrono::seconds kLastWriteTime{1};

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
      if (ok) return OnAccepted();
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
      if (alarm_set_) alarm_.Cancel();
      break;
    }
    case Op::kAlarm: {
      absl::MutexLock lock(&mu_);
      alarm_set_ = false;
      if (ok && !finished_) context_.TryCancel();
      break;
    }
  }
  bool over = false;
  {
    absl::MutexLock lock(&mu_);
    over = finished_ && !reading_ && !writing_ && !alarm_set_ && self_ != nullptr;
    if (over) self_ = nullptr;
  }
  if (!over) return;
  if (session_ != nullptr) session_->Detach(epoch_);
  service_.Forget(this);
}

void InvalidationStream::OnAccepted() {
  service_.Accept();
  identity_ = PeerIdentity(context_);
  const absl::Status admitted = service_.Admit(this);
  absl::MutexLock lock(&mu_);
  if (!admitted.ok()) return EndLocked(admitted);
  ReadNextLocked();
}

void InvalidationStream::OnRead(bool ok) {
  {
    absl::MutexLock lock(&mu_);
    reading_ = false;
    if (ending_.has_value()) return;
    if (!ok) return EndLocked(absl::OkStatus());  // the guest closed its side, or is gone
  }
  std::vector<v1::InvalidateResponse> out;
  const absl::Status status = Handle(out);
  Send(std::move(out));
  absl::MutexLock lock(&mu_);
  if (!status.ok()) {
    spdlog::debug("stream ends: {}", std::string(status.message()));
    return EndLocked(status);
  }
  if (ending_.has_value()) return;
  read_paused_ = QueueFullLocked();
  if (!read_paused_) ReadNextLocked();
}

absl::Status InvalidationStream::Handle(std::vector<v1::InvalidateResponse>& out) {
  if (session_ != nullptr) {
    if (!request_.has_close()) return session_->Handle(epoch_, request_, out);
    session_->Detach(epoch_);  // this stream ends with OK, not as one whose session was taken away
    service_.registry_.Close(session_);
    session_ = nullptr;
    absl::MutexLock lock(&mu_);
    EndLocked(absl::OkStatus());
    return absl::OkStatus();
  }
  if (!request_.has_open()) {
    return WithReason(absl::InvalidArgumentError("the first message must open a session"),
                      "MALFORMED_MESSAGE");
  }
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
  to_write_.pop_front();
  if (!ok) to_write_.clear();  // broken: the pending read fails too and ends the stream
  if (!to_write_.empty()) {
    WriteNextLocked();
  } else if (ending_.has_value()) {
    EndLocked(*ending_);
  }
  if (read_paused_ && !ending_.has_value() && !QueueFullLocked()) {
    read_paused_ = false;
    ReadNextLocked();
  }
}

void InvalidationStream::Push(const v1::InvalidateResponse& response) { Send({response}); }

void InvalidationStream::Send(std::vector<v1::InvalidateResponse> responses) {
  absl::MutexLock lock(&mu_);
  if (ending_.has_value() || finishing_) return;
  for (v1::InvalidateResponse& response : responses) to_write_.push_back(std::move(response));
  if (!writing_ && !to_write_.empty()) WriteNextLocked();
}

void InvalidationStream::End(const absl::Status& status) {
  absl::MutexLock lock(&mu_);
  if (ending_.has_value()) return;
  EndLocked(status);
  // A peer that does not read would keep the last write, and with it the end, waiting for ever.
  if (!writing_) return;
  alarm_set_ = true;
  alarm_.Set(queue_, std::chrono::system_clock::now() + kLastWriteTime, &alarm_tag_);
}

void InvalidationStream::EndLocked(const absl::Status& status) {
  if (finishing_) return;
  ending_ = status;
  if (writing_) return;  // OnWritten comes back here: Finish may not overtake a write
  finishing_ = true;
  call_.Finish(ToGrpcStatus(status), &finish_tag_);
}

void InvalidationStream::WriteNextLocked() {
  writing_ = true;
  call_.Write(to_write_.front(), &write_tag_);
}

void InvalidationStream::ReadNextLocked() {
  reading_ = true;
  call_.Read(&request_, &read_tag_);
}

bool InvalidationStream::QueueFullLocked() const {
  // A guest that sends without reading its completions is not read from until it does.
  return to_write_.size() >= service_.registry_.options().max_outstanding_batches;
}

}  // namespace viommu
