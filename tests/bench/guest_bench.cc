// The guest's map and unmap of one page, without the transport: IOVA, table entry, dirty log and
// descriptor. Time is per pair.
#include <benchmark/benchmark.h>

#include <array>
#include <memory>
#include <optional>
#include <vector>

#include "iommu_core/base/clock.h"
#include "iommu_core/dma/guest_machine.h"
#include "iommu_core/dma/page_lane.h"
#include "iommu_core/mem/shared_memory.h"
#include "iommu_core/mem/sparse_memory.h"
#include "iommu_core/pt/psi_cover.h"

namespace viommu {
namespace {

constexpr uint64_t kRam = uint64_t{256} << 20;
constexpr uint64_t kLive = 64;  // pages a thread maps before it unmaps them again: a small ring
constexpr uint32_t kMaxThreads = 2;

// Descriptors of one vCPU on their way to the ring.
struct Batch {
  std::array<vtd::RawDescriptor, 256> descriptors;
  size_t count = 0;
  vtd::RawDescriptor& Next() { return descriptors[count++ % descriptors.size()]; }
};

// A domain of a guest: table, log and IOVAs, shared by the threads of a benchmark.
struct Guest {
  Guest()
      : memory(*SharedMemory::Create(kRam)),
        caps(vtd::QemuCapabilities(39, true)),
        frames(*memory, PhysAddr(kRam / 2), PhysAddr(kRam)),
        log(*DirtyLogView::Create(*memory, PhysAddr(kRam / 4), kRam)),
        table(*SecondStageTable::Create(*memory, frames, 3, caps)),
        iovas({.cpus = kMaxThreads}),
        of_page_0(
            vtd::Encode(InvalidationFor(MakeRange(Iova(0), kPageSize), DomainId(2), false, caps))) {
    // Each vCPU's working set was mapped before, so its IOVAs are in its own magazines and its leaf
    // tables exist; as in a guest that runs for a while.
    for (uint32_t cpu = 0; cpu < kMaxThreads; ++cpu) {
      std::vector<Iova> set;
      for (uint64_t i = 0; i < kLive; ++i) {
        set.push_back(*iovas.Allocate(kPageSize, cpu));
        table->Map(set.back(), PhysAddr(0x1000), kPageSize, kReadWrite).value();
      }
      for (const Iova iova : set) {
        table->Unmap(MakeRange(iova, kPageSize)).value();
        iovas.Free(iova, kPageSize, cpu);
      }
    }
  }

