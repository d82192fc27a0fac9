#include "iommu_core/load/trace_parser.h"

#include <algorithm>
#include <memory>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "iommu_core/load/line_reader.h"
#include "iommu_core/load/trace_line.h"

namespace viommu {
namespace {

// A kprobe line that waits for its tracepoint line.
struct PendingCall {
  bool map = false;
  uint64_t domain_pointer = 0;
  uint64_t iova = 0;
  uint64_t size_bytes = 0;
  uint64_t prot = 0;
  uint64_t time_ns = 0;
};
// Calls of one task that are open at once: an interrupt may map in the middle of a map, and a call
// that failed never gets its tracepoint line.
constexpr size_t kMaxPendingPerTask = 8;

// Bits of `prot` (include/linux/iommu.h: IOMMU_READ, IOMMU_WRITE).
constexpr uint64_t kProtRead = 1;
constexpr uint64_t kProtWrite = 2;

// The last map (or unmap) of a CPU, to which the next one may belong.
struct OpenList {
  size_t op_index = 0;
  uint32_t domain = 0;
  uint64_t first_iova = 0;
  uint64_t next_iova = 0;
  uint64_t time_ns = 0;
  bool closed = false;  // the kernel sent its invalidation

  bool Adjoins(const LoadOp& op) const {
    return next_iova != 0 && next_iova == op.iova.value() && domain == op.domain && !closed;
  }
};

class Parser {
 public:
  Parser(std::string path, TraceOptions options) : path_(std::move(path)), options_(options) {}

  absl::StatusOr<Trace> Run() {
    absl::StatusOr<std::unique_ptr<LineReader>> reader = LineReader::Open(path_);
    if (!reader.ok()) return reader.status();
    absl::string_view line;
    while ((*reader)->Next(&line)) {
      line_number_ = (*reader)->line_number();
      if (absl::Status s = TakeLine(line, (*reader)->line_complete()); !s.ok()) return s;
    }
    if (!(*reader)->status().ok()) return (*reader)->status();
    return Finish();
  }

 private:
  absl::Status Bad(absl::string_view what) const {
    return absl::InvalidArgumentError(absl::StrCat(path_, ":", line_number_, ": ", what));
  }

  absl::Status TakeLine(absl::string_view line, bool complete) {
    ++trace_.info.lines;
    const absl::string_view text = absl::StripAsciiWhitespace(line);
    if (text.empty()) return absl::OkStatus();
    if (text[0] == '#') return TakeHeader(text);
    if (entries_ == 0 && IsTraceCmdPreamble(text)) return absl::OkStatus();
    if (absl::StrContains(text, " EVENTS]") && absl::StrContains(text, "LOST")) {
      return TakeLost(text);
    }
    const std::optional<TraceLine> parsed = ParseTraceLine(line);
    if (!parsed) {
      if (entries_ > 0 && IsCallChain(line)) {
        ++trace_.info.skipped;
        return absl::OkStatus();
      }
      if (!complete) return Bad("the last line is cut short: the trace is truncated");
      if (entries_ == 0) return Bad("this is no ftrace or perf text");
      return Bad("damaged line: no \"task [cpu] time: event:\"");
    }
    ++entries_;
    TraceInfo& info = trace_.info;
    info.cpus = std::max(info.cpus, parsed->cpu + 1);
    // Buffers of several CPUs are merged by time; equal times keep the kernel's order.
    last_time_ns_ = std::max(last_time_ns_, parsed->time_ns);
    if (info.first_ns == 0) info.first_ns = last_time_ns_;
    info.last_ns = last_time_ns_;
    absl::Status s = TakeEvent(*parsed);
    if (!s.ok() && !complete) return Bad("the last line is cut short: the trace is truncated");
    return s;
  }

  // "# entries-in-buffer/entries-written: 25244/25244   #P:2"
  absl::Status TakeHeader(absl::string_view text) {
    constexpr absl::string_view kKey = "entries-in-buffer/entries-written:";
    const size_t at = text.find(kKey);
    if (at == absl::string_view::npos) return absl::OkStatus();
    absl::string_view numbers = absl::StripLeadingAsciiWhitespace(text.substr(at + kKey.size()));
    const size_t slash = numbers.find('/');
    uint64_t present = 0;
    uint64_t written = 0;
    if (slash == absl::string_view::npos || !absl::SimpleAtoi(numbers.substr(0, slash), &present) ||
        !absl::SimpleAtoi(numbers.substr(slash + 1, numbers.find_first_of(" \t") - slash - 1),
                          &written) ||
        written < present) {
      return Bad("damaged entries-in-buffer header");
    }
    entries_expected_ += present;
    return CountLost(written - present);
  }

