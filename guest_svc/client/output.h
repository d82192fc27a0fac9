// Where results go: aligned tables, JSON files, progress.
#ifndef VIOMMU_GUEST_SVC_CLIENT_OUTPUT_H_
#define VIOMMU_GUEST_SVC_CLIENT_OUTPUT_H_

#include <chrono>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "nlohmann/json.hpp"

namespace viommu::client {

// Key order as written: a reader finds the schema first.
using Json = nlohmann::ordered_json;

// `path` "-": standard output. The file appears whole or not at all.
absl::Status WriteFile(const std::string& path, const std::string& content);
absl::Status WriteJson(const std::string& path, const Json& json);

// A whole JSON file. NotFound, InvalidArgument: it cannot be read, is larger than `max_bytes`, or
// is no JSON.
absl::StatusOr<Json> ReadJson(const std::string& path, uint64_t max_bytes);
// A whole file, likewise.
absl::StatusOr<std::string> ReadFile(const std::string& path, uint64_t max_bytes);

// "12,345"; "1.23" with as many digits as say something; "6.7 us".
std::string Grouped(uint64_t value);
std::string Short(double value);
std::string Duration(double ns);

// "12 s", "3 min 20 s", "2 h 5 min".
std::string LongDuration(double seconds);
// ", about 12 s left" for work of which `part` (0 to 1) took `seconds`; empty while that says
// nothing: in the first second, and before a two-hundredth is done.
std::string Remaining(double part, double seconds);

// Columns aligned to their widest cell; the first row is the head. Text left, numbers right.
class TextTable {
 public:
  explicit TextTable(std::vector<std::string> head) { rows_.push_back(std::move(head)); }
  void Add(std::vector<std::string> row) { rows_.push_back(std::move(row)); }
  std::string ToString() const;

 private:
  std::vector<std::vector<std::string>> rows_;
};

// One changing line on a terminal, elsewhere a line every few seconds; on standard error.
class Progress {
 public:
  explicit Progress(std::string what);
  ~Progress() { Done(); }
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  void Say(const std::string& text);
  // Clears the line of a terminal.
  void Done();

 private:
  using Clock = std::chrono::steady_clock;

  const std::string what_;
  const bool terminal_;
  bool shown_ = false;
  Clock::time_point last_;
};

}  // namespace viommu::client

#endif  // VIOMMU_GUEST_SVC_CLIENT_OUTPUT_H_
