#include "hypervisor_svc/invalidation_service.h"

#include <algorithm>
#include <utility>

#include "hypervisor_svc/invalidation_stream.h"
#include "iommu_core/base/errors.h"
#include "svc_common/conversions.h"

namespace viommu {

InvalidationService::InvalidationService(SessionRegistry& registry, AsyncHypervisorService& service,
                                         grpc::ServerBuilder& builder)
    : registry_(registry), service_(service) {
  absl::MutexLock lock(&mu_);
  queues_.resize(registry.options().stream_threads);
  for (Queue& queue : queues_) queue.queue = builder.AddCompletionQueue();
}

InvalidationService::~InvalidationService() { Stop(); }

void InvalidationService::Start() {
  {
    absl::MutexLock lock(&mu_);
    for (Queue& queue : queues_) {
      queue.thread = std::thread([polled = queue.queue.get()] {
        void* tag = nullptr;
        bool ok = false;
        while (polled->Next(&tag, &ok)) {
          const auto* done = static_cast<InvalidationStream::Tag*>(tag);
          done->stream->OnDone(done->op, ok);
        }
      });
    }
  }
  Accept();
}

void InvalidationService::Accept() {
  grpc::ServerCompletionQueue* chosen = nullptr;
  size_t index = 0;
  {
    absl::MutexLock lock(&mu_);
    if (draining_) return;
    const auto least =
        std::min_element(queues_.begin(), queues_.end(),
                         [](const Queue& a, const Queue& b) { return a.streams < b.streams; });
    ++least->streams;
    index = static_cast<size_t>(least - queues_.begin());
    chosen = least->queue.get();
  }
  std::make_shared<InvalidationStream>(*this, index)->RequestCall(chosen);
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
  --queues_[stream->queue_index()].streams;
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
  std::vector<std::thread> threads;
  {
    absl::MutexLock lock(&mu_);
    for (Queue& queue : queues_) {
      queue.queue->Shutdown();
      threads.push_back(std::move(queue.thread));
    }
  }
  for (std::thread& thread : threads) {
    if (thread.joinable()) thread.join();
  }
}

}  // namespace viommu