  // "CPU:1 [LOST 12 EVENTS]"
  absl::Status TakeLost(absl::string_view text) {
    const size_t at = text.find("LOST");
    absl::string_view number = absl::StripLeadingAsciiWhitespace(text.substr(at + 4));
    uint64_t lost = 0;
    // Without a number the kernel does not know how many.
    if (!absl::SimpleAtoi(number.substr(0, number.find(' ')), &lost)) lost = 1;
    return CountLost(lost);
  }

  absl::Status CountLost(uint64_t lost) {
    trace_.info.lost_events += lost;
    if (lost > 0 && !options_.allow_lost_events) {
      return Bad(absl::StrCat("the kernel lost ", lost,
                              " events of this trace; record it with a larger buffer_size_kb, or "
                              "allow lost events"));
    }
    return absl::OkStatus();
  }

  // perf script prints the stack under an event: "\t    ffffffff8a0b __iommu_map+0x5 ([kernel])".
  static bool IsCallChain(absl::string_view line) {
    if (line.empty() || (line[0] != ' ' && line[0] != '\t')) return false;
    absl::string_view word = absl::StripAsciiWhitespace(line);
    word = word.substr(0, word.find(' '));
    return word.size() >= 6 &&
           std::all_of(word.begin(), word.end(), [](char c) { return absl::ascii_isxdigit(c); });
  }

  // trace-cmd report begins with "cpus=8", and "CPU 3 is empty" for those that recorded nothing.
  static bool IsTraceCmdPreamble(absl::string_view text) {
    const auto is_number = [](absl::string_view word) {
      return !word.empty() &&
             std::all_of(word.begin(), word.end(), [](char c) { return absl::ascii_isdigit(c); });
    };
    if (absl::ConsumePrefix(&text, "cpus=")) return is_number(text);
    if (absl::ConsumePrefix(&text, "version = ")) return is_number(text);
    return absl::ConsumePrefix(&text, "CPU ") && absl::ConsumeSuffix(&text, " is empty") &&
           is_number(text);
  }

  absl::Status TakeEvent(const TraceLine& line) {
    const absl::string_view event = line.event;
    if (event == "map") return TakeMap(line);
    if (event == "unmap") return TakeUnmap(line);
    if (event == "kmap" || event == "kunmap") return TakeCall(line, event == "kmap");
    if (event == "kattach") return TakeAttach(line);
    if (event == "kdomfree") return TakeDomainFree(line);
    if (event == "attach_device_to_domain") return TakeAttachPoint(line);
    if (event == "remove_device_from_group") return TakeRemove(line);
    if (event == "qi_submit") return TakeSubmit(line);
    ++trace_.info.skipped;
    return absl::OkStatus();
  }

  absl::Status TakeCall(const TraceLine& line, bool map) {
    const auto domain = NumberField(line.text, "dom=");
    const auto iova = NumberField(line.text, "iova=");
    const auto size = NumberField(line.text, "size=");
    if (!domain || !iova || !size) return Bad("damaged kprobe line: dom, iova and size expected");
    trace_.info.names_domains = true;
    PendingCall call{map, *domain, *iova, *size, kProtRead | kProtWrite, last_time_ns_};
    if (const auto prot = NumberField(line.text, "prot=")) call.prot = *prot;
    std::vector<PendingCall>& pending = pending_[line.pid];
    if (pending.size() >= kMaxPendingPerTask) pending.erase(pending.begin());
    pending.push_back(call);
    return absl::OkStatus();
  }

  // The kprobe call that this tracepoint line completes.
  std::optional<PendingCall> Complete(const TraceLine& line, bool map, uint64_t iova,
                                      uint64_t size_bytes) {
    const auto it = pending_.find(line.pid);
    if (it == pending_.end()) return std::nullopt;
    std::vector<PendingCall>& pending = it->second;
    for (size_t i = pending.size(); i-- > 0;) {
      const PendingCall call = pending[i];
      if (call.map != map || call.iova != iova || call.size_bytes != size_bytes) continue;
      pending.erase(pending.begin() + static_cast<std::ptrdiff_t>(i));
      return call;
    }
    return std::nullopt;
  }

