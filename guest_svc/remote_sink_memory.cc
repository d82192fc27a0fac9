// A guest whose memory is on another host than the hypervisor: what the hypervisor asks of it over
// the stream, answered by whoever waits on the stream, or by a thread of its own while nobody does
// (a device access needs pages though no doorbell rings).
#include <algorithm>
#include <string>

#include "guest_svc/remote_sink.h"

namespace viommu {
namespace {

using Steady = std::chrono::steady_clock;

// Of one question (hypervisor_service.proto).
constexpr int kMaxPages = 256;
// After a call the next one is likely to come soon: it finds the stream free.
constexpr std::chrono::microseconds kQuietTime{500};
constexpr std::chrono::milliseconds kDisconnectedTime{10};
constexpr std::chrono::seconds kServeTime{1};

void AnswerPages(const GuestMemory& memory, const v1::TablePageRequest& asked,
                 v1::TablePages* answer) {
  const int count = std::min(asked.page_addresses_size(), kMaxPages);
  answer->set_request_id(asked.request_id());
  answer->mutable_content()->reserve(static_cast<size_t>(count) * kPageSize);
  for (int i = 0; i < count; ++i) {
    const PhysAddr address(asked.page_addresses(i));
    const uint64_t* page =
        IsAligned(address.value(), kPageSize) ? memory.PageInPlace(address) : nullptr;
    answer->add_page_addresses(address.value());
    answer->add_present(page != nullptr);
    if (page == nullptr) continue;
    for (size_t entry = 0; entry < kPageSize / sizeof(uint64_t); ++entry) {
      // vCPUs go on: each entry is one that was there at one moment.
      const uint64_t value = __atomic_load_n(page + entry, __ATOMIC_ACQUIRE);
      answer->mutable_content()->append(reinterpret_cast<const char*>(&value), sizeof(value));
    }
  }
}

bool StoreBytes(GuestMemory& memory, const v1::MemoryWrite& asked) {
  const std::string& data = asked.data();
  const uint64_t room = kPageSize - (asked.guest_pa() & kPageMask);
  return !data.empty() && data.size() <= room &&
         memory.WriteBytes(PhysAddr(asked.guest_pa()), std::as_bytes(std::span(data)));
}

}  // namespace

RemoteSink::Turn::Turn(RemoteSink& sink) : sink_(sink) {
  if (!sink.memory_.remote()) {
    sink.mu_.Lock();
    return;
  }
  {
    absl::MutexLock lock(&sink.serve_mu_);
    ++sink.callers_waiting_;
    if (sink.served_ != nullptr) sink.served_->Interrupt();
  }
  sink.mu_.Lock();
  ++sink.calls_;
  absl::MutexLock lock(&sink.serve_mu_);
  --sink.callers_waiting_;
}

RemoteSink::Turn::~Turn() { sink_.mu_.Unlock(); }

bool RemoteSink::AnswerAboutMemory(const v1::InvalidateResponse& message) {
  v1::InvalidateRequest answer;
  if (message.has_table_page_request()) {
    AnswerPages(memory_, message.table_page_request(), answer.mutable_table_pages());
  } else if (message.has_memory_write()) {
    v1::MemoryWritten* written = answer.mutable_memory_written();
    written->set_request_id(message.memory_write().request_id());
    written->set_stored(StoreBytes(memory_, message.memory_write()));
  } else {
    return false;
  }
  stream_->Send(answer);
  return true;
}

void RemoteSink::ServeMemory() {
  uint64_t calls = 0;
  while (true) {
    std::chrono::microseconds rest = kQuietTime;
    {
      absl::MutexLock lock(&mu_);
      const bool quiet = std::exchange(calls, calls_) == calls_;
      while (quiet && stream_ != nullptr && !stream_->ended().has_value()) {
        {
          absl::MutexLock serve(&serve_mu_);
          if (callers_waiting_ > 0 || stop_serving_.stopped()) break;
          served_ = stream_.get();
        }
        const auto message = stream_->ReceiveUnlessInterrupted(Steady::now() + kServeTime);
        {
          absl::MutexLock serve(&serve_mu_);
          served_ = nullptr;
        }
        if (message.has_value()) Handle(*message);
      }
      if (stream_ == nullptr || stream_->ended().has_value()) rest = kDisconnectedTime;
    }
    if (stop_serving_.WaitFor(rest)) return;
  }
}

void RemoteSink::StopServingMemory() {
  if (!memory_thread_.joinable()) return;
  stop_serving_.Stop();
  {
    absl::MutexLock lock(&serve_mu_);
    if (served_ != nullptr) served_->Interrupt();
  }
  memory_thread_.join();
}

}  // namespace viommu
