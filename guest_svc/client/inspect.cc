// viommu inspect: what a saved guest's tables let its devices reach.
#include <algorithm>
#include <cstdio>
#include <fstream>
#include <memory>
#include <sstream>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "guest_svc/client/command.h"
#include "guest_svc/client/image_session.h"
#include "guest_svc/client/output.h"
#include "guest_svc/client/service_pair.h"
#include "guest_svc/client/shared_flags.h"
#include "guest_svc/client/workload_client.h"
#include "iommu_core/load/memory_image.h"
#include "iommu_core/load/table_listing.h"
#include "iommu_core/load/trace_line.h"
#include "svc_common/address.h"

namespace viommu::client {
namespace {

constexpr char kProgram[] = "viommu inspect";
constexpr char kExamples[] =
    "  viommu inspect --memory=table_pages.bin.gz --registers=snapshot.json\n"
    "  viommu inspect --memory=ram.img --registers=regs.json --device=00:03.0 --json=-\n"
    "  viommu inspect --memory=table_pages.bin.gz --registers=snapshot.json --shadow\n";
constexpr uint64_t kMaxRegisterFileBytes = 16 << 20;
// A guest this size is the hypervisor's to refuse, a larger one is a mistake.
constexpr uint64_t kMaxGuestRamBytes = uint64_t{1} << 40;

struct Registers {
  vtd::Capabilities caps;
  uint64_t rtaddr = 0;
  uint64_t gsts = 0;
  uint64_t ram_bytes = 0;  // 0: not said
};

absl::StatusOr<uint64_t> Number(const Json& json, const std::string& path, const char* name) {
  const auto it = json.find(name);
  uint64_t value = 0;
  if (it == json.end()) {
    return absl::InvalidArgumentError(absl::StrCat(path, " has no register ", name));
  }
  if (it->is_number_unsigned()) return it->get<uint64_t>();
  if (it->is_string() && absl::SimpleHexAtoi(it->get<std::string>(), &value)) return value;
  return absl::InvalidArgumentError(absl::StrCat(path, ": ", name, " is no number"));
}

// {"registers":{"CAP":"0x…","ECAP":…,"RTADDR":…,"GSTS":…},"ram_bytes":N} or the inner object alone.
absl::StatusOr<Registers> ReadRegisters(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) return absl::NotFoundError(absl::StrCat(path, ": cannot be read"));
  std::string text(kMaxRegisterFileBytes + 1, '\0');
  in.read(text.data(), static_cast<std::streamsize>(text.size()));
  text.resize(static_cast<size_t>(in.gcount()));
  if (text.size() > kMaxRegisterFileBytes) {
    return absl::InvalidArgumentError(absl::StrCat(path, " is no register file: too large"));
  }
  const Json document = Json::parse(text, nullptr, false);
  if (!document.is_object()) {
    return absl::InvalidArgumentError(absl::StrCat(path, " is no register file: no JSON object"));
  }
  const Json& json = document.contains("registers") ? document["registers"] : document;
  if (!json.is_object()) {
    return absl::InvalidArgumentError(absl::StrCat(path, " is no register file"));
  }
  Registers registers;
  for (const auto& [name, field] :
       {std::pair{"CAP", &registers.caps.cap}, std::pair{"ECAP", &registers.caps.ecap},
        std::pair{"RTADDR", &registers.rtaddr}, std::pair{"GSTS", &registers.gsts}}) {
    const auto value = Number(json, path, name);
    if (!value.ok()) return value.status();
    *field = *value;
  }
  if (document.contains("ram_bytes")) {
    const auto ram = Number(document, path, "ram_bytes");
    if (!ram.ok()) return ram.status();
    registers.ram_bytes = *ram;
  }
  if (vtd::rtaddr::Ttm::Get(registers.rtaddr) != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": the unit is not in legacy mode (RTADDR.TTM)"));
  }
  const int width = registers.caps.max_guest_width();
  if (width < 39 || width > 48) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": CAP says ", width, " address bits; 39 to 48 are supported"));
  }
  return registers;
}

