// viommu completion: what a shell needs to complete the command line.
#include <cstdio>
#include <initializer_list>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "guest_svc/client/command.h"
#include "guest_svc/client/embedded_presets.h"
#include "iommu_core/dma/guest_config.h"
#include "iommu_core/load/workloads.h"
#include "iommu_core/shadow/hypervisor_session.h"

namespace viommu::client {
namespace {

constexpr char kProgram[] = "viommu completion";
constexpr char kExamples[] =
    "  source <(viommu completion bash)\n"
    "  viommu completion bash > /etc/bash_completion.d/viommu\n";

// Commands and flags are asked of the program itself, so that they cannot be out of date. Bash
// hands
// "--flag=value" over in three words, the '=' being one.
constexpr char kBash[] = R"bash(# bash completion of viommu; made by `viommu completion bash`
_viommu() {
  local cur=${COMP_WORDS[COMP_CWORD]} flag= prefix= values=
  COMPREPLY=()
  if ((COMP_CWORD == 1)); then
    COMPREPLY=($(compgen -W "$("$1" --help 2>/dev/null | sed -n 's/^  \([a-z]\+\) .*/\1/p') --help --version" -- "$cur"))
    return
  fi
  if [[ $cur == "=" ]]; then
    flag=${COMP_WORDS[COMP_CWORD-1]} cur=
  elif [[ ${COMP_WORDS[COMP_CWORD-1]} == "=" ]]; then
    flag=${COMP_WORDS[COMP_CWORD-2]}
  elif [[ $cur == -* ]]; then
    COMPREPLY=($(compgen -W "$("$1" "${COMP_WORDS[1]}" --help 2>/dev/null | sed -n 's/^  \(--[a-z0-9_]\+\)$/\1/p') --help" -- "$cur"))
    return
  fi
  case $flag in
    --policy|--policies) values="@POLICIES@" ;;
    --strategy|--strategies) values="@STRATEGIES@" ;;
    --workload) values="@WORKLOADS@" ;;
    --cost_preset|--base_preset) values="@PRESETS@" ;;
    --map_sync) values="each merged" ;;
    --verify) values="off sampled full" ;;
    --quirks) values="none qemu" ;;
    --ih) values="never linux-6.12" ;;
  esac
  if [[ -n $values ]]; then
    # A comma-separated list: the last item is completed.
    [[ $cur == *,* ]] && prefix=${cur%,*},
    COMPREPLY=($(compgen -P "$prefix" -W "$values" -- "${cur##*,}"))
  else
    COMPREPLY=($(compgen -f -- "$cur"))
  fi
}
complete -o nosort -o filenames -F _viommu viommu
)bash";

template <typename E>
std::string Names(absl::string_view (*name)(E), std::initializer_list<E> values) {
  return absl::StrJoin(values, " ",
                       [&](std::string* out, E value) { absl::StrAppend(out, name(value)); });
}

}  // namespace

int RunCompletion(const Args& args) {
  FlagSet flags(kProgram, "prints a completion script; the shell is bash");
  std::vector<std::string> shells;
  if (const auto exit_code = ParseArgs(flags, kExamples, args, &shells)) return *exit_code;
  if (shells.size() != 1 || shells[0] != "bash") {
    return Fail(kProgram, absl::InvalidArgumentError(
                              "say for which shell: `viommu completion bash` is the one there is"));
  }
  std::vector<std::string> presets;
  for (const EmbeddedPreset& preset : kEmbeddedPresets) presets.emplace_back(preset.name);
  const std::string workloads = absl::StrJoin(
      Workloads(), " ",
      [](std::string* out, const WorkloadInfo& info) { absl::StrAppend(out, info.name); });
  std::fputs(
      absl::StrReplaceAll(
          kBash,
          {{"@POLICIES@", Names(PolicyName, {Policy::kPassthrough, Policy::kStrict, Policy::kLazy,
                                             Policy::kLazySingle, Policy::kLazyPsi,
                                             Policy::kLazyPsiBatched, Policy::kAdaptive})},
           {"@STRATEGIES@",
            Names(StrategyName, {Strategy::kWalk, Strategy::kWalkShared, Strategy::kSnapshot,
                                 Strategy::kDirtyLog, Strategy::kNested})},
           {"@WORKLOADS@", workloads},
           {"@PRESETS@", absl::StrJoin(presets, " ")}})
          .c_str(),
      stdout);
  return kExitOk;
}

}  // namespace viommu::client
