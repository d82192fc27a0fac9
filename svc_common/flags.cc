#include "svc_common/flags.h"

#include <algorithm>
#include <cctype>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <map>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"

namespace viommu {
namespace {

absl::Status Wrong(const std::string& where, const absl::Status& why) {
  return absl::InvalidArgumentError(absl::StrCat(where, ": ", why.message()));
}

std::string VariableName(const std::string& flag) {
  return absl::StrCat("VIOMMU_", absl::AsciiStrToUpper(flag));
}

}  // namespace

absl::StatusOr<uint64_t> ParseNumber(const std::string& text) {
  const auto bad = [&] {
    return absl::InvalidArgumentError(absl::StrCat("'", text, "' is not a number"));
  };
  if (text.empty() || !std::isdigit(static_cast<unsigned char>(text[0]))) return bad();
  errno = 0;
  char* end = nullptr;
  const bool hex = absl::StartsWith(text, "0x");
  const uint64_t value = std::strtoull(text.c_str(), &end, hex ? 16 : 10);
  if (errno != 0) return bad();
  int shift = 0;
  if (*end != '\0') {
    switch (std::tolower(static_cast<unsigned char>(*end))) {
      case 'k':
        shift = 10;
        break;
      case 'm':
        shift = 20;
        break;
      case 'g':
        shift = 30;
        break;
      case 't':
        shift = 40;
        break;
      default:
        return bad();
    }
    if (end[1] != '\0') return bad();
  }
  if (value > (std::numeric_limits<uint64_t>::max() >> shift)) return bad();
  return value << shift;
}

void FlagSet::AddString(std::string name, std::string* target, std::string help) {
  AddCustom(
      std::move(name), *target,
      [target](const std::string& value) {
        *target = value;
        return absl::OkStatus();
      },
      std::move(help));
}

void FlagSet::AddBool(std::string name, bool* target, std::string help) {
  AddCustom(
      std::move(name), *target ? "true" : "false",
      [target](const std::string& value) {
        if (value == "true" || value == "1" || value == "yes") {
          *target = true;
        } else if (value == "false" || value == "0" || value == "no") {
          *target = false;
        } else {
          return absl::InvalidArgumentError(
              absl::StrCat("'", value, "' is neither true nor false"));
        }
        return absl::OkStatus();
      },
      std::move(help));
  flags_.back().boolean = true;
}

void FlagSet::AddNumber(std::string name, uint64_t* target, uint64_t low, uint64_t high,
                        std::string help) {
  AddCustom(
      std::move(name), absl::StrCat(*target),
      [=](const std::string& value) -> absl::Status {
        const absl::StatusOr<uint64_t> number = ParseNumber(value);
        if (!number.ok()) return number.status();
        if (*number < low || *number > high) {
          return absl::InvalidArgumentError(
              absl::StrCat(value, " is not between ", low, " and ", high));
        }
        *target = *number;
        return absl::OkStatus();
      },
      std::move(help));
}

void FlagSet::AddNumber(std::string name, uint32_t* target, uint32_t low, uint32_t high,
                        std::string help) {
  AddCustom(
      std::move(name), absl::StrCat(*target),
      [=](const std::string& value) -> absl::Status {
        const absl::StatusOr<uint64_t> number = ParseNumber(value);
        if (!number.ok()) return number.status();
        if (*number < low || *number > high) {
          return absl::InvalidArgumentError(
              absl::StrCat(value, " is not between ", low, " and ", high));
        }
        *target = static_cast<uint32_t>(*number);
        return absl::OkStatus();
      },
      std::move(help));
}

void FlagSet::AddCustom(std::string name, std::string default_text, Setter set, std::string help) {
  flags_.push_back(
      {std::move(name), std::move(default_text), std::move(help), false, std::move(set)});
}

const FlagSet::Flag* FlagSet::Find(const std::string& name) const {
  for (const Flag& flag : flags_) {
    if (flag.name == name) return &flag;
  }
  return nullptr;
}

absl::StatusOr<FlagSet::Outcome> FlagSet::Parse(const std::vector<std::string>& args,
                                                const Environment& env) {
  std::map<std::string, std::string> given;
  for (size_t i = 0; i < args.size(); ++i) {
    const std::string& arg = args[i];
    if (arg == "--help" || arg == "-h") return Outcome::kHelp;
    if (!absl::StartsWith(arg, "--")) {
      return absl::InvalidArgumentError(
          absl::StrCat("unexpected argument '", arg, "' (--help lists the flags)"));
    }
    const size_t equals = arg.find('=');
    std::string name = arg.substr(2, equals == std::string::npos ? equals : equals - 2);
    std::replace(name.begin(), name.end(), '-', '_');  // --force-lazy is --force_lazy
    const Flag* flag = Find(name);
    if (flag == nullptr && equals == std::string::npos && absl::StartsWith(name, "no")) {
      const Flag* positive = Find(name.substr(2));
      if (positive != nullptr && positive->boolean) {
        given[positive->name] = "false";
        continue;
      }
    }
    if (flag == nullptr) {
      return absl::InvalidArgumentError(
          absl::StrCat("unknown flag '--", name, "' (--help lists the flags)"));
    }
    if (equals != std::string::npos) {
      given[name] = arg.substr(equals + 1);
    } else if (flag->boolean) {
      given[name] = "true";
    } else if (i + 1 < args.size()) {
      given[name] = args[++i];
    } else {
      return absl::InvalidArgumentError(absl::StrCat("flag '--", name, "' needs a value"));
    }
  }
  for (const Flag& flag : flags_) {
    if (const auto it = given.find(flag.name); it != given.end()) {
      const absl::Status status = flag.set(it->second);
      if (!status.ok()) return Wrong(absl::StrCat("--", flag.name), status);
    } else if (const char* value = env(VariableName(flag.name).c_str()); value != nullptr) {
      const absl::Status status = flag.set(value);
      if (!status.ok()) return Wrong(VariableName(flag.name), status);
    }
  }
  return Outcome::kRun;
}

std::string FlagSet::Help() const {
  std::string text = absl::StrCat(program_, ": ", summary_, "\n\n");
  for (const Flag& flag : flags_) {
    absl::StrAppend(&text, "  --", flag.name, "\n        ", flag.help);
    if (!flag.default_text.empty()) absl::StrAppend(&text, " (default: ", flag.default_text, ")");
    absl::StrAppend(&text, "\n");
  }
  absl::StrAppend(&text, "\nEvery flag can be set by the environment variable VIOMMU_<FLAG>.\n");
  return text;
}

std::optional<int> ParseFlags(FlagSet& flags, int argc, char** argv) {
  const std::vector<std::string> args(argv + std::min(argc, 1), argv + argc);
  const absl::StatusOr<FlagSet::Outcome> outcome =
      flags.Parse(args, [](const char* name) { return std::getenv(name); });
  if (!outcome.ok()) return ReportStartFailure(flags.program(), outcome.status());
  if (*outcome == FlagSet::Outcome::kHelp) {
    std::fputs(flags.Help().c_str(), stdout);
    return kExitOk;
  }
  return std::nullopt;
}

int ReportStartFailure(const std::string& program, const absl::Status& status) {
  std::fprintf(stderr, "%s: %s\n", program.c_str(), std::string(status.message()).c_str());
  return absl::IsInvalidArgument(status) ? kExitUsage : kExitFailed;
}

}  // namespace viommu
