// What the subcommands of `viommu` share: flags with examples, exit codes, one-line errors.
#ifndef VIOMMU_GUEST_SVC_CLIENT_COMMAND_H_
#define VIOMMU_GUEST_SVC_CLIENT_COMMAND_H_

#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "svc_common/flags.h"

namespace viommu::client {

using Args = std::vector<std::string>;  // after the subcommand's name

// Parses `args` into the flags' variables. A value: the exit code to end with (help was printed, or
// one line on standard error says what is wrong). `files`: takes arguments that are no flags; null:
// there must be none.
std::optional<int> ParseArgs(FlagSet& flags, const std::string& examples, const Args& args,
                             std::vector<std::string>* files = nullptr);

// "viommu compare: …" on standard error. kExitUsage for InvalidArgument and NotFound (a flag or a
// file is wrong), kExitFailed for the rest.
int Fail(const std::string& command, const absl::Status& status);

// "a,b,c"; InvalidArgument on an empty item or list.
absl::StatusOr<std::vector<std::string>> SplitList(const std::string& text);
absl::StatusOr<std::vector<uint64_t>> SplitNumbers(const std::string& text);

// The whole command line, quoted so that a shell reads it back.
std::string QuoteCommand(const std::string& command, const Args& args);

int RunCompare(const Args& args);
int RunMerge(const Args& args);
int RunReplay(const Args& args);
int RunInspect(const Args& args);
int RunLoadCommand(const Args& args);
int RunStatus(const Args& args);
int RunHealth(const Args& args);
int RunConformance(const Args& args);
int RunAnchors(const Args& args);
int RunCalibrate(const Args& args);
int RunTop(const Args& args);
int RunCompletion(const Args& args);

}  // namespace viommu::client

#endif  // VIOMMU_GUEST_SVC_CLIENT_COMMAND_H_