  absl::StatusOr<uint32_t> DomainOf(uint64_t pointer) {
    const auto it = domain_of_.find(pointer);
    if (it != domain_of_.end()) return it->second;
    if (trace_.info.domains >= kMaxTraceDomains) {
      return Bad(absl::StrCat("more than ", kMaxTraceDomains, " domains"));
    }
    domain_of_[pointer] = trace_.info.domains;
    return trace_.info.domains++;
  }

  absl::Status Append(LoadOp op, const TraceLine& line) {
    if (trace_.ops.size() >= kMaxTraceOps) {
      return Bad(absl::StrCat("more than ", kMaxTraceOps, " operations"));
    }
    op.cpu = static_cast<uint16_t>(line.cpu);
    op.time_ns = last_time_ns_;
    trace_.ops.push_back(op);
    return absl::OkStatus();
  }

  // The common part of a map and an unmap line; the range is checked.
  absl::StatusOr<LoadOp> TakeRange(const TraceLine& line, uint64_t* size_bytes) {
    const auto iova = NumberField(line.text, "iova=");
    const auto size = NumberField(line.text, "size=");
    if (!iova || !size) return Bad("damaged map or unmap line: iova and size expected");
    const auto end = RangeEnd(line.text);
    if (*size == 0 || !IsAligned(*iova | *size, kPageSize) || *iova + *size < *iova ||
        (end && *end != *iova + *size)) {
      return Bad("damaged map or unmap line: its size and range do not agree");
    }
    *size_bytes = *size;
    LoadOp op;
    op.iova = Iova(*iova);
    op.size_bytes = *size;
    return op;
  }

  // Without kprobes everything belongs to domain 0, whose device was there all along.
  absl::Status AttachOnlyDomain(const TraceLine& line) {
    if (trace_.info.domains > 0) return absl::OkStatus();
    trace_.info.domains = 1;
    LoadOp attach;
    attach.kind = LoadOp::Kind::kAttach;
    attach.source_id = named_device_.value_or(MakeSourceId(0, 3, 0));
    devices_.insert(attach.source_id.value());
    return Append(attach, line);
  }

  absl::Status TakeMap(const TraceLine& line) {
    uint64_t size = 0;
    absl::StatusOr<LoadOp> op = TakeRange(line, &size);
    if (!op.ok()) return op.status();
    const auto guest_pa = NumberField(line.text, "paddr=");
    if (!guest_pa || !IsAligned(*guest_pa, kPageSize) || *guest_pa + size < *guest_pa) {
      return Bad("damaged map line: page-aligned paddr expected");
    }
    op->kind = LoadOp::Kind::kMap;
    op->guest_pa = GuestPhys(*guest_pa);
    uint64_t start_ns = last_time_ns_;
    if (const auto call = Complete(line, true, op->iova.value(), size)) {
      absl::StatusOr<uint32_t> domain = DomainOf(call->domain_pointer);
      if (!domain.ok()) return domain.status();
      op->domain = *domain;
      start_ns = call->time_ns;
      op->access = {(call->prot & kProtRead) != 0, (call->prot & kProtWrite) != 0};
      if (!op->access.any()) op->access = kReadWrite;
    } else if (trace_.info.names_domains) {
      return Skip();  // its kprobe line is before the start of the recording
    } else if (absl::Status s = AttachOnlyDomain(line); !s.ok()) {
      return s;
    }
    TraceInfo& info = trace_.info;
    ++info.maps;
    info.guest_pa_end = std::max(info.guest_pa_end, *guest_pa + size);
    info.iova_end = std::max(info.iova_end, op->iova.value() + size);
    OpenList& open = open_list_[line.cpu];
    const uint64_t gap_ns = saw_caching_mode_ ? kSyncedListGapNs : kListGapNs;
    const bool continues = open.Adjoins(*op) && start_ns < open.time_ns + gap_ns;
    if (continues) {
      trace_.ops[open.op_index].list_continues = true;
    } else {
      ++info.lists;
    }
    open = {trace_.ops.size(), op->domain, continues ? open.first_iova : op->iova.value(),
            op->iova.value() + size, last_time_ns_};
    last_call_[line.pid] = {true, op->iova.value(), size};
    return Append(*op, line);
  }

