// Every limit of hypervisor_svc: met, said by name, and nothing else changed. What the DMA
// container or the shadow refuses is remembered, and appears once there is room.
#include <gmock/gmock.h>
#include <grpcpp/create_channel.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <set>

#include "iommu_core/vtd/inv_descriptor.h"
#include "svc_common/conversions.h"
#include "svc_common/memory_channel.h"
#include "tests/fakes/test_name.h"
#include "tests/integration/probes.h"
#include "tests/integration/service_pair.h"

namespace viommu {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr uint32_t kDevice = 0x18;
constexpr uint64_t kPage = 4096;

struct MapLimit {
  const char* name;
  std::vector<std::string> flags;
  uint64_t mappings;    // made; the limit is met before the last of them
  uint64_t size_bytes;  // of one
};

void PrintTo(const MapLimit& limit, std::ostream* out) { *out << limit.name; }

class MapLimitTest : public ::testing::TestWithParam<std::tuple<MapLimit, const char*>> {};

std::string LimitName(const ::testing::TestParamInfo<MapLimitTest::ParamType>& param) {
  return TestName(std::string(std::get<0>(param.param).name) + "_" + std::get<1>(param.param));
}

TEST_P(MapLimitTest, WhatIsRefusedIsSaidAndAppearsOnceThereIsRoom) {
  const auto& [limit, strategy] = GetParam();
  ServicePair pair;
  std::vector<std::string> flags = limit.flags;
  flags.push_back(std::string("--strategy=") + strategy);
  pair.StartHypervisor(flags);
  pair.StartGuest({"--ram_bytes=64m"});
  const uint32_t domain = *pair.guest().CreateDomain();
  ASSERT_TRUE(pair.guest().Attach(domain, kDevice).ok());
  std::vector<v1::MapResponse> mapped;
  for (uint64_t i = 0; i < limit.mappings; ++i) {
    const auto made = pair.guest().Map(domain, limit.size_bytes);
    ASSERT_TRUE(made.ok()) << made.status();
    mapped.push_back(*made);
  }
  const std::string session = pair.guest().Status()->session_ids(0);
  const auto refused = [&] {
    return pair.hypervisor().Session(session, false)->refused_page_count();
  };
  // Pages of the live mappings that the device reaches; each leads to the guest's page or nowhere.
  const auto reached = [&] {
    uint64_t pages = 0;
    for (const v1::MapResponse& m : mapped) {
      for (uint64_t at = 0; at < m.size_bytes(); at += kPage) {
        const auto t = pair.hypervisor().Translate(session, kDevice, m.iova() + at);
        EXPECT_TRUE(t.ok()) << t.status();
        if (!t.ok() || t->fault_reason() != 0) continue;
        EXPECT_EQ(t->guest_pa(), m.guest_pa() + at);
        ++pages;
      }
    }
    return pages;
  };
  const auto pages = [&] { return mapped.size() * limit.size_bytes / kPage; };

  const uint64_t kept_out = refused();
  EXPECT_GT(kept_out, 0u);
  EXPECT_EQ(reached(), pages() - kept_out);
  auto metrics = Scrape(pair.hypervisor_metrics());
  EXPECT_EQ(metrics["viommu_refused_pages"], static_cast<double>(kept_out));
  EXPECT_EQ(metrics["viommu_shadow_mismatches_total"], 0);
  EXPECT_GT(metrics["viommu_shadow_verified_pages_total"], 0);

  // The oldest go; nothing is mapped again.
  std::set<uint64_t> seen = {kept_out};
  while (refused() != 0 && mapped.size() > 1) {
    const v1::MapResponse oldest = mapped.front();
    ASSERT_TRUE(pair.guest().Unmap(domain, oldest.iova(), oldest.size_bytes()).ok());
    mapped.erase(mapped.begin());
    // Page by page takes its time where there are many.
    if (limit.size_bytes == kPage || mapped.size() % 16 == 0) {
      EXPECT_EQ(reached(), pages() - refused());
    }
    seen.insert(refused());
  }
  EXPECT_EQ(refused(), 0u);
  EXPECT_EQ(reached(), pages());
  EXPECT_GT(mapped.size(), 1u) << "room was made, but nothing used it";
  metrics = Scrape(pair.hypervisor_metrics());
  EXPECT_EQ(metrics["viommu_refused_pages"], 0);
  EXPECT_EQ(metrics["viommu_shadow_mismatches_total"], 0);
}

INSTANTIATE_TEST_SUITE_P(
    Limits, MapLimitTest,
    ::testing::Combine(
        ::testing::Values(MapLimit{"Entries", {"--dma_entry_limit=8"}, 12, kPage},
                          MapLimit{"PinnedBytes", {"--pin_limit_bytes=32k"}, 12, kPage},
                          MapLimit{"TablePages", {"--max_shadow_table_pages=16"}, 40, kPage * 256}),
        ::testing::Values("walk", "walk-shared", "snapshot", "dirty-log")),
    LimitName);

class LimitsTest : public ::testing::Test {
 protected:
  // A call's status names the flag, and a program finds the reason.
  static void ExpectLimit(const absl::Status& status, const std::string& flag) {
    EXPECT_TRUE(absl::IsResourceExhausted(status)) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(flag));
    EXPECT_EQ(ErrorReason(status), "RESOURCE_EXHAUSTED");
  }
  void Start(const std::vector<std::string>& flags) {
    pair_.StartHypervisor(flags);
    pair_.StartGuest();
    domain_ = *pair_.guest().CreateDomain();
    ASSERT_TRUE(pair_.guest().Attach(domain_, kDevice).ok());
    const auto mapped = pair_.guest().Map(domain_, kPage);
    ASSERT_TRUE(mapped.ok()) << mapped.status();
    live_ = {{domain_, 0, mapped->iova(), kPage, mapped->guest_pa()}};
  }
  // The first guest's device still reaches exactly what it was given.
  void ExpectUnharmed() {
    EXPECT_THAT(SweepMappings(pair_.hypervisor(), pair_.guest().Status()->session_ids(0),
                              {{domain_, kDevice}}, live_),
                IsEmpty());
  }

