#include "guest_svc/client/measurements.h"

#include <algorithm>
#include <cmath>
#include <optional>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "iommu_core/load/line_reader.h"

namespace viommu::client {
namespace {

using absl::string_view;

// A QEMU has about as many; a log with more is no log.
constexpr size_t kMaxThreads = 4096;
constexpr size_t kMaxSamples = 50'000'000;

// The decimal number that follows `key`.
std::optional<double> NumberAfter(string_view line, string_view key) {
  const size_t at = line.find(key);
  if (at == string_view::npos) return std::nullopt;
  line.remove_prefix(at + key.size());
  while (absl::StartsWith(line, " ")) line.remove_prefix(1);
  size_t n = 0;
  while (n < line.size() &&
         (absl::ascii_isdigit(static_cast<unsigned char>(line[n])) || line[n] == '.'))
    ++n;
  double value = 0;
  if (!absl::SimpleAtod(line.substr(0, n), &value)) return std::nullopt;
  return value;
}

// "233@1795491520.217695:vtd_inv_qi_tail write tail 36".
struct QemuLine {
  string_view thread;
  double time_ns = 0;
  string_view event;
  string_view text;
};

std::optional<QemuLine> ParseQemuLine(string_view line) {
  const size_t at = line.find('@');
  const size_t colon = line.find(':', at == string_view::npos ? 0 : at);
  if (at == string_view::npos || colon == string_view::npos) return std::nullopt;
  QemuLine out;
  out.thread = line.substr(0, at);
  const string_view time = line.substr(at + 1, colon - at - 1);
  const size_t dot = time.find('.');
  uint64_t thread = 0;
  uint64_t seconds = 0;
  uint64_t micros = 0;
  if (dot == string_view::npos || !absl::SimpleAtoi(out.thread, &thread) ||
      !absl::SimpleAtoi(time.substr(0, dot), &seconds) ||
      !absl::SimpleAtoi(time.substr(dot + 1), &micros) || micros >= 1'000'000) {
    return std::nullopt;
  }
  // A double holds microseconds since 1970 exactly.
  out.time_ns = 1e3 * (static_cast<double>(seconds) * 1e6 + static_cast<double>(micros));
  const string_view rest = line.substr(colon + 1);
  const size_t space = rest.find(' ');
  out.event = rest.substr(0, space);
  out.text = space == string_view::npos ? string_view() : rest.substr(space + 1);
  return out;
}

// What one QEMU thread is in the middle of.
struct Thread {
  enum class Call { kNone, kMap, kUnmap };
  double last_ns = 0;
  Call call = Call::kNone;
  bool flushing = false;
  double flush_start_ns = 0;
  double calls_ns = 0;  // container calls of the flush
  uint64_t pages = 0;   // mapped pages of the flush, where they are traced
};

class LogReader {
 public:
  LogReader(uint64_t live_pages, QemuLog& log) : live_pages_(live_pages), log_(log) {}

  void Take(const QemuLine& line) {
    Thread& thread = threads_[std::string(line.thread)];
    if (thread.call != Thread::Call::kNone) {
      const double ns = line.time_ns - thread.last_ns;
      (thread.call == Thread::Call::kMap ? log_.map_ns : log_.unmap_ns).Add(ns);
      thread.calls_ns += ns;
      thread.call = Thread::Call::kNone;
    }
    if (line.event == "vfio_iommu_map_notify") {
      thread.call =
          absl::StrContains(line.text, " UNMAP ") ? Thread::Call::kUnmap : Thread::Call::kMap;
    } else if (line.event == "vtd_inv_desc_iotlb_domain" ||
               line.event == "vtd_inv_desc_iotlb_global") {
      thread = {.flushing = true, .flush_start_ns = line.time_ns};
    } else if (line.event == "vtd_page_walk_one_skip_map" ||
               (line.event == "vtd_page_walk_one" && !absl::EndsWith(line.text, " perm 0"))) {
      ++thread.pages;
    } else if (thread.flushing && !absl::StartsWith(line.event, "vtd_page_walk")) {
      EndFlush(thread, line.time_ns);
    }
    thread.last_ns = line.time_ns;
  }
  bool too_many() const {
    return threads_.size() > kMaxThreads || log_.map_ns.size() + log_.unmap_ns.size() > kMaxSamples;
  }

