// Lines of a text file, gzip'd or not, with bounded memory.
#ifndef VIOMMU_IOMMU_CORE_LOAD_LINE_READER_H_
#define VIOMMU_IOMMU_CORE_LOAD_LINE_READER_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace viommu {

// A longer line is no trace line.
inline constexpr size_t kMaxLineBytes = 16384;
// Text of one file, unpacked. A gzip bomb ends here.
inline constexpr uint64_t kMaxTextBytes = uint64_t{8} << 30;

class LineReader {
 public:
  // NotFound / InvalidArgument name the file.
  static absl::StatusOr<std::unique_ptr<LineReader>> Open(const std::string& path,
                                                          size_t max_line_bytes = kMaxLineBytes);
  ~LineReader();
  LineReader(const LineReader&) = delete;
  LineReader& operator=(const LineReader&) = delete;

  // The next line without its newline, valid until the next call; false at the end of the file or
  // on an error, which status() then holds.
  bool Next(absl::string_view* line);
  // InvalidArgument with the line number: the gzip stream is truncated or damaged, a line is longer
  // than `max_line_bytes`, the text longer than kMaxTextBytes.
  const absl::Status& status() const { return status_; }
  uint64_t line_number() const { return line_number_; }  // of the last line, from 1
  // The last line that Next gave ended with a newline.
  bool line_complete() const { return line_complete_; }

 private:
  LineReader(std::string path, void* file, size_t max_line_bytes)
      : path_(std::move(path)), file_(file), max_line_bytes_(max_line_bytes) {}
  bool Fill();

  const std::string path_;
  void* file_;  // gzFile
  const size_t max_line_bytes_;
  std::vector<char> buffer_;
  size_t begin_ = 0;
  size_t end_ = 0;
  bool at_end_ = false;
  bool line_complete_ = false;
  uint64_t line_number_ = 0;
  uint64_t text_bytes_ = 0;
  absl::Status status_;
};

}  // namespace viommu

#endif  // VIOMMU_IOMMU_CORE_LOAD_LINE_READER_H_
