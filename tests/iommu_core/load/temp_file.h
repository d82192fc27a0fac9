// A file that lives as long as the object.
#ifndef VIOMMU_TESTS_IOMMU_CORE_LOAD_TEMP_FILE_H_
#define VIOMMU_TESTS_IOMMU_CORE_LOAD_TEMP_FILE_H_

#include <unistd.h>
#include <zlib.h>

#include <fstream>
#include <string>

#include "gtest/gtest.h"

namespace viommu {

class TempFile {
 public:
  explicit TempFile(const std::string& content, bool gzip = false) {
    static int count = 0;
    path_ = testing::TempDir() + "viommu_load_" + std::to_string(getpid()) + "_" +
            std::to_string(count++);
    if (gzip) {
      gzFile file = gzopen(path_.c_str(), "wb");
      gzwrite(file, content.data(), static_cast<unsigned>(content.size()));
      gzclose(file);
    } else {
      std::ofstream(path_, std::ios::binary) << content;
    }
  }
  ~TempFile() { unlink(path_.c_str()); }
  TempFile(const TempFile&) = delete;
  TempFile& operator=(const TempFile&) = delete;
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

inline std::string ReadAll(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

}  // namespace viommu

#endif  // VIOMMU_TESTS_IOMMU_CORE_LOAD_TEMP_FILE_H_