  absl::Status TakeUnmap(const TraceLine& line) {
    uint64_t size = 0;
    absl::StatusOr<LoadOp> op = TakeRange(line, &size);
    if (!op.ok()) return op.status();
    op->kind = LoadOp::Kind::kUnmap;
    // The driver may undo less (nothing was there) or more (a large page) than it was asked for.
    if (const auto done = NumberField(line.text, "unmapped_size=")) {
      if (!IsAligned(*done, kPageSize)) return Bad("damaged unmap line: odd unmapped_size");
      op->size_bytes = *done;
    } else {
      return Bad("damaged unmap line: unmapped_size expected");
    }
    uint64_t start_ns = last_time_ns_;
    if (const auto call = Complete(line, false, op->iova.value(), size)) {
      absl::StatusOr<uint32_t> domain = DomainOf(call->domain_pointer);
      if (!domain.ok()) return domain.status();
      op->domain = *domain;
      start_ns = call->time_ns;
    } else if (trace_.info.names_domains) {
      return Skip();
    } else if (absl::Status s = AttachOnlyDomain(line); !s.ok()) {
      return s;
    }
    if (op->size_bytes == 0) return Skip();
    ++trace_.info.unmaps;
    trace_.info.iova_end = std::max(trace_.info.iova_end, op->iova.value() + op->size_bytes);
    // VFIO gathers adjoining unmaps into one invalidation (vfio_iommu_type1.c, unmap_unpin_fast).
    // Without a strict unmap seen so far nothing says that these were not queued one by one.
    OpenList& open = open_unmap_[line.cpu];
    const bool strict = hinted_ + unhinted_ > 0;
    const uint64_t gap_ns = strict ? kSyncedListGapNs : submissions_ == 0 ? kListGapNs : 0;
    const bool continues = open.Adjoins(*op) && start_ns < open.time_ns + gap_ns;
    if (continues) trace_.ops[open.op_index].list_continues = true;
    open = {trace_.ops.size(), op->domain, continues ? open.first_iova : op->iova.value(),
            op->iova.value() + op->size_bytes, last_time_ns_};
    sent_.push_back(false);
    awaited_[line.pid] = sent_.size() - 1;
    last_call_[line.pid] = {false, op->iova.value(), size};
    return Append(*op, line);
  }

  absl::Status TakeAttach(const TraceLine& line) {
    const auto domain_pointer = NumberField(line.text, "dom=");
    const size_t at = line.text.find("dev=");
    if (!domain_pointer || at == absl::string_view::npos) {
      return Bad("damaged kattach line: dom and dev expected");
    }
    trace_.info.names_domains = true;
    absl::string_view name = line.text.substr(at + 4);
    const auto source_id = ParseBdf(name.substr(0, name.find(' ')));
    absl::StatusOr<uint32_t> domain = DomainOf(*domain_pointer);
    if (!domain.ok()) return domain.status();
    if (!source_id) return Skip();  // no PCI device of segment 0
    LoadOp op;
    op.kind = LoadOp::Kind::kAttach;
    op.domain = *domain;
    op.source_id = SourceId(*source_id);
    devices_.insert(*source_id);
    attached_[*source_id] = *domain;
    return Append(op, line);
  }

  absl::Status TakeAttachPoint(const TraceLine& line) {
    const size_t at = line.text.find("device=");
    if (at == absl::string_view::npos) return Bad("damaged attach line: device expected");
    // Only used where no kprobe says which domain it is.
    absl::string_view name = line.text.substr(at + 7);
    if (const auto source_id = ParseBdf(name.substr(0, name.find(' ')))) {
      if (!named_device_) named_device_ = SourceId(*source_id);
    }
    return absl::OkStatus();
  }

  absl::Status TakeRemove(const TraceLine& line) {
    const size_t at = line.text.find("device=");
    if (at == absl::string_view::npos) return Bad("damaged removal line: device expected");
    absl::string_view name = line.text.substr(at + 7);
    const auto source_id = ParseBdf(name.substr(0, name.find(' ')));
    if (!source_id) return Skip();
    const auto it = attached_.find(*source_id);
    if (it == attached_.end()) return Skip();
    LoadOp op;
    op.kind = LoadOp::Kind::kDetach;
    op.source_id = SourceId(*source_id);
    op.domain = it->second;
    attached_.erase(it);
    return Append(op, line);
  }

