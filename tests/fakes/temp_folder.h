// A folder of its own for each test, short enough for socket paths, gone afterwards.
#ifndef VIOMMU_TESTS_FAKES_TEMP_FOLDER_H_
#define VIOMMU_TESTS_FAKES_TEMP_FOLDER_H_

#include <gtest/gtest.h>
#include <stdlib.h>

#include <filesystem>
#include <string>

namespace viommu {

class TempFolder {
 public:
  TempFolder() {
    char name[] = "/tmp/viommu-test-XXXXXX";
    EXPECT_NE(mkdtemp(name), nullptr);
    path_ = name;
  }
  ~TempFolder() { std::filesystem::remove_all(path_); }
  TempFolder(const TempFolder&) = delete;
  TempFolder& operator=(const TempFolder&) = delete;

  const std::string& path() const { return path_; }
  std::string File(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

}  // namespace viommu

#endif  // VIOMMU_TESTS_FAKES_TEMP_FOLDER_H_
