#include "svc_common/random_id.h"

#include <sys/random.h>

#include <cstdlib>

#include "absl/strings/escaping.h"

namespace viommu {

std::string RandomId() {
  std::string bytes(16, '\0');
  // At most 256 bytes are never cut short once the pool is up; without randomness ids would be
  // guessable, so there is nothing to go on with.
  if (getrandom(bytes.data(), bytes.size(), 0) != static_cast<ssize_t>(bytes.size())) std::abort();
  return absl::BytesToHexString(bytes);
}

}  // namespace viommu
