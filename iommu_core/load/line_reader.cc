#include "iommu_core/load/line_reader.h"

#include <sys/stat.h>
#include <zlib.h>

#include <cerrno>
#include <cstring>

#include "absl/strings/str_cat.h"

namespace viommu {

absl::StatusOr<std::unique_ptr<LineReader>> LineReader::Open(const std::string& path,
                                                             size_t max_line_bytes) {
  struct stat info;
  if (stat(path.c_str(), &info) != 0) {
    return absl::NotFoundError(absl::StrCat(path, ": ", std::strerror(errno)));
  }
  if (S_ISDIR(info.st_mode)) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": is a directory"));
  }
  gzFile file = gzopen(path.c_str(), "rb");
  if (file == nullptr) {
    return absl::NotFoundError(absl::StrCat(path, ": ", std::strerror(errno)));
  }
  gzbuffer(file, 1 << 17);
  std::unique_ptr<LineReader> reader(new LineReader(path, file, max_line_bytes));
  reader->buffer_.resize(4 * max_line_bytes);
  return reader;
}

LineReader::~LineReader() { gzclose(static_cast<gzFile>(file_)); }

bool LineReader::Fill() {
  if (at_end_) return false;
  std::memmove(buffer_.data(), buffer_.data() + begin_, end_ - begin_);
  end_ -= begin_;
  begin_ = 0;
  gzFile file = static_cast<gzFile>(file_);
  const int got = gzread(file, buffer_.data() + end_, static_cast<unsigned>(buffer_.size() - end_));
  // zlib gives what it could unpack of a truncated stream and reports Z_BUF_ERROR beside it.
  int error = Z_OK;
  const char* text = gzerror(file, &error);
  if (got < 0 || (error != Z_OK && error != Z_STREAM_END)) {
    status_ = absl::InvalidArgumentError(
        error == Z_BUF_ERROR
            ? absl::StrCat(path_, ": truncated gzip after line ", line_number_)
            : absl::StrCat(path_, ": damaged gzip after line ", line_number_, ": ", text));
    at_end_ = true;
    return false;
  }
  end_ += static_cast<size_t>(got);
  text_bytes_ += static_cast<uint64_t>(got);
  if (got == 0) at_end_ = true;
  if (text_bytes_ > kMaxTextBytes) {
    status_ = absl::InvalidArgumentError(
        absl::StrCat(path_, ": more than ", kMaxTextBytes, " bytes of text"));
    at_end_ = true;
    return false;
  }
  return got > 0;
}

bool LineReader::Next(absl::string_view* line) {
  while (status_.ok()) {
    const char* start = buffer_.data() + begin_;
    const void* newline = std::memchr(start, '\n', end_ - begin_);
    if (newline != nullptr) {
      const size_t length = static_cast<size_t>(static_cast<const char*>(newline) - start);
      *line = absl::string_view(start, length);
      begin_ += length + 1;
      ++line_number_;
      line_complete_ = true;
      if (length <= max_line_bytes_) return true;
    }
    if (newline != nullptr || end_ - begin_ > max_line_bytes_) {
      status_ = absl::InvalidArgumentError(absl::StrCat(
          path_, ": a line of more than ", max_line_bytes_, " bytes after line ", line_number_));
      return false;
    }
    if (Fill()) continue;
    if (!status_.ok() || begin_ == end_) return false;
    *line = absl::string_view(buffer_.data() + begin_, end_ - begin_);
    begin_ = end_;
    ++line_number_;
    line_complete_ = false;
    return true;
  }
  return false;
}

}  // namespace viommu
