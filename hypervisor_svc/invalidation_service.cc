#include "hypervisor_svc/invalidation_service.h"

#include <chrono>
#include <utility>

#include "hypervisor_svc/invalidation_stream.h"
#include "iommu_core/base/errors.h"
#include "svc_common/conversions.h"

namespace viommu {
namespace {

// Events taken while answers are held; bounds how long those wait.
constexpr int kMaxEventsWhileHeld = 16;

}  // namespace

InvalidationService::InvalidationService(SessionRegistry& registry, AsyncHypervisorService& service,
                                         grpc::ServerBuilder& builder)
    : registry_(registry),
      service_(service),
      queue_(builder.AddCompletionQueue()),
      // A thread that does not lead is busy with one stream; see Admit for how many there are.
      threads_({2 * registry.options().max_sessions + 2, registry.options().concurrent_walks},
               [this] { return ServeOne(); }) {}

InvalidationService::~InvalidationService() { Stop(); }

void InvalidationService::Start() {
  Accept();
  threads_.Start();
}

void InvalidationService::Hold(std::shared_ptr<InvalidationStream> stream) {
  held_.push_back(std::move(stream));
}

void InvalidationService::FlushHeld() {
  for (const auto& stream : held_) stream->Flush();
  held_.clear();
  events_while_held_ = 0;
}

bool InvalidationService::ServeOne() {
  void* tag = nullptr;
  bool ok = false;
  if (!held_.empty()) {
    const bool more = ++events_while_held_ <= kMaxEventsWhileHeld &&
                      queue_->AsyncNext(&tag, &ok, std::chrono::system_clock::time_point()) ==
                          grpc::CompletionQueue::GOT_EVENT;
    if (!more) FlushHeld();
  }
  if (tag == nullptr && !queue_->Next(&tag, &ok)) return false;
  const auto* done = static_cast<InvalidationStream::Tag*>(tag);
  done->stream->OnDone(done->op, ok);
  return true;
}

void InvalidationService::Accept() {
  {
    absl::MutexLock lock(&mu_);
    if (draining_) return;
  }
  std::make_shared<InvalidationStream>(*this)->RequestCall(queue_.get());
}

absl::Status InvalidationService::Admit(InvalidationStream* stream) {
  absl::MutexLock lock(&mu_);
  if (draining_) return absl::UnavailableError("the hypervisor is shutting down");
  // Twice: while a guest reconnects, its older stream may still be there.
  const size_t limit = size_t{2} * registry_.options().max_sessions;
  admitted_.insert(stream);  // a refused stream counts until it is gone
  if (admitted_.size() > limit) return errors::LimitReached("--max_sessions", limit);
  return absl::OkStatus();
}

void InvalidationService::Forget(InvalidationStream* stream) {
  absl::MutexLock lock(&mu_);
  admitted_.erase(stream);
}

void InvalidationService::Drain() {
  std::vector<std::shared_ptr<InvalidationStream>> streams;
  {
    absl::MutexLock lock(&mu_);
    draining_ = true;
    for (InvalidationStream* stream : admitted_) streams.push_back(stream->shared_from_this());
  }
  for (const auto& stream : streams) {
    stream->End(WithReason(absl::UnavailableError("the hypervisor is shutting down"), "DRAINING"));
  }
}

void InvalidationService::Stop() {
  if (std::exchange(stopped_, true)) return;
  queue_->Shutdown();
  threads_.Join();
}

}  // namespace viommu
