#include "guest_svc/client/command.h"

#include <cstdio>
#include <cstdlib>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace viommu::client {

std::optional<int> ParseArgs(FlagSet& flags, const std::string& examples, const Args& args,
                             std::vector<std::string>* files) {
  Args rest;
  for (const std::string& arg : args) {
    if (files != nullptr && !absl::StartsWith(arg, "-")) {
      files->push_back(arg);
    } else {
      rest.push_back(arg);
    }
  }
  const absl::StatusOr<FlagSet::Outcome> outcome =
      flags.Parse(rest, [](const char* name) { return std::getenv(name); });
  if (!outcome.ok()) return Fail(flags.program(), outcome.status());
  if (*outcome == FlagSet::Outcome::kHelp) {
    std::printf("%s\nExamples:\n%s", flags.Help().c_str(), examples.c_str());
    return kExitOk;
  }
  return std::nullopt;
}

int Fail(const std::string& command, const absl::Status& status) {
  std::string text(status.message());
  for (char& c : text) {
    if (c == '\n') c = ' ';
  }
  std::fprintf(stderr, "%s: %s\n", command.c_str(), text.c_str());
  return absl::IsInvalidArgument(status) || absl::IsNotFound(status) ? kExitUsage : kExitFailed;
}

absl::StatusOr<std::vector<std::string>> SplitList(const std::string& text) {
  std::vector<std::string> items = absl::StrSplit(text, ',');
  for (const std::string& item : items) {
    if (item.empty()) {
      return absl::InvalidArgumentError(absl::StrCat("'", text, "' has an empty item"));
    }
  }
  return items;
}

absl::StatusOr<std::vector<uint64_t>> SplitNumbers(const std::string& text) {
  const auto items = SplitList(text);
  if (!items.ok()) return items.status();
  std::vector<uint64_t> numbers;
  for (const std::string& item : *items) {
    const auto number = ParseNumber(item);
    if (!number.ok()) return number.status();
    numbers.push_back(*number);
  }
  return numbers;
}

std::string QuoteCommand(const std::string& command, const Args& args) {
  std::string text = command;
  for (const std::string& arg : args) {
    const bool plain = arg.find_first_of(" '\"\\$`*?|&;<>()") == std::string::npos;
    if (plain && !arg.empty()) {
      absl::StrAppend(&text, " ", arg);
      continue;
    }
    text += " '";
    for (char c : arg) text += c == '\'' ? std::string("'\\''") : std::string(1, c);
    text += "'";
  }
  return text;
}

}  // namespace viommu::client
