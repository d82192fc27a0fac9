// The anchors: what was published, where, and how the model arrives at its own figure. Bands were
// chosen by kind of figure, not by result: 15 % for a formula, 5 % for a preset's own sum, a factor
// of 1.5 for a time, a rate or a part that a run predicts.
#include <cmath>
#include <limits>
#include <map>
#include <utility>

#include "guest_svc/client/anchors.h"
#include "guest_svc/client/pricing.h"
#include "guest_svc/client/workload_client.h"
#include "iommu_core/base/types.h"

namespace viommu::client {
namespace {

constexpr double kFactor = 1.5;
constexpr double kFormulaPart = 0.15;
constexpr double kSumPart = 0.05;
// Live pages of a NIC with 16 queues of 1024 buffers each way; the s390 thread names none.
constexpr uint64_t kNicPages = 2 * 16 * 1024;
constexpr double kNoLimit = std::numeric_limits<double>::infinity();

constexpr char kAtc11[] =
    "Amit, Ben-Yehuda, Tsafrir, Schuster, vIOMMU, USENIX ATC 2011, table 1 and figure of netperf "
    "throughput (slides)";
constexpr char kUiuc[] = "UIUC nested VT-d study, Oct 2025, guest 6.12.9, 100-400G NIC";
constexpr char kBrucker[] =
    "Brucker on virtio-iommu, linux-iommu list, 2 Aug 2023: fio 64K randwrite, NVMe";

double PerUnmap(const v1::WorkloadResult& r) {
  return r.modelled_ns_total() / static_cast<double>(r.unmaps());
}
double Rate(const v1::WorkloadResult& r) {
  return static_cast<double>(r.unmaps()) / r.virtual_seconds();
}
double StalePages(const v1::WorkloadResult& r) {
  return r.stale_page_seconds() / r.virtual_seconds();
}

// Runs each load once and keeps the first error, so that the list below reads as a list.
class Model {
 public:
  explicit Model(const RunAnchor& run) : run_(run) {}

  const v1::WorkloadResult& Of(const AnchorRun& load) {
    const auto [it, is_new] = done_.try_emplace(load);
    if (!is_new || !status_.ok()) return it->second;
    auto result = run_(load);
    if (result.ok()) {
      it->second = *std::move(result);
    } else {
      status_ = result.status();
    }
    return it->second;
  }
  double Constant(const std::string& preset, const std::string& name) {
    const auto found = FindCostPreset(preset);
    if (!found.ok()) {
      status_ = found.status();
      return 0;
    }
    for (const v1::CostConstant& c : found->constants()) {
      if (c.name() == name) return c.value_ns();
    }
    return 0;
  }
  const absl::Status& status() const { return status_; }

 private:
  const RunAnchor& run_;
  std::map<AnchorRun, v1::WorkloadResult> done_;
  absl::Status status_;
};

// ATC'11: cycles per map and unmap of one packet, and per cent of 10 GbE, strict.
struct Atc11 {
  static constexpr double kBare = 2316 + 4593;
  static constexpr double kTrap = 30645 + 4324;
  static constexpr double kSidecore = 7321 + 1904;
  static constexpr double kBareLine = 43;
  static constexpr double kTrapLine = 10;
  static constexpr double kPacketsPerSecond = 10e9 / 8 / 1538;  // frames of MTU 1500

  // line = 100 * clock / (base + cycles) / kPacketsPerSecond, solved for both from bare and trap.
  static constexpr double kBaseCycles =
      (kTrap * kTrapLine - kBare * kBareLine) / (kBareLine - kTrapLine);
  static constexpr double kClockHz = (kBaseCycles + kBare) * kBareLine / 100 * kPacketsPerSecond;
  static double Line(double cycles) {
    return 100 * kClockHz / (kBaseCycles + cycles) / kPacketsPerSecond;
  }
  // Time of a packet beside its map and unmap.
  static double BaseNs() { return 1e9 * kBaseCycles / kClockHz; }
};

class List {
 public:
  explicit List(Model& model) : model_(model) {}
  std::vector<Anchor> Take() { return std::move(anchors_); }

  void Atc11Anchors();
  void BatchingAnchors();
  void QueueAnchors();
  void BareMetalAnchors();
  void LimitAnchors();
  void ExposureAnchors();