struct Options {
  std::string memory;
  std::string registers;
  std::string device;
  std::string hypervisor;
  std::string memory_socket;
  std::string json;
  bool shadow = false;
  TlsFlags tls;

  void AddTo(FlagSet& flags) {
    flags.AddString("memory", &memory,
                    "memory image: VTDPGS01 pages or flat RAM from address 0, gzip'd or not");
    flags.AddString("registers", &registers, "JSON with CAP, ECAP, RTADDR and GSTS");
    flags.AddString("device", &device, "only this device, e.g. 00:03.0");
    flags.AddBool("shadow", &shadow, "through a hypervisor session instead of the reference walk");
    flags.AddString("hypervisor", &hypervisor,
                    "with --shadow: a running hypervisor_svc --debug_calls; empty: a private one");
    flags.AddString("memory_socket", &memory_socket,
                    "memory socket of --hypervisor; empty: its default");
    AddJsonFlag(flags, &json, "the mappings");
    tls.AddTo(flags);
  }
};

absl::StatusOr<std::vector<ListedMapping>> ThroughShadow(const Options& options,
                                                         const Registers& registers,
                                                         const MemoryImage& image,
                                                         const WalkRules& rules,
                                                         const std::vector<ListedDevice>& devices,
                                                         const std::vector<ListedMapping>& walked) {
  ImageSession session;
  session.root_table = PhysAddr(registers.rtaddr & vtd::rtaddr::Rta::kMask);
  session.translation_enabled = vtd::gcmd::Te::Get(registers.gsts) != 0;
  // Large enough for every page that a device can reach: a sparse image holds only the tables.
  session.guest_ram_bytes = std::max(image.end, registers.ram_bytes);
  for (const ListedMapping& m : walked) {
    if (m.pass_through) continue;
    session.guest_ram_bytes =
        std::max(session.guest_ram_bytes, m.guest_pa.value() + m.range.size_bytes());
  }
  session.guest_ram_bytes = AlignUp(session.guest_ram_bytes, kPageSize);
  if (session.guest_ram_bytes > kMaxGuestRamBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("the tables name memory up to ", session.guest_ram_bytes, " bytes"));
  }
  std::unique_ptr<ServicePair> pair;
  if (options.hypervisor.empty()) {
    PairOptions pair_options;
    pair_options.guest = false;
    pair_options.hypervisor_flags = {
        "--debug_calls", "--dma_entry_limit=4194304", "--verify=full",
        absl::StrCat("--max_guest_ram_bytes=",
                     std::max(session.guest_ram_bytes, uint64_t{1} << 30))};
    auto started = ServicePair::Start(pair_options);
    if (!started.ok()) return started.status();
    pair = *std::move(started);
    session.hypervisor = pair->hypervisor_address();
    session.memory_socket = pair->memory_socket();
  } else {
    const auto address = ParseAddress(options.hypervisor);
    if (!address.ok()) return address.status();
    session.hypervisor = options.hypervisor;
    session.memory_socket =
        options.memory_socket.empty() ? DefaultMemorySocket(*address) : options.memory_socket;
  }
  auto list = ListThroughHypervisor(session, image, rules, devices, options.tls);
  if (!list.ok() && pair != nullptr) {
    if (absl::Status ended = pair->Check(); !ended.ok()) return ended;
  }
  return list;
}

void Print(const std::vector<ListedMapping>& list) {
  for (const ListedMapping& m : list) {
    const std::string access = absl::StrCat(m.access.read ? "R" : "-", m.access.write ? "W" : "-");
    if (m.pass_through) {
      std::printf("%s pass-through %d\n", BdfName(m.source_id).c_str(), m.domain_id.value());
      continue;
    }
    std::printf("%s\n", absl::StrFormat(
                            "%s %#x-%#x %#x-%#x %s %d", BdfName(m.source_id), m.range.first.value(),
                            m.range.end.value(), m.guest_pa.value(),
                            m.guest_pa.value() + m.range.size_bytes(), access, m.domain_id.value())
                            .c_str());
  }
}

