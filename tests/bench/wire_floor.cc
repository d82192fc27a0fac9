#include "tests/bench/wire_floor.h"

#include <benchmark/benchmark.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/security/server_credentials.h>
#include <grpcpp/server.h>
#include <grpcpp/server_builder.h>
#include <grpcpp/server_context.h>

#include <cstdio>
#include <cstdlib>

#include "iommu_core/vtd/inv_descriptor.h"
#include "svc_common/service_host.h"
#include "tests/bench/wire_guest.h"

namespace viommu {
namespace {

enum Event : intptr_t { kStarted = 1, kRead, kWritten, kFinished };

// NOLINTNEXTLINE(performance-no-int-to-ptr): gRPC's tags are pointers that it only hands back.
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
  // What the queue hands back.
  struct Tagged {
    FloorStream* stream;
    Event event;
  };

  grpc::ServerContext context;
  grpc::ServerAsyncReaderWriter<v1::InvalidateResponse, v1::InvalidateRequest> call{&context};
  v1::InvalidateRequest request;
  v1::InvalidateResponse response;
  uint64_t unanswered = 0;
  uint64_t sequence = 0;
  bool writing = false;
  Tagged started{this, kStarted};
  Tagged read{this, kRead};
  Tagged written{this, kWritten};
  Tagged finished{this, kFinished};

  FloorStream(v1::HypervisorService::AsyncService& service, grpc::ServerCompletionQueue* queue) {
    FillAnswer(response);
    service.RequestInvalidate(&context, &call, queue, queue, &started);
  }

  void Answer() {
    if (writing || unanswered == 0) return;
    writing = true;
    --unanswered;
    response.mutable_completion()->set_sequence(++sequence);
    call.Write(response, &written);
  }

  void OnRead(bool ok) {
    if (!ok) return call.Finish(grpc::Status::OK, &finished);
    uint64_t sum = 0;
    for (const uint64_t word : request.batch().descriptor_words()) sum += word;
    benchmark::DoNotOptimize(sum);
    ++unanswered;
    Answer();
    call.Read(&request, &read);
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
  new FloorStream(service, queue.get());  // NOLINT: each deletes itself
  std::printf("READY\n");
  std::fflush(stdout);
  void* tag = nullptr;
  bool ok = false;
  while (queue->Next(&tag, &ok)) {
    const auto [stream, event] = *static_cast<FloorStream::Tagged*>(tag);
    switch (event) {
      case kStarted:
        new FloorStream(service, queue.get());  // NOLINT: for the next caller
        stream->call.Read(&stream->request, &stream->read);
        break;
      case kRead:
        stream->OnRead(ok);
        break;
      case kWritten:
        stream->writing = false;
        if (ok) stream->Answer();
        break;
      case kFinished:
        delete stream;
        break;
    }
  }
  std::abort();
}

int RunFloorGuest(const std::string& address) {
  FloorClient client(grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(),
                                               ClientChannelArguments()));
  const v1::InvalidateRequest request = FloorBatch(2);
  return ServeTurns([&] { client.PingPong(request); });
}

v1::InvalidateRequest FloorBatch(int descriptors) {
  v1::InvalidateRequest request;
  request.mutable_batch()->set_sequence(1);
  for (int i = 0; i < descriptors; ++i) {
    vtd::IotlbInvalidate d;
    d.granularity = vtd::Granularity::kPageOrDevice;
    d.address = Iova(static_cast<uint64_t>(i) << kPageShift);
    const vtd::RawDescriptor raw = vtd::Encode(d);
    request.mutable_batch()->add_descriptor_words(raw.qw0);
    request.mutable_batch()->add_descriptor_words(raw.qw1);
  }
  return request;
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
