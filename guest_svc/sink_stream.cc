#include "guest_svc/sink_stream.h"

#include <algorithm>
#include <utility>

#include "svc_common/conversions.h"
#include "svc_common/steady_deadline.h"

namespace viommu {
namespace {

enum Event : intptr_t { kStarted = 1, kWritten, kRead, kWritesDone, kFinished, kInterrupt };

// NOLINTNEXTLINE(performance-no-int-to-ptr): gRPC's tags are pointers that it only hands back.
void* Tag(Event event) { return reinterpret_cast<void*>(static_cast<intptr_t>(event)); }

}  // namespace

SinkStream::SinkStream(v1::HypervisorService::Stub& stub)
    : call_(stub.AsyncInvalidate(&context_, &queue_, Tag(kStarted))) {}

SinkStream::~SinkStream() {
  if (!ended_.has_value()) {
    context_.TryCancel();
    if (!finish_asked_) call_->Finish(&finish_status_, Tag(kFinished));
  }
  {
    absl::MutexLock lock(&interrupt_mu_);
    interrupt_.Cancel();
  }
  queue_.Shutdown();
  void* tag = nullptr;
  bool ok = false;
  while (queue_.Next(&tag, &ok)) {
  }
}

void SinkStream::Send(const v1::InvalidateRequest& request) {
  if (to_write_.empty() && CanWrite()) {
    writing_ = true;
    call_->Write(request, Tag(kWritten));  // serialises it before it returns
    ReadNext();
    return;
  }
  to_write_.push_back(request);
}

bool SinkStream::CanWrite() const { return started_ && !writing_ && !finish_asked_ && !done_sent_; }

void SinkStream::SendDone() {
  done_asked_ = true;
  WriteNext();
}

void SinkStream::WriteNext() {
  if (!CanWrite()) return;
  if (!to_write_.empty()) {
    writing_ = true;
    call_->Write(to_write_.front(), Tag(kWritten));
    to_write_.pop_front();
  } else if (done_asked_) {
    done_sent_ = true;
    call_->WritesDone(Tag(kWritesDone));
  }
}

std::optional<v1::InvalidateResponse> SinkStream::Receive(Time deadline, SpinWait* spin) {
  if (spin != nullptr && received_.empty()) {
    Time now = std::chrono::steady_clock::now();
    const Time until = std::min(spin->Begin(now), deadline);
    if (now < until) {
      while (received_.empty() && !ended_.has_value() && now < until) {
        if (!Pump(gpr_time_0(GPR_CLOCK_MONOTONIC))) now = std::chrono::steady_clock::now();
      }
      // An answer that is there after this thread had to give up its CPU came late.
      spin->End(!received_.empty() && std::chrono::steady_clock::now() < until);
    }
  }
  while (received_.empty()) {
    if (ended_.has_value() || !Pump(GrpcDeadline(deadline))) return std::nullopt;
  }
  v1::InvalidateResponse response = std::move(received_.front());
  received_.pop_front();
  return response;
}

std::optional<v1::InvalidateResponse> SinkStream::ReceiveUnlessInterrupted(Time deadline) {
  interrupted_ = false;
  while (received_.empty() && !interrupted_) {
    if (ended_.has_value() || !Pump(GrpcDeadline(deadline))) break;
  }
  // What is there already is found without a wait.
  return received_.empty() ? std::nullopt : Receive(deadline);
}

void SinkStream::Interrupt() {
  absl::MutexLock lock(&interrupt_mu_);
  if (std::exchange(interrupt_on_its_way_, true)) return;
  interrupt_.Set(&queue_, gpr_now(GPR_CLOCK_MONOTONIC), Tag(kInterrupt));
}

void SinkStream::ReadNext() {
  if (!started_ || reading_ || finish_asked_) return;
  reading_ = true;
  call_->Read(&incoming_, Tag(kRead));
}

bool SinkStream::Pump(gpr_timespec deadline) {
  ReadNext();
  void* tag = nullptr;
  bool ok = false;
  if (queue_.AsyncNext(&tag, &ok, deadline) != grpc::CompletionQueue::GOT_EVENT) return false;
  TakeEvent(tag, ok);
  return true;
}

void SinkStream::TakeEvent(void* tag, bool ok) {
  bool failed = !ok;
  switch (reinterpret_cast<intptr_t>(tag)) {
    case kStarted:
      started_ = ok;
      if (ok) WriteNext();
      break;
    case kWritten:
      writing_ = false;
      if (ok) WriteNext();
      break;
    case kRead:
      if (ok) {
        received_.push_back(std::move(incoming_));
        incoming_.Clear();
        reading_ = false;
      }
      break;
    case kFinished:
      ended_ = FromGrpcStatus(finish_status_);
      return;
    case kInterrupt: {
      absl::MutexLock lock(&interrupt_mu_);
      interrupt_on_its_way_ = false;
      interrupted_ = true;
      return;
    }
    default:  // kWritesDone: its failure shows in the read's
      failed = false;
      break;
  }
  if (failed && !finish_asked_) {
    finish_asked_ = true;
    call_->Finish(&finish_status_, Tag(kFinished));
  }
}

}  // namespace viommu