  ServicePair pair_;
  uint32_t domain_ = 0;
  std::vector<LiveMapping> live_;
};

TEST_F(LimitsTest, SessionsAndGuestMemory) {
  Start({"--max_sessions=1", "--max_guest_ram_bytes=64m"});
  const auto refused = [&](const std::string& name, const std::string& ram,
                           const std::string& flag) {
    const auto guest = pair_.Run("guest_svc",
                                 {"--listen=unix:" + pair_.folder().File(name), "--metrics=off",
                                  "--hypervisor=" + pair_.hypervisor_address, "--ram_bytes=" + ram,
                                  "--memory_socket=" + pair_.folder().File("hv.mem")},
                                 name + ".log");
    EXPECT_NE(guest->Ready(), "");
    EXPECT_TRUE(Eventually([&] { return guest->Log().find(flag) != std::string::npos; }))
        << guest->Log();
  };
  refused("second", "64m", "--max_sessions");
  refused("large", "128m", "--max_guest_ram_bytes");
  EXPECT_EQ(pair_.hypervisor().Sessions()->sessions_size(), 1);
  ExpectUnharmed();
}

TEST_F(LimitsTest, Devices) {
  Start({"--max_devices=1"});
  ExpectLimit(pair_.guest().Attach(domain_, kDevice + 8), "--max_devices");
  EXPECT_EQ(pair_.hypervisor().Sessions()->sessions(0).device_count(), 1u);
  ExpectUnharmed();
}

// A device whose domain gets no shadow is blocked, which is all that an IOMMU can do in silence.
TEST_F(LimitsTest, Domains) {
  Start({"--max_domains=1"});
  const uint32_t second = *pair_.guest().CreateDomain();
  ASSERT_TRUE(pair_.guest().Attach(second, kDevice + 8).ok());
  const auto mapped = pair_.guest().Map(second, kPage);
  ASSERT_TRUE(mapped.ok()) << mapped.status();
  const auto read = pair_.guest().Read(kDevice + 8, mapped->iova(), 8);
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_NE(read->fault_reason(), 0u);
  EXPECT_EQ(pair_.hypervisor().Sessions()->sessions(0).domain_count(), 1u);
  EXPECT_GT(Scrape(pair_.hypervisor_metrics())["viommu_shadows_refused_total"], 0);
  ExpectUnharmed();
}