  absl::Status TakeDomainFree(const TraceLine& line) {
    const auto pointer = NumberField(line.text, "dom=");
    if (!pointer) return Bad("damaged kdomfree line: dom expected");
    const auto it = domain_of_.find(*pointer);
    if (it == domain_of_.end()) return Skip();
    LoadOp op;
    op.kind = LoadOp::Kind::kDomainFree;
    op.domain = it->second;
    domain_of_.erase(it);
    return Append(op, line);
  }

  // "iotlb_inv dmar0: 0x300f2 0xfff67000 0x0 0x0": facts about the recorded kernel and unit.
  absl::Status TakeSubmit(const TraceLine& line) {
    ++trace_.info.skipped;
    ++submissions_;
    const size_t colon = line.text.find(": 0x");
    if (colon == absl::string_view::npos) return Bad("damaged qi_submit line");
    uint64_t qw0 = 0;
    uint64_t qw1 = 0;
    absl::string_view words = line.text.substr(colon + 2);
    const size_t space = words.find(' ');
    if (space == absl::string_view::npos || !absl::SimpleHexAtoi(words.substr(0, space), &qw0)) {
      return Bad("damaged qi_submit line");
    }
    words = words.substr(space + 1);
    if (!absl::SimpleHexAtoi(words.substr(0, words.find(' ')), &qw1)) {
      return Bad("damaged qi_submit line");
    }
    const uint64_t type = qw0 & 0xf;
    const uint64_t granularity = qw0 >> 4 & 3;
    const uint64_t domain_id = qw0 >> 16 & 0xffff;
    // Linux tags entries that were not present with domain id 0, under caching mode only (VT-d 6.1;
    // intel/iommu.c, domain_context_mapping_one).
    if (type == 1 && granularity == 3 && domain_id == 0) saw_caching_mode_ = true;
    if (type == 2 && granularity == 3) {
      Close(open_list_[line.cpu], qw1);
      Close(open_unmap_[line.cpu], qw1);
      const auto it = last_call_.find(line.pid);
      if (it != last_call_.end()) {
        const uint64_t size = kPageSize << std::min<uint64_t>(qw1 & 0x3f, 51);
        const bool same = AlignDown(it->second.iova, size) == AlignDown(qw1, size);
        if (same && it->second.map) saw_caching_mode_ = true;
        if (same && !it->second.map) {
          ++(qw1 >> 6 & 1 ? hinted_ : unhinted_);
          if (const auto unmap = awaited_.find(line.pid); unmap != awaited_.end()) {
            sent_[unmap->second] = true;
          }
        }
        last_call_.erase(it);
      }
    }
    if (type == 3) {
      ats_devices_.insert(static_cast<uint16_t>(qw0 >> 32 & 0xffff));
    }
    return absl::OkStatus();
  }

  // The invalidation of a list ends it; one of something else (an interrupt's unmap) does not.
  static void Close(OpenList& list, uint64_t qw1) {
    const uint64_t size = kPageSize << std::min<uint64_t>(qw1 & 0x3f, 51);
    if (AlignDown(list.first_iova, size) == AlignDown(qw1, size)) list.closed = true;
  }

  absl::Status Skip() {
    ++trace_.info.skipped;
    return absl::OkStatus();
  }

  absl::StatusOr<Trace> Finish() {
    TraceInfo& info = trace_.info;
    if (entries_expected_ > entries_) {
      return absl::InvalidArgumentError(absl::StrCat(path_, ": truncated after line ", info.lines,
                                                     ": the kernel wrote ", entries_expected_,
                                                     " entries, ", entries_, " are here"));
    }
    if (info.maps + info.unmaps == 0) {
      return absl::InvalidArgumentError(
          absl::StrCat(path_, ": no iommu:map or iommu:unmap event in ", info.lines,
                       " lines; record with trace_event=iommu:*"));
    }
    if (submissions_ > 0) {
      info.caching_mode = saw_caching_mode_;
      if (hinted_ + unhinted_ > 0) info.hint = hinted_ > unhinted_;
    }
    info.devices = static_cast<uint32_t>(devices_.size());
    if (hinted_ + unhinted_ > 0) MarkLazyDomains();
    for (LoadOp& op : trace_.ops) {
      if (op.kind == LoadOp::Kind::kAttach) {
        op.device_tlb = ats_devices_.contains(op.source_id.value());
      }
    }
    return std::move(trace_);
  }

