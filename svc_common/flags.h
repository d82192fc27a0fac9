// Command-line flags of the services. Not absl::ParseCommandLine: that exits with status 1 and
// several lines, knows no environment, and keeps its values in globals that two servers in one test
// would share.
#ifndef VIOMMU_SVC_COMMON_FLAGS_H_
#define VIOMMU_SVC_COMMON_FLAGS_H_

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace viommu {

inline constexpr int kExitOk = 0;
inline constexpr int kExitFailed = 1;
inline constexpr int kExitUsage = 2;

// Flags of one program, each bound to a variable that holds its default. Accepts --name=value,
// --name value, --flag and --noflag for booleans; VIOMMU_<NAME> in the environment sets what the
// command line does not.
class FlagSet {
 public:
  using Setter = std::function<absl::Status(const std::string& value)>;
  using Environment = std::function<const char*(const char* name)>;
  enum class Outcome { kRun, kHelp };

  FlagSet(std::string program, std::string summary)
      : program_(std::move(program)), summary_(std::move(summary)) {}

  void AddString(std::string name, std::string* target, std::string help);
  void AddBool(std::string name, bool* target, std::string help);
  // Decimal or 0x hexadecimal, with an optional suffix k, m, g or t (powers of 1024).
  void AddNumber(std::string name, uint64_t* target, uint64_t low, uint64_t high, std::string help);
  void AddNumber(std::string name, uint32_t* target, uint32_t low, uint32_t high, std::string help);
  // Anything else: `set` checks and stores; its error says what is wrong with the value.
  void AddCustom(std::string name, std::string default_text, Setter set, std::string help);

  // InvalidArgument names the flag (or variable) and what is wrong. Nothing but the bound variables
  // is changed.
  absl::StatusOr<Outcome> Parse(const std::vector<std::string>& args, const Environment& env);
  std::string Help() const;
  const std::string& program() const { return program_; }

 private:
  struct Flag {
    std::string name;
    std::string default_text;
    std::string help;
    bool boolean = false;
    Setter set;
  };

  const Flag* Find(const std::string& name) const;

  const std::string program_;
  const std::string summary_;
  std::vector<Flag> flags_;
};

// Parses main's arguments and the environment. A value: the exit code to end with (--help was
// printed, or one line on standard error says what is wrong).
std::optional<int> ParseFlags(FlagSet& flags, int argc, char** argv);

// One line on standard error for a start that failed: InvalidArgument gives kExitUsage, all else
// kExitFailed.
int ReportStartFailure(const std::string& program, const absl::Status& status);

// A number as AddNumber reads it.
absl::StatusOr<uint64_t> ParseNumber(const std::string& text);

}  // namespace viommu

#endif  // VIOMMU_SVC_COMMON_FLAGS_H_
