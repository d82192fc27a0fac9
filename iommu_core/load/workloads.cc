#include "iommu_core/load/workloads.h"

#include <algorithm>
#include <deque>
#include <queue>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "iommu_core/load/random.h"

namespace viommu {
namespace {

// One activity of a vCPU: a ring, a queue of requests or a request/response pair. All profiles are
// these three shapes with different numbers.
struct Shape {
  enum class Kind {
    kRing,      // a receive ring: every arrival unmaps the oldest buffer and maps a
                // fresh one
    kRequests,  // `depth` requests in flight: map, wait the latency, unmap,
                // start the next
    kPaced,     // one mapping at a time at a given rate, alive for `latency_ns`
  };
  Kind kind = Kind::kRequests;
  uint64_t pages = 1;            // of one mapping
  uint64_t segment_pages = 1;    // pages of a scatter-gather entry; `pages` when contiguous
  uint64_t depth = 1;            // ring entries, or requests in flight
  uint64_t interval_ns = 0;      // ring and paced: mean time between arrivals, per vCPU
  bool interval_shared = false;  // the rate is the whole device's: divide it among the vCPUs
  uint64_t latency_ns = 0;       // requests and paced: mean life of a mapping
  Access access = kReadWrite;
};

struct Profile {
  WorkloadInfo info;
  std::vector<Shape> shapes;  // of every vCPU
  uint64_t static_pages = 0;  // mapped once at the start in lists, never unmapped
};

// 512 entries stand between the 256 and 1024 of anchors.md section 2; the ring's residency is
// entries / rate.
constexpr uint64_t kNicRing = 512;

std::vector<Profile> MakeProfiles() {
  using Kind = Shape::Kind;
  // 10 GbE at MTU 1500: 0.81 Mpps, one page a buffer.
  const Shape nic_rx{.kind = Kind::kRing,
                     .depth = kNicRing,
                     .interval_ns = 1235,
                     .interval_shared = true,
                     .access = kWriteOnly};
  // netperf TCP_RR: 10-60 k/s a core; one page out and one in, each alive for one round trip.
  const Shape rr_out{.kind = Kind::kRequests, .latency_ns = 25'000, .access = kReadOnly};
  const Shape rr_in{.kind = Kind::kRequests, .latency_ns = 25'000, .access = kWriteOnly};
  std::vector<Profile> profiles;
  profiles.push_back({{"nic-rx-classic",
                       "10 GbE receive, MTU 1500, a mapping per packet, ring 512 "
                       "(ATC'11, rIOMMU)"},
                      {nic_rx}});
  profiles.push_back(
      {{"nic-page-pool",
        "page-pool NIC: receive buffers stay mapped, an ACK is "
        "mapped per 50 us and core (UIUC 2025)"},
       {{.kind = Kind::kPaced, .interval_ns = 50'000, .latency_ns = 30'000, .access = kReadOnly}},
       1024});
  profiles.push_back({{"rr",
                       "request/response: one page each way, alive for one round trip of "
                       "25 us (netperf TCP_RR)"},
                      {rr_out, rr_in}});
  profiles.push_back(
      {{"nvme-4k-rr",
        "NVMe random reads of 4K, QD 32 a queue, 80 us latency "
        "(Garry 2019: 456k-750k IOPS a drive)"},
       {{.kind = Kind::kRequests, .depth = 32, .latency_ns = 80'000, .access = kWriteOnly}}});
  profiles.push_back(
      {{"nvme-64k-rw",
        "NVMe 64K requests of 16 scattered pages, QD 16 a queue, "
        "1 ms (Brucker 2023)"},
       {{.kind = Kind::kRequests, .pages = 16, .depth = 16, .latency_ns = 1'000'000}}});
  profiles.push_back({{"zip", "compression engine: two-page lists alive for 4 us (Song 2020)"},
                      {{.kind = Kind::kRequests, .pages = 2, .depth = 4, .latency_ns = 4'000}}});
  profiles.push_back({{"mixed",
                       "16384 registered pages that stay, beside nic-rx-classic and rr in "
                       "the same domain (rdma-mr + nic + rr)"},
                      {nic_rx, rr_out, rr_in},
                      16'384});
  return profiles;
}

const std::vector<Profile>& Profiles() {
  static const std::vector<Profile>* profiles = new std::vector<Profile>(MakeProfiles());
  return *profiles;
}

// One list of the static part: 64 pages, as a receive descriptor of F&S.
constexpr uint64_t kStaticListPages = 64;

// Something a vCPU will do.
struct Event {
  uint64_t time_ns = 0;
  uint64_t order = 0;  // ties: as scheduled
  enum class What { kMap, kUnmap, kArrival, kStatic } what = What::kMap;
  uint32_t shape = 0;
  uint64_t slot = 0;  // of the shape: which request or ring entry
  friend bool operator>(const Event& a, const Event& b) {
    return a.time_ns != b.time_ns ? a.time_ns > b.time_ns : a.order > b.order;
  }
};

class SyntheticSource final : public LoadSource {
 public:
  SyntheticSource(const Profile& profile, const WorkloadParams& params)
      : profile_(profile), params_(params), random_(params.seed) {
    events_.resize(params.vcpus);
    slots_.resize(params.vcpus);
    LayOutMemory();
    LoadOp attach;
    attach.kind = LoadOp::Kind::kAttach;
    attach.source_id = MakeSourceId(0, 3, 0);
    ready_.push_back(attach);
    for (uint32_t cpu = 0; cpu < params.vcpus; ++cpu) Start(cpu);
  }

  bool fixed_times() const override { return false; }
  uint64_t total_ops() const override { return 2 * params_.ops; }
  uint32_t vcpus() const override { return params_.vcpus; }
  uint64_t ram_bytes() const override { return next_page_ * kPageSize; }

  std::optional<LoadOp> Next(const std::vector<uint64_t>& vcpu_ready_ns) override {
    while (ready_.empty()) {
      if (pairs_done_ >= params_.ops) return std::nullopt;
      // The vCPU that can start first; the lower one on a tie.
      uint32_t best = 0;
      uint64_t best_start = ~uint64_t{0};
      for (uint32_t cpu = 0; cpu < params_.vcpus; ++cpu) {
        if (events_[cpu].empty()) continue;
        const uint64_t ready = cpu < vcpu_ready_ns.size() ? vcpu_ready_ns[cpu] : 0;
        const uint64_t start = std::max(events_[cpu].top().time_ns, ready);
        if (start < best_start) {
          best = cpu;
          best_start = start;
        }
      }
      if (best_start == ~uint64_t{0}) return std::nullopt;
      const Event event = events_[best].top();
      events_[best].pop();
      Run(best, event, best_start);
    }
    LoadOp op = ready_.front();
    ready_.pop_front();
    return op;
  }

 private:
  struct Slot {
    uint64_t tag = 0;  // 0: nothing mapped
    uint64_t first_page = 0;
  };

  // Buffers: each request has its own pages, as an application that reuses its buffers; a ring has
  // twice its size, since a buffer is with the network stack while its successor is in the ring.
  void LayOutMemory() {
    next_page_ = kFirstPage + AlignUp(profile_.static_pages, kStaticListPages);
    for (uint32_t cpu = 0; cpu < params_.vcpus; ++cpu) {
      slots_[cpu].resize(profile_.shapes.size());
      for (size_t i = 0; i < profile_.shapes.size(); ++i) {
        const Shape& shape = profile_.shapes[i];
        const uint64_t slots = shape.kind == Shape::Kind::kRing ? 2 * shape.depth : SlotsOf(shape);
        for (uint64_t s = 0; s < slots; ++s) {
          slots_[cpu][i].push_back({0, next_page_});
          // A gap after each page of a list, so that its pieces are not physically contiguous.
          next_page_ += shape.pages * (shape.pages > shape.segment_pages ? 2 : 1);
        }
      }
    }
  }

  static uint64_t SlotsOf(const Shape& shape) {
    if (shape.kind != Shape::Kind::kPaced) return shape.depth;
    // Enough that the oldest is free again: lives of up to 1.5 means, intervals of 0.5 and up.
    return 3 * shape.latency_ns / shape.interval_ns + 2;
  }

  uint64_t IntervalOf(const Shape& shape) const {
    return shape.interval_ns * (shape.interval_shared ? params_.vcpus : 1);
  }

  void Schedule(uint32_t cpu, Event event) {
    event.order = next_order_++;
    events_[cpu].push(event);
  }

  void Start(uint32_t cpu) {
    if (cpu == 0 && profile_.static_pages > 0) {
      Schedule(cpu, {.time_ns = 0, .what = Event::What::kStatic});
    }
    for (uint32_t i = 0; i < profile_.shapes.size(); ++i) {
      const Shape& shape = profile_.shapes[i];
      switch (shape.kind) {
        case Shape::Kind::kRing:
          for (uint64_t s = 0; s < shape.depth; ++s) {
            Schedule(cpu, {.time_ns = 0, .what = Event::What::kMap, .shape = i, .slot = s});
          }
          Schedule(cpu, {.time_ns = random_.Around(IntervalOf(shape)),
                         .what = Event::What::kArrival,
                         .shape = i});
          break;
        case Shape::Kind::kRequests:
          for (uint64_t s = 0; s < shape.depth; ++s) {
            Schedule(cpu, {.time_ns = random_.Below(shape.latency_ns),
                           .what = Event::What::kMap,
                           .shape = i,
                           .slot = s});
          }
          break;
        case Shape::Kind::kPaced:
          Schedule(cpu, {.time_ns = random_.Around(IntervalOf(shape)),
                         .what = Event::What::kArrival,
                         .shape = i});
          break;
      }
    }
  }

  void Run(uint32_t cpu, const Event& event, uint64_t now_ns) {
    if (event.what == Event::What::kStatic) {
      for (uint64_t at = 0; at < profile_.static_pages; at += kStaticListPages) {
        EmitMap(cpu, now_ns, kFirstPage + at, kStaticListPages, kStaticListPages, kReadWrite,
                ++next_tag_);
      }
      return;
    }
    const Shape& shape = profile_.shapes[event.shape];
    std::vector<Slot>& slots = slots_[cpu][event.shape];
    switch (event.what) {
      case Event::What::kMap: {
        MapSlot(cpu, shape, slots[event.slot], now_ns);
        if (shape.kind == Shape::Kind::kRequests) {
          Event unmap = event;
          unmap.what = Event::What::kUnmap;
          unmap.time_ns = now_ns + random_.Around(shape.latency_ns);
          Schedule(cpu, unmap);
        }
        break;
      }
      case Event::What::kUnmap: {
        UnmapSlot(cpu, shape, slots[event.slot], now_ns);
        if (shape.kind == Shape::Kind::kRequests) {
          Event map = event;
          map.what = Event::What::kMap;
          map.time_ns = now_ns;  // the next request follows at once
          Schedule(cpu, map);
        }
        break;
      }
      case Event::What::kArrival: {
        Event next = event;
        next.time_ns = event.time_ns + random_.Around(IntervalOf(shape));
        if (shape.kind == Shape::Kind::kRing) {
          // The oldest buffer goes to the stack and a free one takes its place.
          UnmapSlot(cpu, shape, slots[event.slot], now_ns);
          MapSlot(cpu, shape, slots[(event.slot + shape.depth) % slots.size()], now_ns);
        } else if (slots[event.slot].tag == 0) {
          MapSlot(cpu, shape, slots[event.slot], now_ns);
          Event unmap = event;
          unmap.what = Event::What::kUnmap;
          unmap.time_ns = now_ns + random_.Around(shape.latency_ns);
          Schedule(cpu, unmap);
        }
        next.slot = (event.slot + 1) % slots.size();
        Schedule(cpu, next);
        break;
      }
      case Event::What::kStatic:
        break;
    }
  }

  void MapSlot(uint32_t cpu, const Shape& shape, Slot& slot, uint64_t now_ns) {
    slot.tag = ++next_tag_;
    EmitMap(cpu, now_ns, slot.first_page, shape.pages, shape.segment_pages, shape.access, slot.tag);
  }

  void EmitMap(uint32_t cpu, uint64_t now_ns, uint64_t page, uint64_t pages, uint64_t segment_pages,
               Access access, uint64_t tag) {
    for (uint64_t done = 0; done < pages; done += segment_pages) {
      LoadOp op;
      op.kind = LoadOp::Kind::kMap;
      op.choose_iova = true;
      op.cpu = static_cast<uint16_t>(cpu);
      op.time_ns = now_ns;
      op.access = access;
      op.guest_pa = GuestPhys(page * kPageSize);
      op.size_bytes = std::min(segment_pages, pages - done) * kPageSize;
      op.tag = tag;
      op.list_continues = done + segment_pages < pages;
      ready_.push_back(op);
      page += 2 * segment_pages;
    }
  }

  void UnmapSlot(uint32_t cpu, const Shape& shape, Slot& slot, uint64_t now_ns) {
    if (slot.tag == 0) return;
    LoadOp op;
    op.kind = LoadOp::Kind::kUnmap;
    op.choose_iova = true;
    op.cpu = static_cast<uint16_t>(cpu);
    op.time_ns = now_ns;
    op.size_bytes = shape.pages * kPageSize;
    op.tag = slot.tag;
    ready_.push_back(op);
    slot.tag = 0;
    ++pairs_done_;
  }

  // The first MiB is left alone, as on a PC.
  static constexpr uint64_t kFirstPage = 256;

  const Profile& profile_;
  const WorkloadParams params_;
  Random random_;
  std::vector<std::priority_queue<Event, std::vector<Event>, std::greater<>>> events_;  // by vCPU
  std::vector<std::vector<std::vector<Slot>>> slots_;  // by vCPU, shape
  std::deque<LoadOp> ready_;                           // of the event that runs
  uint64_t next_page_ = 0;
  uint64_t next_order_ = 0;
  uint64_t next_tag_ = 0;
  uint64_t pairs_done_ = 0;
};

}  // namespace

const std::vector<WorkloadInfo>& Workloads() {
  static const std::vector<WorkloadInfo>* infos = [] {
    auto* list = new std::vector<WorkloadInfo>();
    for (const Profile& profile : Profiles()) list->push_back(profile.info);
    return list;
  }();
  return *infos;
}

absl::StatusOr<std::unique_ptr<LoadSource>> MakeWorkload(absl::string_view name,
                                                         const WorkloadParams& params) {
  if (params.vcpus == 0 || params.vcpus > kMaxWorkloadVcpus) {
    return absl::InvalidArgumentError(
        absl::StrCat("vcpus must be 1 to ", kMaxWorkloadVcpus, ", not ", params.vcpus));
  }
  if (params.ops == 0) return absl::InvalidArgumentError("ops must be at least 1");
  for (const Profile& profile : Profiles()) {
    if (profile.info.name == name) return std::make_unique<SyntheticSource>(profile, params);
  }
  const std::string names = absl::StrJoin(
      Workloads(), ", ",
      [](std::string* out, const WorkloadInfo& info) { absl::StrAppend(out, info.name); });
  return absl::InvalidArgumentError(absl::StrCat("no workload \"", name, "\"; there are ", names));
}

}  // namespace viommu
