#include "guest_svc/client/image_session.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <memory>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "guest_svc/client/workload_client.h"
#include "iommu_core/vtd/inv_descriptor.h"
#include "svc_common/conversions.h"
#include "svc_common/memory_channel.h"
#include "svc_common/random_id.h"
#include "viommu/v1/hypervisor_service.grpc.pb.h"

namespace viommu::client {
namespace {

constexpr auto kDeadline = std::chrono::seconds(120);

// The guest's end of one session's stream, one request at a time.
class Stream {
 public:
  explicit Stream(v1::HypervisorService::Stub& stub) {
    context_.set_deadline(std::chrono::system_clock::now() + kDeadline);
    stream_ = stub.Invalidate(&context_);
  }

  absl::StatusOr<v1::SessionOpened> Open(v1::OpenSession open) {
    v1::InvalidateRequest request;
    *request.mutable_open() = std::move(open);
    v1::InvalidateResponse response;
    if (!stream_->Write(request) || !stream_->Read(&response)) return End();
    if (!response.has_opened()) {
      return absl::InternalError("the hypervisor did not open the session");
    }
    return response.opened();
  }

  // Sends one sequenced request and waits until it is complete.
  absl::Status Do(v1::InvalidateRequest request, uint64_t sequence) {
    if (!stream_->Write(request)) return End();
    v1::InvalidateResponse response;
    while (stream_->Read(&response)) {
      if (response.has_reset_required()) {
        return absl::FailedPreconditionError("the hypervisor asks for a replay");
      }
      if (!response.has_completion()) continue;
      if (response.completion().iqei() != 0) {
        return absl::InternalError(
            absl::StrCat("a descriptor was refused, IQEI ", response.completion().iqei()));
      }
      if (response.completion().sequence() >= sequence) return absl::OkStatus();
    }
    return End();
  }

  // Best effort: the hypervisor drops the session by itself when the stream is gone.
  void Close() {
    v1::InvalidateRequest request;
    request.mutable_close();
    stream_->Write(request);
    stream_->WritesDone();
    v1::InvalidateResponse response;
    while (stream_->Read(&response)) {
    }
    stream_->Finish();
  }

 private:
  absl::Status End() {
    stream_->WritesDone();
    absl::Status status = FromGrpcStatus(stream_->Finish());
    return status.ok() ? absl::UnavailableError("the hypervisor ended the stream") : status;
  }

  grpc::ClientContext context_;
  std::unique_ptr<grpc::ClientReaderWriter<v1::InvalidateRequest, v1::InvalidateResponse>> stream_;
};

void CopyPages(const MemoryImage& image, SharedMemory& memory) {
  for (uint64_t page : image.pages) {
    std::array<std::byte, kPageSize> content;
    if (!image.memory->ReadBytes(PhysAddr(page), content)) continue;
    memory.WriteBytes(PhysAddr(page), content);
  }
}

// What the guest's driver would have done: devices, SRTP and TE, then global invalidations.
absl::Status BringUp(Stream& stream, uint64_t sequence, const ImageSession& session,
                     const std::vector<ListedDevice>& devices) {
  for (const ListedDevice& device : devices) {
    v1::InvalidateRequest request;
    v1::DeviceUpdate& update = *request.mutable_device();
    update.set_sequence(sequence);
    update.set_source_id(device.source_id.value());
    update.set_present(true);
    if (absl::Status s = stream.Do(std::move(request), sequence++); !s.ok()) return s;
  }
  v1::InvalidateRequest registers;
  registers.mutable_registers()->set_sequence(sequence);
  registers.mutable_registers()->set_root_table(session.root_table.value());
  registers.mutable_registers()->set_translation_enabled(session.translation_enabled);
  if (absl::Status s = stream.Do(std::move(registers), sequence++); !s.ok()) return s;

  v1::InvalidateRequest request;
  v1::InvalidationBatch& batch = *request.mutable_batch();
  batch.set_sequence(sequence);
  batch.set_settled(true);
  vtd::ContextCacheInvalidate context;
  context.granularity = vtd::Granularity::kGlobal;
  vtd::IotlbInvalidate iotlb;
  iotlb.granularity = vtd::Granularity::kGlobal;
  for (const vtd::RawDescriptor& raw : {vtd::Encode(context), vtd::Encode(iotlb)}) {
    batch.add_descriptor_words(raw.qw0);
    batch.add_descriptor_words(raw.qw1);
  }
  return stream.Do(std::move(request), sequence);
}

}  // namespace

absl::StatusOr<std::vector<ListedMapping>> ListThroughHypervisor(
    const ImageSession& session, const MemoryImage& image, const WalkRules& rules,
    const std::vector<ListedDevice>& devices, const TlsFlags& tls) {
  const auto channel = Connect(session.hypervisor, tls);
  if (!channel.ok()) return channel.status();
  const auto stub = v1::HypervisorService::NewStub(*channel);
  const auto granted = GrantedMemory::Request(session.memory_socket, session.guest_ram_bytes);
  if (!granted.ok()) return granted.status();
  CopyPages(image, (*granted)->memory());

  v1::OpenSession open;
  open.set_guest_instance_id(RandomId());
  open.set_stream_epoch(1);
  open.set_oldest_retained_sequence(1);
  open.set_next_sequence(1);
  open.set_guest_ram_bytes(session.guest_ram_bytes);
  open.set_memory_kind(v1::GUEST_MEMORY_KIND_SHARED);
  open.set_memory_token((*granted)->token());
  open.set_guest_cap(rules.caps.cap);
  open.set_guest_ecap(rules.caps.ecap);
  open.set_guest_haw_bits(static_cast<uint32_t>(rules.haw_bits));
  Stream stream(*stub);
  const auto opened = stream.Open(std::move(open));
  if (!opened.ok()) return opened.status();
  if (absl::Status s = BringUp(stream, opened->resume_sequence(), session, devices); !s.ok()) {
    return s;
  }
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + kDeadline);
  v1::GetSessionRequest request;
  request.set_session_id(opened->session_id());
  request.set_include_mappings(true);
  v1::Session shown;
  const absl::Status status = FromGrpcStatus(stub->GetSession(&context, request, &shown));
  stream.Close();
  if (!status.ok()) return status;
  if (shown.refused_page_count() != 0) {
    return absl::FailedPreconditionError(absl::StrCat(
        shown.refused_page_count(), " pages are missing: a limit of the hypervisor refused them"));
  }

  absl::flat_hash_map<uint16_t, const ListedDevice*> by_source;
  for (const ListedDevice& device : devices) by_source[device.source_id.value()] = &device;
  std::vector<ListedMapping> list;
  for (const v1::ShadowMapping& m : shown.mappings()) {
    ListedMapping mapping;
    mapping.source_id = SourceId(static_cast<uint16_t>(m.source_id()));
    mapping.range = {Iova(m.iova()), Iova(m.iova_end())};
    mapping.guest_pa = GuestPhys(m.guest_pa());
    mapping.access = {m.read(), m.write()};
    if (const auto it = by_source.find(mapping.source_id.value()); it != by_source.end()) {
      mapping.domain_id = it->second->entry.domain_id();
      mapping.pass_through =
          it->second->reason == vtd::FaultReason::kNone &&
          it->second->entry.translation_type() == vtd::TranslationType::kPassThrough;
    }
    AppendMapping(list, mapping);
  }
  return list;
}

}  // namespace viommu::client