 private:
  Anchor& Add(const char* id, const char* what, AnchorKind kind, double published,
              const char* published_text, const char* unit, double model, const char* basis,
              const char* source) {
    Anchor a;
    a.id = id;
    a.what = what;
    a.kind = kind;
    a.published = published;
    a.published_text = published_text;
    a.unit = unit;
    a.model = model;
    a.basis = basis;
    a.source = source;
    switch (kind) {
      case AnchorKind::kRun:
        return Band(anchors_.emplace_back(a), published / kFactor, published * kFactor);
      case AnchorKind::kFormula:
        return Band(anchors_.emplace_back(a), published * (1 - kFormulaPart),
                    published * (1 + kFormulaPart));
      case AnchorKind::kConstants:
        return Band(anchors_.emplace_back(a), published * (1 - kSumPart),
                    published * (1 + kSumPart));
    }
    return anchors_.back();
  }
  static Anchor& Band(Anchor& anchor, double low, double high) {
    anchor.low = low;
    anchor.high = high;
    return anchor;
  }

  Model& model_;
  std::vector<Anchor> anchors_;
};

void List::Atc11Anchors() {
  Add("A2", "10 GbE receive, strict, emulated on a sidecore", AnchorKind::kFormula, 30,
      "30 % of line", "%", Atc11::Line(Atc11::kSidecore),
      "published cycles 6,909 / 34,969 / 9,225; packet cost and clock fitted to bare metal and "
      "trap",
      kAtc11);
  const auto gain = [&](const AnchorRun& load) {
    AnchorRun lazy = load;
    lazy.policy = "lazy";
    return (Atc11::BaseNs() + PerUnmap(model_.Of(load))) /
           (Atc11::BaseNs() + PerUnmap(model_.Of(lazy)));
  };
  Add("A3", "what deferring gains on bare metal", AnchorKind::kRun, 91.0 / 43, "43 -> 91 % of line",
      "x",
      gain({.workload = "nic-rx-classic",
            .policy = "strict",
            .strategy = "nested",
            .preset = "bare-metal",
            .caching_mode = false}),
      "nic-rx-classic, strict / lazy, preset bare-metal, packet cost of A2", kAtc11);
  Add("A3", "what deferring gains under trap and emulate", AnchorKind::kRun, 11.0 / 10,
      "10 -> 11 % of line", "x",
      gain({.workload = "nic-rx-classic",
            .policy = "strict",
            .strategy = "walk",
            .preset = "qemu-trap"}),
      "nic-rx-classic, strict / lazy x walk, preset qemu-trap, packet cost of A2", kAtc11);
}

void List::BatchingAnchors() {
  const AnchorRun s390{.workload = "nvme-4k-rr",
                       .policy = "lazy",
                       .strategy = "walk",
                       .preset = "qemu-trap",
                       .live_pages = kNicPages};
  AnchorRun s390_single = s390;
  s390_single.policy = "lazy-single";
  // The published figures are throughput, of which invalidation is a part: the model's ratio of
  // invalidation cost alone must be at least that.
  Band(Add("A5", "256 / 10 ms per CPU beside one queue of 32768 / 1 s, at least", AnchorKind::kRun,
           2, "about half the throughput", "x",
           PerUnmap(model_.Of(s390)) / PerUnmap(model_.Of(s390_single)),
           "nvme-4k-rr, 32,768 live pages, lazy / lazy-single x walk, preset qemu-trap",
           "Schnelle, s390 series v13, Sep 2023, z/VM and KVM"),
       2, kNoLimit);
  const AnchorRun nested{.workload = "nvme-4k-rr",
                         .policy = "strict",
                         .strategy = "nested",
                         .preset = "qemu-trap",
                         .caching_mode = false};
  AnchorRun nested_lazy = nested;
  nested_lazy.policy = "lazy";
  Band(Add("A6", "strict beside lazy under nested translation, at least", AnchorKind::kRun,
           51 / 39.3, "39.3 -> 51 Gb/s", "x",
           PerUnmap(model_.Of(nested)) / PerUnmap(model_.Of(nested_lazy)),
           "nvme-4k-rr, strict / lazy x nested, preset qemu-trap, no caching mode",
           "commit 257ec2907419, Feb 2023, Sapphire Rapids, 100G, iperf receive"),
       51 / 39.3, kNoLimit);
  // Overhead is the time above the host's: 1 / bandwidth - 1. `strict` here syncs once a list,
  // which is what the thread calls strict with iotlb_sync_map.
  const auto overhead = [](double percent) { return 100 / percent - 1; };
  const AnchorRun strict_list{.workload = "nvme-64k-rw",
                              .policy = "strict",
                              .strategy = "nested",
                              .preset = "qemu-trap",
                              .ops = 1000};
  AnchorRun lazy_list = strict_list;
  lazy_list.policy = "lazy";
  Add("A7", "part of the overhead that lazy unmaps remove, one map sync a list", AnchorKind::kRun,
      1 - overhead(99.9) / overhead(92.7), "92.7 -> 99.9 % of host", "",
      1 - static_cast<double>(model_.Of(lazy_list).exits()) /
              static_cast<double>(model_.Of(strict_list).exits()),
      "nvme-64k-rw, lazy / strict x nested with caching mode: exits", kBrucker)
      .known_miss =
      "in the published runs the map-time sync that stays costs next to nothing, since the "
      "device's "
      "time hides it; here it is an exit like any other";
  // Flip point of lazy and strict: (B - 1) * C_inv / c_walk with B 256, C_inv 7 us, c_walk 100 ns.
  constexpr double kFlip = 255 * 7000.0 / 100;
  std::vector<std::pair<double, double>> points;  // live pages, lazy - strict
  for (uint64_t live : {4096, 16384, 32768}) {
    AnchorRun lazy = s390;
    lazy.live_pages = live;
    AnchorRun strict = lazy;
    strict.policy = "strict";
    points.emplace_back(live, PerUnmap(model_.Of(lazy)) - PerUnmap(model_.Of(strict)));
  }
  double flip = 0;
  for (size_t i = 1; i < points.size(); ++i) {
    const auto& [x, a] = points[i - 1];
    const auto& [y, b] = points[i];
    if (a < 0 && b >= 0) flip = x + (y - x) * -a / (b - a);
  }
  Add("L*", "live pages at which lazy (256) and strict swap places", AnchorKind::kRun, kFlip,
      "(256-1) x 7 us / 100 ns", "pages", flip,
      "nvme-4k-rr, lazy and strict x walk at 4,096, 16,384 and 32,768 live pages, preset qemu-trap",
      "balance of one full queue's domain flush against its page-selective ones; no measurement");
}

void List::QueueAnchors() {
  const auto pool = [](uint32_t vcpus) {
    return AnchorRun{.workload = "nic-page-pool",
                     .policy = "strict",
                     .strategy = "nested",
                     .preset = "qemu-trap",
                     .ops = 8000,
                     .vcpus = vcpus,
                     .caching_mode = false};
  };
  Add("A9", "throughput of 8 cores over 1", AnchorKind::kRun, 238.0 / 47, "47 -> 238 Gb/s", "x",
      Rate(model_.Of(pool(8))) / Rate(model_.Of(pool(1))),
      "nic-page-pool, strict x nested, unmaps a second at 8 / 1 vCPUs, preset qemu-trap", kUiuc);
  Add("A9", "throughput of 16 cores over 8", AnchorKind::kRun, 25.0 / 238, "238 -> 25 Gb/s", "x",
      Rate(model_.Of(pool(16))) / Rate(model_.Of(pool(8))),
      "nic-page-pool, strict x nested, unmaps a second at 16 / 8 vCPUs, preset qemu-trap", kUiuc)
      .known_miss =
      "a queue gives a plateau; the measured collapse needs waiters that spin with interrupts off "
      "and are descheduled, and no preset has that term";
  const v1::WorkloadResult& one = model_.Of(pool(1));
  const double invalidation_ns = one.modelled_exit_ns() / static_cast<double>(one.exits()) +
                                 model_.Constant("qemu-trap", "queue_build_ns");
  Add("A10", "one trapped submission", AnchorKind::kConstants, 7600, "7.6 us", "ns",
      invalidation_ns, "nic-page-pool, exit time per exit + queue_build_ns, preset qemu-trap",
      kUiuc);
  AnchorRun queue = pool(1);
  queue.preset = "nested-queue";
  const auto invalidation = [&](const AnchorRun& load) {
    const v1::WorkloadResult& r = model_.Of(load);
    return (r.modelled_exit_ns() + r.modelled_hw_ns()) / static_cast<double>(r.exits()) +
           model_.Constant(load.preset, "queue_build_ns");
  };
  Band(Add("A11", "a guest's own queue beside a trapped one", AnchorKind::kConstants, 0.2,
           "70-90 % less", "x", invalidation(queue) / invalidation(pool(1)),
           "nic-page-pool, invalidation time, presets nested-queue / qemu-trap",
           "commit 918eb5c856f6, Tegra241 CMDQV"),
       0.1, 0.3);
}

void List::BareMetalAnchors() {
  const auto nvme = [](const char* policy, uint32_t vcpus) {
    return AnchorRun{.workload = "nvme-4k-rr",
                     .policy = policy,
                     .strategy = "nested",
                     .preset = "bare-metal",
                     .ops = vcpus > 1 ? uint64_t{8000} : uint64_t{4000},
                     .vcpus = vcpus,
                     .caching_mode = false};
  };
  constexpr char kKunpeng[] = "Garry 2019, Kunpeng D06 NVMe, 456k strict and 740k lazy IOPS";
  constexpr char kBenchmark[] = "Chen 2021, dma_map_benchmark on Kunpeng, 4K";
  Add("A12", "invalidations a second that one queue can do, strict", AnchorKind::kRun, 1.4e6,
      "2.8 M IOPS, 2 sockets", "/s", Rate(model_.Of(nvme("strict", 32))),
      "nvme-4k-rr, 32 vCPUs, strict, unmaps a second, preset bare-metal (queue_build_ns: Grace and "
      "Kunpeng)",
      "NV-Kernels PR 182/184, Aug 2025, NVIDIA Grace, 8 SSDs, 4K randread");
  Add("A13", "what strict adds to an I/O", AnchorKind::kRun, 1e9 / 456e3 - 1e9 / 740e3, "0.84 us",
      "ns", PerUnmap(model_.Of(nvme("strict", 1))) - PerUnmap(model_.Of(nvme("lazy", 1))),
      "nvme-4k-rr, strict - lazy, preset bare-metal (queue_build_ns: Grace and Kunpeng)", kKunpeng);
  const auto unmap = [&](uint32_t vcpus) {
    const v1::WorkloadResult& r = model_.Of(nvme("strict", vcpus));
    return PerUnmap(r) - model_.Constant("bare-metal", "map_update_ns");
  };
  Band(Add("A13", "a 4K unmap", AnchorKind::kRun, 1000, "0.8-1.3 us", "ns", unmap(1),
           "nvme-4k-rr, strict without its map, preset bare-metal", kBenchmark),
       800 / kFactor, 1300 * kFactor);
  Band(Add("A13", "a 4K unmap, 10 threads", AnchorKind::kRun, 6400, "5.8-7.0 us", "ns", unmap(10),
           "nvme-4k-rr, 10 vCPUs, strict without its map, preset bare-metal", kBenchmark),
       5800 / kFactor, 7000 * kFactor);
  Add("A14", "8,192 page invalidations in place of 16 wide ones", AnchorKind::kConstants, 981e3,
      "1,033 -> 52 us", "ns", (8192 - 16) * model_.Constant("bare-metal", "hw_invalidation_ns"),
      "8,176 x hw_invalidation_ns, preset bare-metal", "Ranjan 2021, Qualcomm SM8150, 32 MB list");
  const auto page_gbps = [](double misses) { return 4096 * 8 / (65 + 197 * misses); };
  constexpr char kFands[] = "Agarwal et al., F&S, SOSP 2024: 100G, MTU 4K, strict";
  Add("A16", "throughput lost at 5 flows, 1.76 IOTLB reads a page", AnchorKind::kFormula, 20,
      "20 %", "%", 100 - page_gbps(1.76), "a 4K page takes 65 ns + 197 ns a read (their fit)",
      kFands);
  Add("A16", "throughput lost at 40 flows, 4.36 IOTLB reads a page", AnchorKind::kFormula, 65,
      "65 %", "%", 100 - page_gbps(4.36), "a 4K page takes 65 ns + 197 ns a read (their fit)",
      kFands);
}

void List::LimitAnchors() {
  const AnchorRun full{.workload = "nvme-4k-rr",
                       .policy = "strict",
                       .strategy = "walk",
                       .preset = "qemu-trap",
                       .ops = 64,
                       .live_pages = 66'560,
                       .dma_entry_limit = 65'535};
  Band(Add("A18", "4K memory that VFIO's 65,535 entries can map", AnchorKind::kRun, 256 << 20,
           "256 MiB", "bytes", static_cast<double>(model_.Of(full).pinned_pages_max() * kPageSize),
           "66,560 live pages against --dma_entry_limit=65535",
           "VFIO type1 dma_entry_limit; cloud-hypervisor documentation"),
       65'000.0 * kPageSize, 256 << 20);
  const double pin_ns = model_.Constant("qemu-trap", "pin_page_ns");
  constexpr char kJordan[] = "Jordan 2021, VFIO pinning of guest memory";
  constexpr double kPagesPerGb = (1 << 30) / 4096.0;
  Add("A18", "pinning a guest of 120 GB", AnchorKind::kConstants, 29.7e9, "29.7 s", "ns",
      120 * kPagesPerGb * pin_ns, "pages x pin_page_ns, preset qemu-trap", kJordan);
  Add("A18", "pinning a guest of 1 GB", AnchorKind::kConstants, 0.56e9, "0.56 s", "ns",
      kPagesPerGb * pin_ns, "pages x pin_page_ns, preset qemu-trap", kJordan)
      .known_miss =
      "the measured start has 0.3 s that do not grow with memory; only pages are priced";
}

void List::ExposureAnchors() {
  // 80,000 unmaps a second: 4 vCPUs of nic-page-pool.
  const auto exposed = [&](const char* policy, uint64_t ops) {
    return StalePages(model_.Of({.workload = "nic-page-pool",
                                 .policy = policy,
                                 .strategy = "nested",
                                 .preset = "bare-metal",
                                 .ops = ops,
                                 .vcpus = 4,
                                 .caching_mode = false}));
  };
  constexpr char kClosedForm[] = "closed form: unmaps a second times mean age; no measurement";
  Add("A20", "stale pages at 80k unmaps a second, 256 / 10 ms", AnchorKind::kRun, 400, "400",
      "pages", exposed("lazy", 8000), "nic-page-pool, 4 vCPUs, lazy, mean over the run",
      kClosedForm);
  Add("A20", "stale pages at 80k unmaps a second, 32768 / 1 s", AnchorKind::kRun, 16'384, "16,384",
      "pages", exposed("lazy-single", 32'768),
      "nic-page-pool, 4 vCPUs, lazy-single, mean over the run", kClosedForm);
}

}  // namespace

absl::StatusOr<std::vector<Anchor>> ComputeAnchors(const RunAnchor& run) {
  Model model(run);
  List list(model);
  list.Atc11Anchors();
  list.BatchingAnchors();
  list.QueueAnchors();
  list.BareMetalAnchors();
  list.LimitAnchors();
  list.ExposureAnchors();
  if (!model.status().ok()) return model.status();
  return list.Take();
}

const std::vector<Unmodelled>& UnmodelledFigures() {
  static const auto* figures = new std::vector<Unmodelled>{
      {"A1", "ATC'11: 6,909 / 34,969 / 9,225 cycles", "inputs of A2"},
      {"A4", "ATC'11, optimistic teardown: 100 / 82 / 100 % of line", "no policy reuses mappings"},
      {"A7", "virtio-iommu without iotlb_sync_map: 81.3 % of host",
       "no policy syncs once for each piece of a list"},
      {"A8", "virtio-iommu 4K latency: 8.8x strict, 7.1x lazy", "device latency is not modelled"},
      {"A9", "UIUC without the doorbell: 344 / 274 Gb/s", "bandwidth of a NIC is not modelled"},
      {"A15", "bounce buffers: 2.8 to 4.7 times faster", "no policy copies"},
      {"A17", "HyperSIO constants", "latencies of a simulated device"},
      {"A19", "rIOMMU: 2,127 cycles an invalidation", "recalled, not read again: not shipped"}};
  return *figures;
}

}  // namespace viommu::client
