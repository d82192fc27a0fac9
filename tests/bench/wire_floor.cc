#include "tests/bench/wire_floor.h"

#include <benchmark/benchmark.h>
#include <grpcpp/security/server_credentials.h>
#include <grpcpp/server.h>
#include <grpcpp/server_builder.h>
#include <grpcpp/server_context.h>

#include <cstdio>
#include <cstdlib>

namespace viommu {
namespace {

enum Event : intptr_t { kStarted = 1, kRead, kWritten, kFinished };

void* Tag(Event event) { return reinterpret_cast<void*>(static_cast<intptr_t>(event)); }

// What the hypervisor answers to one unchanged page: the same bytes on the wire.
void FillAnswer(v1::InvalidateResponse& response) {
  v1::Completion& completion = *response.mutable_completion();
  completion.set_consumed_descriptor_count(2);
  completion.set_pinned_page_count(1024);
  v1::SyncCost& cost = *completion.mutable_cost();
  cost.set_descriptor_count(2);
  cost.set_table_pages_read(3);
  cost.set_ptes_read(3);
  cost.set_bytes_read(24);
  cost.set_leaves_visited(1);
  cost.set_ptes_changed(1);
  cost.set_dma_unmaps(1);
  cost.set_pages_unpinned(1);
  cost.set_iotlb_invalidations(1);
}

// One stream; a read is outstanding while an answer is written.
struct FloorStream {
  grpc::ServerContext context;
  grpc::ServerAsyncReaderWriter<v1::InvalidateResponse, v1::InvalidateRequest> call{&context};
  v1::InvalidateRequest request;
  v1::InvalidateResponse response;
  uint64_t unanswered = 0;
  uint64_t sequence = 0;
  bool writing = false;

  void Answer() {
    if (writing || unanswered == 0) return;
    writing = true;
    --unanswered;
    response.mutable_completion()->set_sequence(++sequence);
    call.Write(response, Tag(kWritten));
  }
};

}  // namespace

void ServeFloor(const std::string& address) {
  v1::HypervisorService::AsyncService service;
  grpc::ServerBuilder builder;
  builder.AddListeningPort(address, grpc::InsecureServerCredentials());
  builder.RegisterService(&service);
  const std::unique_ptr<grpc::ServerCompletionQueue> queue = builder.AddCompletionQueue();
  const std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  if (server == nullptr) std::abort();
  std::printf("READY\n");
  std::fflush(stdout);
  while (true) {
    FloorStream stream;
    FillAnswer(stream.response);
    service.RequestInvalidate(&stream.context, &stream.call, queue.get(), queue.get(),
                              Tag(kStarted));
    void* tag = nullptr;
    bool ok = false;
    for (bool over = false; !over && queue->Next(&tag, &ok);) {
      switch (reinterpret_cast<intptr_t>(tag)) {
        case kStarted:
          stream.call.Read(&stream.request, Tag(kRead));
          break;
        case kRead: {
          if (!ok) {
            stream.call.Finish(grpc::Status::OK, Tag(kFinished));
            break;
          }
          uint64_t sum = 0;
          for (const uint64_t word : stream.request.batch().descriptor_words()) sum += word;
          benchmark::DoNotOptimize(sum);
          ++stream.unanswered;
          stream.Answer();
          stream.call.Read(&stream.request, Tag(kRead));
          break;
        }
        case kWritten:
          stream.writing = false;
          stream.Answer();
          break;
        default:
          over = true;
      }
    }
  }
}

FloorClient::FloorClient(const std::shared_ptr<grpc::Channel>& channel)
    : stub_(v1::HypervisorService::NewStub(channel)),
      call_(stub_->AsyncInvalidate(&context_, &queue_, Tag(kStarted))) {
  void* tag = nullptr;
  bool ok = false;
  if (!queue_.Next(&tag, &ok) || !ok) std::abort();
  call_->Read(&response_, Tag(kRead));
}

void FloorClient::Next() {
  void* tag = nullptr;
  bool ok = false;
  if (!queue_.Next(&tag, &ok) || !ok) std::abort();
  if (tag == Tag(kRead)) {
    ++answered_;
    call_->Read(&response_, Tag(kRead));
  } else {
    ++written_;
  }
}

void FloorClient::PingPong(const v1::InvalidateRequest& request) { Stream(request, 1, 1); }

void FloorClient::Stream(const v1::InvalidateRequest& request, int count, int window) {
  written_ = answered_ = 0;
  for (int sent = 0; sent < count;) {
    if (sent > written_ || sent - answered_ >= window) {
      Next();
      continue;
    }
    call_->Write(request, Tag(kWritten));
    ++sent;
  }
  while (written_ < count || answered_ < count) Next();
}

}  // namespace viommu
