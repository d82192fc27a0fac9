// The floors of wire_bench: the same gRPC shape as the services' (proto, asynchronous stream,
// completion-queue server, a client that polls its own queue), with nothing behind it.
#ifndef VIOMMU_TESTS_BENCH_WIRE_FLOOR_H_
#define VIOMMU_TESTS_BENCH_WIRE_FLOOR_H_

#include <grpcpp/channel.h>
#include <grpcpp/client_context.h>
#include <grpcpp/completion_queue.h>
#include <grpcpp/support/async_stream.h>

#include <memory>
#include <string>

#include "viommu/v1/hypervisor_service.grpc.pb.h"

namespace viommu {

// A message of `descriptors` one-page invalidations.
v1::InvalidateRequest FloorBatch(int descriptors);

// Serves streams on `address`: reads a batch, adds up its words, answers with a
// Completion of the usual fields. One thread, one queue. Prints "READY" and serves until killed.
[[noreturn]] void ServeFloor(const std::string& address);

// Child: a client that for each line "MS" on standard input plays ping-pong with two descriptors
// for that long, and prints how many came back. Ends with its input.
int RunFloorGuest(const std::string& address);

class FloorClient {
 public:
  explicit FloorClient(const std::shared_ptr<grpc::Channel>& channel);

  // One message there, one back.
  void PingPong(const v1::InvalidateRequest& request);
  // `count` messages with at most `window` unanswered; returns when all are answered.
  void Stream(const v1::InvalidateRequest& request, int count, int window);

 private:
  void Next();

  std::unique_ptr<v1::HypervisorService::Stub> stub_;
  grpc::ClientContext context_;
  grpc::CompletionQueue queue_;
  std::unique_ptr<grpc::ClientAsyncReaderWriter<v1::InvalidateRequest, v1::InvalidateResponse>>
      call_;
  v1::InvalidateResponse response_;
  int written_ = 0;
  int answered_ = 0;
};

}  // namespace viommu

#endif  // VIOMMU_TESTS_BENCH_WIRE_FLOOR_H_
