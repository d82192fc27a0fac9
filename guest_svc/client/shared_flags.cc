#include "guest_svc/client/shared_flags.h"

#include "absl/strings/str_cat.h"

namespace viommu::client {

void AddJsonFlag(FlagSet& flags, std::string* path, const std::string& what) {
  flags.AddString("json", path, absl::StrCat("write ", what, " here; - for standard output"));
}

void AddCostPresetFlag(FlagSet& flags, std::string* preset) {
  flags.AddString("cost_preset", preset,
                  "constants of modelled time: a name of deploy/presets or a file, such as "
                  "`viommu calibrate` writes");
}

void RunFlags::AddTo(FlagSet& flags) {
  flags.AddString("trace", &trace, "ftrace or perf text of a map/unmap stream, gzip'd or not");
  flags.AddBool("allow_lost_events", &allow_lost_events, "take a trace that lost events");
  flags.AddNumber("hz", &hz, 24, 10'000, "guest tick");
  AddCostPresetFlag(flags, &cost_preset);
  flags.AddString("verify", &verify,
                  "oracle: off, sampled or full; empty: the hypervisor's setting");
  flags.AddString("guest", &guest, "a running guest_svc; empty: a private pair");
  tls.AddTo(flags);
}

}  // namespace viommu::client
