// grpc.health.v1 over a real server: what a probe and a watcher see, until the server drains.
#include "svc_common/health_service.h"

#include <grpcpp/create_channel.h>
#include <gtest/gtest.h>

#include <memory>
#include <thread>
#include <vector>

#include "svc_common/service_host.h"
#include "tests/fakes/temp_folder.h"

namespace viommu {
namespace {

using grpc::health::v1::HealthCheckRequest;
using grpc::health::v1::HealthCheckResponse;

TEST(HealthServiceTest, ServesUntilItDrains) {
  const TempFolder folder;
  ServiceHostOptions options;
  options.listen = "unix:" + folder.File("health.sock");
  options.metrics = "off";
  auto host = ServiceHost::Create(options);
  ASSERT_TRUE(host.ok()) << host.status();
  ASSERT_TRUE((*host)->Start().ok());
  const auto stub = grpc::health::v1::Health::NewStub(
      grpc::CreateChannel(options.listen, grpc::InsecureChannelCredentials()));

  HealthCheckRequest request;
  HealthCheckResponse response;
  {
    grpc::ClientContext context;
    ASSERT_TRUE(stub->Check(&context, request, &response).ok());
    EXPECT_EQ(response.status(), HealthCheckResponse::SERVING);
  }
  {
    grpc::ClientContext context;
    request.set_service("viommu.v1.NoSuchService");
    EXPECT_EQ(stub->Check(&context, request, &response).error_code(), grpc::StatusCode::NOT_FOUND);
    request.clear_service();
  }
  grpc::ClientContext context;
  const auto watch = stub->Watch(&context, request);
  ASSERT_TRUE(watch->Read(&response));
  EXPECT_EQ(response.status(), HealthCheckResponse::SERVING);
  std::thread drain([&] { (*host)->Shutdown(absl::Seconds(5)); });
  ASSERT_TRUE(watch->Read(&response));
  EXPECT_EQ(response.status(), HealthCheckResponse::NOT_SERVING);
  EXPECT_FALSE(watch->Read(&response));
  EXPECT_TRUE(watch->Finish().ok());
  drain.join();
}

TEST(HealthServiceTest, WatchersAreBounded) {
  const TempFolder folder;
  ServiceHostOptions options;
  options.listen = "unix:" + folder.File("health.sock");
  options.metrics = "off";
  auto host = ServiceHost::Create(options);
  ASSERT_TRUE(host.ok()) << host.status();
  ASSERT_TRUE((*host)->Start().ok());
  const auto stub = grpc::health::v1::Health::NewStub(
      grpc::CreateChannel(options.listen, grpc::InsecureChannelCredentials()));
  std::vector<std::unique_ptr<grpc::ClientContext>> contexts;
  std::vector<std::unique_ptr<grpc::ClientReader<HealthCheckResponse>>> watches;
  HealthCheckResponse response;
  for (int i = 0; i < HealthService::kMaxWatchers; ++i) {
    contexts.push_back(std::make_unique<grpc::ClientContext>());
    watches.push_back(stub->Watch(contexts.back().get(), {}));
    ASSERT_TRUE(watches.back()->Read(&response));
  }
  grpc::ClientContext one_more;
  const auto refused = stub->Watch(&one_more, {});
  EXPECT_FALSE(refused->Read(&response));
  EXPECT_EQ(refused->Finish().error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  for (const auto& context : contexts) context->TryCancel();
  for (const auto& watch : watches) watch->Finish();
}

}  // namespace
}  // namespace viommu