  // A run that is strict elsewhere, and a domain whose unmaps stop being invalidated: DMA-FQ was
  // written to its group's type (dma-iommu.c, iommu_dma_init_fq). Linux has no way back.
  void MarkLazyDomains() {
    absl::flat_hash_map<uint32_t, std::vector<size_t>> unsent;  // by domain: the run at the end
    absl::flat_hash_map<uint32_t, int> attached;                // devices now
    std::vector<std::pair<size_t, uint32_t>> at;                // op index, domain
    absl::flat_hash_map<uint16_t, uint32_t> home;
    size_t unmap = 0;
    const auto end_run = [&](uint32_t domain) {
      std::vector<size_t>& run = unsent[domain];
      if (run.size() >= kLazyRun) at.emplace_back(run.front(), domain);
      run.clear();
    };
    for (size_t i = 0; i < trace_.ops.size(); ++i) {
      const LoadOp& op = trace_.ops[i];
      if (op.kind == LoadOp::Kind::kUnmap) {
        const bool sent = sent_[unmap++];
        if (op.list_continues) continue;  // the list's last tells
        if (sent) {
          unsent[op.domain].clear();
        } else if (attached[op.domain] > 0) {  // nothing is sent for a domain without device
          unsent[op.domain].push_back(i);
        }
      } else if (op.kind == LoadOp::Kind::kAttach) {
        if (const auto old = home.find(op.source_id.value()); old != home.end()) {
          if (--attached[old->second] == 0) end_run(old->second);
        }
        home[op.source_id.value()] = op.domain;
        ++attached[op.domain];
      } else if (op.kind == LoadOp::Kind::kDetach) {
        home.erase(op.source_id.value());
        if (--attached[op.domain] == 0) end_run(op.domain);
      } else if (op.kind == LoadOp::Kind::kDomainFree) {
        end_run(op.domain);
      }
    }
    for (auto& [domain, run] : unsent) end_run(domain);
    std::sort(at.begin(), at.end());
    for (size_t k = at.size(); k-- > 0;) {
      LoadOp lazy = trace_.ops[at[k].first];
      lazy.kind = LoadOp::Kind::kMakeLazy;
      lazy.list_continues = false;
      // What is queued is queued one by one.
      for (size_t i = at[k].first; i < trace_.ops.size(); ++i) {
        LoadOp& op = trace_.ops[i];
        if (op.kind == LoadOp::Kind::kUnmap && op.domain == at[k].second) {
          op.list_continues = false;
        }
      }
      trace_.ops.insert(trace_.ops.begin() + static_cast<std::ptrdiff_t>(at[k].first), lazy);
      ++trace_.info.lazy_domains;
    }
  }

  struct LastCall {
    bool map = false;
    uint64_t iova = 0;
    uint64_t size_bytes = 0;
  };

  // Unmaps in a row without an invalidation before a domain counts as lazy.
  static constexpr size_t kLazyRun = 16;

  const std::string path_;
  const TraceOptions options_;
  Trace trace_;
  std::vector<size_t> unmap_ops_;                 // op index of each unmap
  std::vector<bool> sent_;                        // by unmap: its invalidation was seen
  absl::flat_hash_map<int64_t, size_t> awaited_;  // by task: its last unmap
  uint64_t line_number_ = 0;
  uint64_t entries_ = 0;
  uint64_t entries_expected_ = 0;
  uint64_t last_time_ns_ = 0;
  uint64_t submissions_ = 0;
  uint64_t hinted_ = 0;
  uint64_t unhinted_ = 0;
  bool saw_caching_mode_ = false;
  std::optional<SourceId> named_device_;
  absl::flat_hash_map<int64_t, std::vector<PendingCall>> pending_;  // by task
  absl::flat_hash_map<int64_t, LastCall> last_call_;                // by task
  absl::flat_hash_map<uint32_t, OpenList> open_list_;               // maps, by CPU
  absl::flat_hash_map<uint32_t, OpenList> open_unmap_;              // unmaps, by CPU
  absl::flat_hash_map<uint64_t, uint32_t> domain_of_;               // by pointer
  absl::flat_hash_map<uint16_t, uint32_t> attached_;                // by requester id
  absl::flat_hash_set<uint16_t> devices_;
  absl::flat_hash_set<uint16_t> ats_devices_;
};

}  // namespace

absl::StatusOr<Trace> ReadTrace(const std::string& path, const TraceOptions& options) {
  return Parser(path, options).Run();
}

}  // namespace viommu
