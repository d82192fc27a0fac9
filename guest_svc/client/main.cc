// viommu: the client of the lab. One subcommand each in a file of its own.
#include <cstdio>
#include <string>

#include "absl/strings/string_view.h"
#include "guest_svc/client/command.h"
#include "guest_svc/client/service_pair.h"
#include "svc_common/logging.h"
#include "svc_common/service_host.h"

namespace viommu::client {
namespace {

struct Command {
  const char* name;
  const char* summary;
  int (*run)(const Args& args);
};

constexpr Command kCommands[] = {
    {"compare", "what each invalidation policy costs under each hypervisor strategy", RunCompare},
    {"merge", "join the JSON of a sharded compare into one report", RunMerge},
    {"replay", "replay a recorded map/unmap stream; write the descriptors it submits", RunReplay},
    {"load", "real-time load on a running guest", RunLoadCommand},
    {"top", "sessions of a running hypervisor, live", RunTop},
    {"status", "sessions of a running hypervisor, once, in full", RunStatus},
    {"health", "is a service up and taking calls? for health checks of containers", RunHealth},
    {"inspect", "list what a saved guest's tables let its devices reach", RunInspect},
    {"conformance", "replay recorded VT-d cases against our unit", RunConformance},
    {"anchors", "published figures beside what the model predicts", RunAnchors},
    {"calibrate", "a cost preset from your own measurements", RunCalibrate},
    {"completion", "completion of commands and flags for bash", RunCompletion},
};

void PrintUsage(std::FILE* out) {
  std::fprintf(out, "viommu %s: what a virtual IOMMU's invalidations cost\n\nCommands:\n",
               BuildVersion().c_str());
  for (const Command& command : kCommands) {
    std::fprintf(out, "  %-12s %s\n", command.name, command.summary);
  }
  std::fprintf(out, "\n`viommu COMMAND --help` shows its flags and examples.\n");
}

int Main(int argc, char** argv) {
  HandleSignals();
  InitLogging("viommu");
  if (argc < 2) {
    PrintUsage(stderr);
    return kExitUsage;
  }
  const absl::string_view name = argv[1];
  if (name == "--help" || name == "-h" || name == "help") {
    PrintUsage(stdout);
    return kExitOk;
  }
  if (name == "--version") {
    std::printf("viommu %s\n", BuildVersion().c_str());
    return kExitOk;
  }
  for (const Command& command : kCommands) {
    if (name == command.name) return command.run(Args(argv + 2, argv + argc));
  }
  std::fprintf(stderr, "viommu: no command '%s'; `viommu --help` lists them\n", argv[1]);
  return kExitUsage;
}

}  // namespace
}  // namespace viommu::client

int main(int argc, char** argv) { return viommu::client::Main(argc, argv); }