Json ToJson(const std::vector<ListedMapping>& list) {
  Json mappings = Json::array();
  for (const ListedMapping& m : list) {
    Json j = {{"device", BdfName(m.source_id)},
              {"domain", m.domain_id.value()},
              {"iova", absl::StrFormat("%#x", m.range.first.value())},
              {"iova_end", absl::StrFormat("%#x", m.range.end.value())},
              {"gpa", absl::StrFormat("%#x", m.guest_pa.value())},
              {"read", m.access.read},
              {"write", m.access.write}};
    if (m.pass_through) j["pass_through"] = true;
    mappings.push_back(std::move(j));
  }
  Json json;
  json["mappings"] = std::move(mappings);
  return json;
}

absl::StatusOr<std::vector<ListedMapping>> Run(const Options& options) {
  if (options.memory.empty() || options.registers.empty()) {
    return absl::InvalidArgumentError(
        "--memory and --registers are needed; `viommu inspect --help` shows how");
  }
  std::optional<SourceId> only;
  if (!options.device.empty()) {
    const auto sid = ParseBdf(options.device);
    if (!sid) {
      return absl::InvalidArgumentError(
          absl::StrCat("--device: '", options.device, "' is no BDF of segment 0"));
    }
    only = SourceId(*sid);
  }
  const auto registers = ReadRegisters(options.registers);
  if (!registers.ok()) return registers.status();
  const auto image = ReadMemoryImage(options.memory);
  if (!image.ok()) return image.status();
  if (vtd::gcmd::Te::Get(registers->gsts) == 0) {
    std::fprintf(stderr, "%s: translation is off (GSTS.TES); the tables are not in use\n",
                 kProgram);
  }
  WalkRules rules;
  rules.caps = registers->caps;
  // QEMU gives its guest one width for both.
  rules.haw_bits = rules.caps.max_guest_width();
  const PhysAddr root(registers->rtaddr & vtd::rtaddr::Rta::kMask);
  if (!image->memory->Read64(root)) {
    return absl::InvalidArgumentError(
        absl::StrFormat("%s has no page at RTADDR %#x: image and registers do not belong together",
                        options.memory, root.value()));
  }
  const auto devices = ListDevices(*image->memory, rules, root);
  for (const ListedDevice& device : devices) {
    if (device.reason != vtd::FaultReason::kNone) {
      std::fprintf(stderr, "%s: %s has an unusable context entry (fault reason %#x)\n", kProgram,
                   BdfName(device.source_id).c_str(), static_cast<unsigned>(device.reason));
    }
  }
  auto walked = ListMappings(*image->memory, rules, devices, only);
  if (!walked.ok() || !options.shadow) return walked;
  auto shadow = ThroughShadow(options, *registers, *image, rules, devices, *walked);
  if (!shadow.ok()) return shadow.status();
  if (only) std::erase_if(*shadow, [&](const ListedMapping& m) { return m.source_id != *only; });
  return shadow;
}

}  // namespace

int RunInspect(const Args& args) {
  Options options;
  FlagSet flags(kProgram,
                "walks the tables of a saved guest; a line per maximal contiguous mapping: "
                "BDF iova-end gpa-end RW domain, ends exclusive");
  options.AddTo(flags);
  if (const auto exit_code = ParseArgs(flags, kExamples, args)) return *exit_code;
  const auto list = Run(options);
  if (!list.ok()) return Fail(kProgram, list.status());
  if (options.json != "-") Print(*list);
  if (!options.json.empty()) {
    if (absl::Status s = WriteJson(options.json, ToJson(*list)); !s.ok()) return Fail(kProgram, s);
  }
  return kExitOk;
}

}  // namespace viommu::client
