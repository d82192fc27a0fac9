#include "iommu_core/load/memory_image.h"

#include <sys/stat.h>
#include <zlib.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <span>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/string_view.h"

namespace viommu {
namespace {

static_assert(std::endian::native == std::endian::little, "images are little-endian");

constexpr absl::string_view kMagic = "VTDPGS01";
constexpr size_t kRecordHeaderBytes = 16;

class ImageReader {
 public:
  explicit ImageReader(const std::string& path) : path_(path) {}
  ~ImageReader() {
    if (file_ != nullptr) gzclose(file_);
  }
  ImageReader(const ImageReader&) = delete;
  ImageReader& operator=(const ImageReader&) = delete;

  absl::StatusOr<MemoryImage> Read() {
    struct stat info;
    if (stat(path_.c_str(), &info) != 0) {
      return absl::NotFoundError(absl::StrCat(path_, ": ", std::strerror(errno)));
    }
    if (!S_ISREG(info.st_mode)) return Bad("is no memory image: not a file");
    file_ = gzopen(path_.c_str(), "rb");
    if (file_ == nullptr) {
      return absl::NotFoundError(absl::StrCat(path_, ": ", std::strerror(errno)));
    }
    gzbuffer(file_, 1 << 17);
    std::array<std::byte, kPageSize> page;
    absl::StatusOr<size_t> got = Take(std::span(page).first(kMagic.size()));
    if (!got.ok()) return got.status();
    if (*got == kMagic.size() && std::memcmp(page.data(), kMagic.data(), kMagic.size()) == 0) {
      return ReadSparse();
    }
    return ReadFlat(page, *got);
  }

 private:
  using Page = std::array<std::byte, kPageSize>;
  struct Record {
    uint64_t address;
    Page content;
  };

  absl::Status Bad(absl::string_view what) const {
    return absl::InvalidArgumentError(absl::StrCat(path_, " ", what));
  }

  // Fills `out` as far as the file goes.
  absl::StatusOr<size_t> Take(std::span<std::byte> out) {
    const int got = gzread(file_, out.data(), static_cast<unsigned>(out.size()));
    int error = Z_OK;
    gzerror(file_, &error);
    if (error == Z_BUF_ERROR) return Bad("is truncated (gzip)");
    if (got < 0) return Bad("is no memory image: damaged gzip");
    bytes_ += static_cast<uint64_t>(got);
    if (bytes_ > kMaxImageBytes) {
      return Bad(absl::StrCat("is larger than ", kMaxImageBytes, " bytes"));
    }
    return static_cast<size_t>(got);
  }

  absl::StatusOr<MemoryImage> ReadSparse() {
    std::vector<Record> records;
    for (;;) {
      std::array<std::byte, kRecordHeaderBytes> header;
      absl::StatusOr<size_t> got = Take(header);
      if (!got.ok()) return got.status();
      if (*got == 0) break;
      Record record;
      std::memcpy(&record.address, header.data(), sizeof(record.address));
      if (*got == header.size()) {
        absl::StatusOr<size_t> content = Take(record.content);
        if (!content.ok()) return content.status();
        *got += *content;
      }
      if (*got != header.size() + kPageSize) {
        return Bad(absl::StrCat("is truncated in record ", records.size()));
      }
      if (!IsAligned(record.address, kPageSize) || record.address >> 52 != 0) {
        return Bad(absl::StrFormat("is no memory image: record %d has address %#x", records.size(),
                                   record.address));
      }
      if (records.size() >= kMaxImagePages) {
        return Bad(absl::StrCat("has more than ", kMaxImagePages, " pages"));
      }
      records.push_back(record);
    }
    if (records.empty()) return Bad("is no memory image: no page in it");
    std::sort(records.begin(), records.end(),
              [](const Record& a, const Record& b) { return a.address < b.address; });
    MemoryImage image;
    image.sparse = true;
    std::vector<SparseMemory::Ram> ram;
    for (const Record& record : records) {
      if (!image.pages.empty() && image.pages.back() == record.address) {
        return Bad(absl::StrFormat("is no memory image: page %#x is in it twice", record.address));
      }
      image.pages.push_back(record.address);
      const PhysAddr first(record.address);
      if (!ram.empty() && ram.back().end == first) {
        ram.back().end += kPageSize;
      } else {
        ram.push_back({first, first + kPageSize});
      }
    }
    image.end = records.back().address + kPageSize;
    image.memory = std::make_unique<SparseMemory>(std::move(ram));
    for (const Record& record : records) {
      image.memory->WriteBytes(PhysAddr(record.address), record.content);
    }
    return image;
  }

  // `page` holds the first `filled` bytes already.
  absl::StatusOr<MemoryImage> ReadFlat(Page& page, size_t filled) {
    std::vector<Record> records;
    uint64_t address = 0;
    for (;;) {
      absl::StatusOr<size_t> got = Take(std::span(page).subspan(filled));
      if (!got.ok()) return got.status();
      const size_t total = filled + *got;
      if (total == 0) break;
      if (total != kPageSize) {
        return Bad("is no memory image: neither VTDPGS01 nor whole 4 KiB pages");
      }
      if (std::any_of(page.begin(), page.end(), [](std::byte b) { return b != std::byte{0}; })) {
        if (records.size() >= kMaxImagePages) {
          return Bad(absl::StrCat("has more than ", kMaxImagePages, " pages that are not zero"));
        }
        records.push_back({address, page});
      }
      address += kPageSize;
      filled = 0;
    }
    if (address == 0) return Bad("is no memory image: empty");
    MemoryImage image;
    image.end = address;
    image.memory = std::make_unique<SparseMemory>(
        std::vector<SparseMemory::Ram>{{PhysAddr(0), PhysAddr(address)}});
    for (const Record& record : records) {
      image.pages.push_back(record.address);
      image.memory->WriteBytes(PhysAddr(record.address), record.content);
    }
    return image;
  }

  const std::string path_;
  gzFile file_ = nullptr;
  uint64_t bytes_ = 0;
};

}  // namespace

absl::StatusOr<MemoryImage> ReadMemoryImage(const std::string& path) {
  return ImageReader(path).Read();
}

}  // namespace viommu
