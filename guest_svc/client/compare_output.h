// What `compare` and `merge` do with a finished comparison.
#ifndef VIOMMU_GUEST_SVC_CLIENT_COMPARE_OUTPUT_H_
#define VIOMMU_GUEST_SVC_CLIENT_COMPARE_OUTPUT_H_

#include <string>

#include "guest_svc/client/comparison.h"

namespace viommu::client {

struct OutputFiles {
  std::string json;          // viommu.compare.v1; "-": standard output; empty: none
  std::string report;        // HTML; empty: none
  bool sensitivity = false;  // also how far each constant moves the answer
};

// Prints the table, the answer and the notes (on standard error where standard output is the
// JSON's) and writes the files. The exit code: kExitFailed if a shadow and the reference walk
// differed.
int Publish(const std::string& program, const Comparison& comparison, const OutputFiles& files);

}  // namespace viommu::client

#endif  // VIOMMU_GUEST_SVC_CLIENT_COMPARE_OUTPUT_H_
