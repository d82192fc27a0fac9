#include "hypervisor_svc/guest_pages.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "hypervisor_svc/stream_threads.h"
#include "svc_common/conversions.h"

namespace viommu {
namespace {

absl::Status Wrong(const std::string& what) {
  return WithReason(absl::InvalidArgumentError(absl::StrCat("guest memory: ", what)),
                    "WRONG_PAGES");
}

// Whether the answer is one to this question, whole: a guest's own memory is always there.
absl::Status Check(const v1::TablePageRequest& asked, const v1::InvalidateRequest& answer) {
  if (!answer.has_table_pages()) return Wrong("pages were asked for, a write was acknowledged");
  const v1::TablePages& pages = answer.table_pages();
  if (pages.request_id() != asked.request_id()) {
    return Wrong(absl::StrCat("request ", asked.request_id(), " was answered as request ",
                              pages.request_id()));
  }
  const auto& addresses = pages.page_addresses();
  if (!std::equal(addresses.begin(), addresses.end(), asked.page_addresses().begin(),
                  asked.page_addresses().end())) {
    return Wrong("other pages came than were asked for");
  }
  if (pages.present_size() != addresses.size() ||
      !std::all_of(pages.present().begin(), pages.present().end(), [](bool p) { return p; })) {
    return Wrong("a page inside the guest's memory is said not to be there");
  }
  if (pages.content().size() != static_cast<size_t>(addresses.size()) * kPageSize) {
    return Wrong(absl::StrCat(pages.content().size(), " bytes came for ", addresses.size(),
                              " pages of 4096"));
  }
  return absl::OkStatus();
}

absl::Status Check(const v1::MemoryWrite& asked, const v1::InvalidateRequest& answer) {
  if (!answer.has_memory_written()) return Wrong("a write was asked for, pages came");
  if (answer.memory_written().request_id() != asked.request_id()) {
    return Wrong(absl::StrCat("request ", asked.request_id(), " was answered as request ",
                              answer.memory_written().request_id()));
  }
  if (!answer.memory_written().stored()) {
    return Wrong("a write inside the guest's memory was refused");
  }
  return absl::OkStatus();
}

}  // namespace

void GuestPages::Attach(const std::shared_ptr<StreamHandle>& stream) {
  SteadyLock lock(&mu_);
  stream_ = stream;
  current_ = stream.get();
  broken_ = absl::OkStatus();
  ++stream_number_;  // whoever waits for the older stream gives up
}

void GuestPages::Detach(const StreamHandle* stream, const absl::Status& why) {
  SteadyLock lock(&mu_);
  if (current_ != stream) return;
  current_ = nullptr;
  stream_.reset();
  if (broken_.ok()) broken_ = absl::UnavailableError(absl::StrCat("the guest's ", why.message()));
}

void GuestPages::Stop(const absl::Status& why) {
  SteadyLock lock(&mu_);
  current_ = nullptr;
  stream_.reset();
  if (broken_.ok()) broken_ = why;
}

void GuestPages::Deliver(const StreamHandle* stream, v1::InvalidateRequest answer) {
  SteadyLock lock(&mu_);
  // The stream counts what it asked; this is for one whose asker has given up.
  if (current_ != stream || answers_.size() >= awaited_) return;
  answers_.push_back(std::move(answer));
}

absl::Status GuestPages::Fail(RemoteFailure failure, const absl::Status& status) {
  counters_.remote_failures[static_cast<size_t>(failure)].fetch_add(1, std::memory_order_relaxed);
  std::shared_ptr<StreamHandle> stream;
  {
    SteadyLock lock(&mu_);
    stream = stream_.lock();
    current_ = nullptr;
    stream_.reset();
    broken_ = status;
  }
  if (stream != nullptr) stream->End(status);
  return status;
}

absl::Status GuestPages::Exchange(std::span<const v1::InvalidateResponse> questions,
                                  std::vector<v1::InvalidateRequest>& answers) {
  const auto begin = std::chrono::steady_clock::now();
  std::shared_ptr<StreamHandle> stream;
  uint64_t number = 0;
  {
    SteadyLock lock(&mu_);
    if (!broken_.ok()) return broken_;
    number = stream_number_;
    stream = stream_.lock();
    if (stream == nullptr) return absl::UnavailableError("the guest is not connected");
    awaited_ = questions.size();
    answers_.clear();
  }
  for (const v1::InvalidateResponse& question : questions) {
    stream->Ask(question, shared_from_this());
  }
  stream = nullptr;
  // Whoever leads takes the answer in; and a slot is for work, not for waiting.
  StreamThreads::BeforeWait();
  bool in_time = false;
  {
    SteadyLock lock(&mu_);
    const auto over = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
      return !broken_.ok() || stream_number_ != number || answers_.size() == awaited_;
    };
    in_time = mu_.AwaitUntil(std::chrono::steady_clock::now() + timeout_, over);
    awaited_ = 0;
    answers = std::exchange(answers_, {});
    if (!broken_.ok()) return broken_;
    if (stream_number_ != number) return absl::UnavailableError("the guest came on a new stream");
  }
  counters_.remote_wait_wall.Observe(static_cast<uint64_t>(
      std::chrono::nanoseconds(std::chrono::steady_clock::now() - begin).count()));
  if (in_time) return absl::OkStatus();
  return Fail(RemoteFailure::kTimeout,
              WithReason(absl::DeadlineExceededError(
                             absl::StrCat("the guest did not answer for its memory within ",
                                          timeout_.count(), " ms (--remote_page_timeout_ms)")),
                         "PAGES_NOT_ANSWERED"));
}

absl::Status GuestPages::Fetch(std::span<const PhysAddr> pages, std::span<RemotePage* const> out) {
  std::vector<v1::InvalidateResponse> questions;
  for (size_t first = 0; first < pages.size(); first += kMaxPagesPerQuestion) {
    v1::TablePageRequest* asked = questions.emplace_back().mutable_table_page_request();
    asked->set_request_id(next_id_++);
    for (const PhysAddr page :
         pages.subspan(first).first(std::min(kMaxPagesPerQuestion, pages.size() - first))) {
      asked->add_page_addresses(page.value());
    }
  }
  std::vector<v1::InvalidateRequest> answers;
  if (absl::Status status = Exchange(questions, answers); !status.ok()) return status;
  size_t done = 0;
  for (size_t i = 0; i < questions.size(); ++i) {
    if (absl::Status s = Check(questions[i].table_page_request(), answers[i]); !s.ok()) {
      return Fail(RemoteFailure::kWrongAnswer, s);
    }
    const char* content = answers[i].table_pages().content().data();
    for (int n = answers[i].table_pages().page_addresses_size(); n > 0; --n, ++done) {
      std::memcpy(out[done]->entries.data(), content, kPageSize);
      content += kPageSize;
    }
  }
  return absl::OkStatus();
}

absl::Status GuestPages::Store(PhysAddr address, std::span<const std::byte> data) {
  v1::InvalidateResponse question;
  v1::MemoryWrite* asked = question.mutable_memory_write();
  asked->set_request_id(next_id_++);
  asked->set_guest_pa(address.value());
  asked->set_data(data.data(), data.size());
  std::vector<v1::InvalidateRequest> answers;
  if (absl::Status status = Exchange({&question, 1}, answers); !status.ok()) return status;
  const absl::Status checked = Check(*asked, answers.front());
  return checked.ok() ? checked : Fail(RemoteFailure::kWrongAnswer, checked);
}

}  // namespace viommu