  std::unique_ptr<SharedMemory> memory;
  vtd::Capabilities caps;
  SimpleFrameAllocator frames;
  DirtyLogWriter log;
  std::unique_ptr<SecondStageTable> table;
  IovaAllocator iovas;
  vtd::RawDescriptor of_page_0;
};

// Floor: IOVA and leaf table known; store, marks, descriptor, clear, marks, descriptor.
void BM_FloorPair(benchmark::State& state) {
  Guest guest;
  Batch batch;
  const Iova first = *guest.iovas.Allocate(kLive * kPageSize, 0);
  guest.table->Map(first, PhysAddr(0x1000), kLive * kPageSize, kReadWrite).value();
  const PhysAddr leaf = *guest.table->LeafTableOf(first);
  auto* entries = const_cast<uint64_t*>(guest.memory->PageInPlace(leaf));
  const int index = vtd::LevelIndex(first, 1);
  const uint64_t raw = vtd::SecondStagePte::Leaf(PhysAddr(0x1000), 1, kReadWrite).raw;
  for (auto _ : state) {
    for (uint64_t i = 0; i < kLive; ++i) {
      const auto slot = static_cast<uint64_t>(index) + i;
      __atomic_store_n(entries + slot, raw, __ATOMIC_RELEASE);
      guest.log.Mark(leaf + 8 * slot);
      batch.Next() = PageDescriptor(guest.of_page_0, first + i * kPageSize);
    }
    for (uint64_t i = 0; i < kLive; ++i) {
      const auto slot = static_cast<uint64_t>(index) + i;
      __atomic_store_n(entries + slot, 0, __ATOMIC_RELEASE);
      guest.log.Mark(leaf + 8 * slot);
      batch.Next() = PageDescriptor(guest.of_page_0, first + i * kPageSize);
    }
    benchmark::ClobberMemory();
  }
  state.SetItemsProcessed(state.iterations() * static_cast<int64_t>(kLive));
  state.counters["per_pair"] =
      benchmark::Counter(static_cast<double>(state.iterations() * static_cast<int64_t>(kLive)),
                         benchmark::Counter::kIsRate | benchmark::Counter::kInvert);
}
BENCHMARK(BM_FloorPair);

std::unique_ptr<Guest> shared_guest;
void MakeSharedGuest(const benchmark::State&) { shared_guest = std::make_unique<Guest>(); }
void DropSharedGuest(const benchmark::State&) { shared_guest.reset(); }

// What GuestMachine does for a burst of single pages, but for its own bookkeeping; a lane for each
// thread. The log's cache lines are those of every vCPU that writes the same tables.
void PairsInLanes(benchmark::State& state, const DirtyLogWriter* log) {
  Guest& guest = *shared_guest;
  const auto vcpu = static_cast<uint32_t>(state.thread_index());
  std::optional<DirtyMarks> marks;
  if (log != nullptr) marks.emplace(std::span(log, 1));
  PageLane lane(guest.iovas, vcpu, *guest.table, marks ? &*marks : nullptr);
  // A burst's marks stand before its descriptors are submitted.
  const auto submit = [&] {
    if (marks) marks->Publish();
    benchmark::ClobberMemory();
  };
  Batch batch;
  std::array<Iova, kLive> live;
  for (auto _ : state) {
    for (Iova& iova : live) {
      const auto taken = lane.iovas.Take();
      iova = taken ? *taken : *guest.iovas.Allocate(kPageSize, vcpu);
      if (!lane.entries.Set(iova, PhysAddr(0x1000), kReadWrite)) {
        state.SkipWithError("the page has no leaf table");
        return;
      }
      batch.Next() = PageDescriptor(guest.of_page_0, iova);
    }
    submit();
    for (const Iova iova : live) {
      if (!lane.entries.Clear(iova)) {
        state.SkipWithError("the page was not mapped");
        return;
      }
      batch.Next() = PageDescriptor(guest.of_page_0, iova);
      lane.iovas.Free(iova);
    }
    submit();
  }
  lane.iovas.Empty();
  state.SetItemsProcessed(state.iterations() * static_cast<int64_t>(kLive));
  state.counters["per_pair"] =
      benchmark::Counter(static_cast<double>(state.iterations() * static_cast<int64_t>(kLive)),
                         benchmark::Counter::kIsRate | benchmark::Counter::kInvert);
}
void BM_LanePair(benchmark::State& state) { PairsInLanes(state, &shared_guest->log); }
BENCHMARK(BM_LanePair)
    ->ThreadRange(1, kMaxThreads)
    ->UseRealTime()
    ->Setup(MakeSharedGuest)
    ->Teardown(DropSharedGuest);
// The same without a log.
void BM_LanePairUnlogged(benchmark::State& state) { PairsInLanes(state, nullptr); }
BENCHMARK(BM_LanePairUnlogged)
    ->ThreadRange(1, kMaxThreads)
    ->UseRealTime()
    ->Setup(MakeSharedGuest)
    ->Teardown(DropSharedGuest);

// Completes everything at once, at no cost: what is left is the guest's own work.
class InstantSink final : public InvalidationSink {
 public:
  absl::StatusOr<uint64_t> Post(std::span<const vtd::RawDescriptor> descriptors,
                                std::span<const DeviceTouch>, TableClaim) override {
    consumed_ = static_cast<uint32_t>(descriptors.size());
    return ++ticket_;
  }
  absl::StatusOr<SinkCompletion> Await(uint64_t, absl::Duration) override {
    SinkCompletion done;
    done.consumed = consumed_;
    return done;
  }
  absl::Status UpdateRegisters(const UnitRegisters&) override { return absl::OkStatus(); }
  absl::Status UpdateDevice(SourceId, bool, bool) override { return absl::OkStatus(); }

 private:
  uint64_t ticket_ = 0;
  uint32_t consumed_ = 0;
};

// Whole Map and Unmap calls of a machine: lock, figures, exposure and, with a device attached, ring
// and register file for each of them. Argument: 1 with a device (strict: two submissions a pair).
void BM_MachinePair(benchmark::State& state) {
  GuestConfig config;
  config.ram_bytes = kRam;
  auto memory = *SharedMemory::Create(kRam);
  InstantSink sink;
  WallClock clock;
  auto machine = *GuestMachine::Create(config, *memory, clock, {&sink});
  const uint32_t domain = *machine->CreateDomain(64);
  if (state.range(0) != 0) {
    machine->AttachDevice(domain, MakeSourceId(0, 3, 0), 0, false).value();
  }
  const Segment page{*machine->AllocateBuffer(kPageSize), kPageSize};
  for (auto _ : state) {
    const Iova iova = *machine->Map(domain, {&page, 1}, kReadWrite, 0);
    machine->Unmap(domain, iova, kPageSize, 0).value();
  }
}
BENCHMARK(BM_MachinePair)->ArgName("device")->Arg(0)->Arg(1);

}  // namespace
}  // namespace viommu