 private:
  void EndFlush(Thread& thread, double now_ns) {
    thread.flushing = false;
    const uint64_t pages = thread.pages != 0 ? thread.pages : live_pages_;
    if (pages == 0) return;
    log_.pages_traced = log_.pages_traced || thread.pages != 0;
    log_.flush_page_ns.Add((now_ns - thread.flush_start_ns - thread.calls_ns) /
                           static_cast<double>(pages));
  }

  const uint64_t live_pages_;
  QemuLog& log_;
  absl::flat_hash_map<std::string, Thread> threads_;
};

}  // namespace

double Samples::Percentile(double part) const {
  std::vector<double> sorted = values_;
  const auto at = std::llround(part * static_cast<double>(sorted.size() - 1));
  std::nth_element(sorted.begin(), sorted.begin() + at, sorted.end());
  return sorted[static_cast<size_t>(at)];
}

absl::StatusOr<BenchmarkResult> ReadBenchmark(const std::string& path) {
  auto reader = LineReader::Open(path);
  if (!reader.ok()) return reader.status();
  BenchmarkResult result;
  string_view line;
  while ((*reader)->Next(&line)) {
    if (absl::StrContains(line, "threads:")) {
      // "granule:1", "granule: 1" and, of an unmerged patch, "granule/sg_nents: 1".
      const auto threads = NumberAfter(line, "threads:");
      const auto granule =
          NumberAfter(line, absl::StrContains(line, "sg_nents:") ? "sg_nents:" : "granule:");
      if (threads.value_or(1) != 1 || granule.value_or(1) != 1) {
        return absl::InvalidArgumentError(
            absl::StrCat(path, ":", (*reader)->line_number(), ": ", threads.value_or(1),
                         " threads, ", granule.value_or(1),
                         " pages; a constant is the cost of one call of one page: run "
                         "dma_map_benchmark -t 1 -g 1"));
      }
    } else if (const auto map = NumberAfter(line, "average map latency(us):")) {
      result.map_ns.Add(*map * 1e3);
    } else if (const auto unmap = NumberAfter(line, "average unmap latency(us):")) {
      result.unmap_ns.Add(*unmap * 1e3);
    }
  }
  if (!(*reader)->status().ok()) return (*reader)->status();
  if (result.map_ns.empty() || result.map_ns.size() != result.unmap_ns.size()) {
    return absl::InvalidArgumentError(absl::StrCat(
        path,
        ": no whole run of dma_map_benchmark: no pair of \"average map latency(us):\" and "
        "\"average unmap latency(us):\" lines"));
  }
  return result;
}

absl::StatusOr<QemuLog> ReadQemuLog(const std::string& path, uint64_t live_pages) {
  auto reader = LineReader::Open(path);
  if (!reader.ok()) return reader.status();
  QemuLog log;
  LogReader take(live_pages, log);
  bool untimed = false;
  string_view line;
  while ((*reader)->Next(&line)) {
    if (const auto parsed = ParseQemuLine(line)) {
      take.Take(*parsed);
    } else {
      untimed = untimed || absl::StartsWith(line, "vtd_") || absl::StartsWith(line, "vfio_");
    }
    if (take.too_many()) {
      return absl::InvalidArgumentError(absl::StrCat(path, ": too many threads or events"));
    }
  }
  if (!(*reader)->status().ok()) return (*reader)->status();
  if (log.map_ns.empty() && log.unmap_ns.empty() && log.flush_page_ns.empty()) {
    return absl::InvalidArgumentError(
        untimed ? absl::StrCat(path, ": events without a time; start QEMU with -msg timestamp=on")
                : absl::StrCat(path,
                               ": neither vfio_iommu_map_notify events nor a domain flush "
                               "over known pages; record with -d trace:vtd_inv_*,"
                               "trace:vfio_iommu_map_notify, or give --live_pages"));
  }
  return log;
}

}  // namespace viommu::client