TEST_F(LimitsTest, WorkOfOneInvalidation) {
  pair_.StartHypervisor({"--max_work_per_invalidation=512"});
  pair_.StartGuest({"--policy=lazy-single", "--force_lazy"});
  domain_ = *pair_.guest().CreateDomain();
  ASSERT_TRUE(pair_.guest().Attach(domain_, kDevice).ok());
  for (uint64_t i = 0; i < 8; ++i) {
    const auto mapped = pair_.guest().Map(domain_, kPage * 256);
    ASSERT_TRUE(mapped.ok()) << mapped.status();
    live_.push_back({domain_, i, mapped->iova(), kPage * 256, mapped->guest_pa()});
  }
  // The flush looks at the whole domain, and its bound ends it.
  ASSERT_TRUE(pair_.guest().Unmap(domain_, live_[0].iova, live_[0].size_bytes).ok());
  const auto flushed = pair_.guest().Flush();
  EXPECT_TRUE(flushed.ok()) << flushed.status();
  auto metrics = Scrape(pair_.hypervisor_metrics());
  EXPECT_GT(metrics["viommu_sync_work_refused_total"], 0);
  EXPECT_EQ(metrics["viommu_shadow_mismatches_total"], 0);
  // What was not looked at is blocked rather than left as it was.
  const auto gone = pair_.guest().Read(kDevice, live_[0].iova, 8);
  ASSERT_TRUE(gone.ok()) << gone.status();
  EXPECT_NE(gone->fault_reason(), 0u);
}

TEST_F(LimitsTest, BatchesAndMessages) {
  Start({"--max_batch_descriptors=256", "--max_outstanding_batches=2", "--max_message_bytes=64k"});
  // A stream of its own on a session of its own.
  const auto memory = GrantedMemory::Request(pair_.folder().File("hv.mem"), uint64_t{1} << 20);
  ASSERT_TRUE(memory.ok()) << memory.status();
  const auto send = [&](const std::vector<v1::InvalidateRequest>& requests,
                        uint64_t* completed = nullptr) {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(20 * kPatience));
    const auto call = pair_.hypervisor().stub().Invalidate(&context);
    v1::InvalidateRequest open;
    open.mutable_open()->set_guest_instance_id("limits");
    open.mutable_open()->set_stream_epoch(1);
    open.mutable_open()->set_next_sequence(1);
    open.mutable_open()->set_guest_ram_bytes(uint64_t{1} << 20);
    open.mutable_open()->set_memory_kind(v1::GUEST_MEMORY_KIND_SHARED);
    open.mutable_open()->set_memory_token((*memory)->token());
    open.mutable_open()->set_guest_haw_bits(39);
    call->Write(open);
    for (const v1::InvalidateRequest& request : requests) call->Write(request);
    call->WritesDone();
    v1::InvalidateResponse response;
    while (call->Read(&response)) {
      if (response.has_opened()) {
        EXPECT_EQ(response.opened().limits().max_outstanding_batches(), 2u);
        EXPECT_EQ(response.opened().limits().max_batch_descriptors(), 256u);
      } else if (completed != nullptr) {
        *completed = response.completion().sequence();
      }
    }
    return FromGrpcStatus(call->Finish());
  };
  const auto batch = [](uint64_t sequence, int descriptors) {
    v1::InvalidateRequest request;
    request.mutable_batch()->set_sequence(sequence);
    const vtd::RawDescriptor wait = vtd::Encode(vtd::InvalidationWait{});
    for (int i = 0; i < descriptors; ++i) {
      request.mutable_batch()->add_descriptor_words(wait.qw0);
      request.mutable_batch()->add_descriptor_words(wait.qw1);
    }
    return request;
  };
  uint64_t completed = 0;
  ExpectLimit(send({batch(1, 257)}, &completed), "--max_batch_descriptors");
  EXPECT_EQ(completed, 0u);
  // gRPC's own refusal: it carries no reason, but the code is the same.
  EXPECT_TRUE(absl::IsResourceExhausted(send({batch(1, 8192)}, &completed)));
  EXPECT_EQ(completed, 0u);
  // More than two unanswered ones are not taken in until there is room: all are carried out.
  std::vector<v1::InvalidateRequest> many;
  for (uint64_t i = 1; i <= 64; ++i) many.push_back(batch(i, 256));
  const absl::Status all = send(many, &completed);
  EXPECT_TRUE(all.ok()) << all;
  EXPECT_EQ(completed, 64u);
  ExpectUnharmed();
}

}  // namespace
}  // namespace viommu
