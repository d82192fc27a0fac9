#include "iommu_core/load/trace_line.h"

#include <limits>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/strip.h"

namespace viommu {
namespace {

constexpr size_t kNone = absl::string_view::npos;

bool IsDigit(char c) { return c >= '0' && c <= '9'; }

// Takes decimal digits off the front; nullopt: none, or more than fits.
std::optional<uint64_t> TakeDecimal(absl::string_view* text) {
  size_t n = 0;
  uint64_t value = 0;
  for (; n < text->size() && IsDigit((*text)[n]); ++n) {
    if (value > (std::numeric_limits<uint64_t>::max() - 9) / 10) return std::nullopt;
    value = value * 10 + static_cast<uint64_t>((*text)[n] - '0');
  }
  if (n == 0) return std::nullopt;
  text->remove_prefix(n);
  return value;
}

// "107.451977:" or with nine digits; leaves what follows the colon.
std::optional<uint64_t> TakeTime(absl::string_view* text) {
  const std::optional<uint64_t> seconds = TakeDecimal(text);
  if (!seconds || *seconds > 1'000'000'000 || !absl::ConsumePrefix(text, ".")) return std::nullopt;
  uint64_t fraction = 0;
  size_t n = 0;
  for (; n < text->size() && n < 9 && IsDigit((*text)[n]); ++n) {
    fraction = fraction * 10 + static_cast<uint64_t>((*text)[n] - '0');
  }
  text->remove_prefix(n);
  if (n == 0 || !absl::ConsumePrefix(text, ":")) return std::nullopt;
  for (; n < 9; ++n) fraction *= 10;
  return *seconds * 1'000'000'000 + fraction;
}

// What precedes "[cpu]": comm, pid, and with record-tgid a "(tgid)" column.
bool ParseTask(absl::string_view head, TraceLine* out) {
  head = absl::StripTrailingAsciiWhitespace(head);
  if (absl::EndsWith(head, ")")) {
    const size_t open = head.rfind('(');
    if (open == kNone) return false;
    const absl::string_view tgid =
        absl::StripAsciiWhitespace(head.substr(open + 1, head.size() - open - 2));
    if (tgid.empty() || tgid.find_first_not_of("0123456789-") != kNone) return false;
    head = absl::StripTrailingAsciiWhitespace(head.substr(0, open));
  }
  size_t digits = head.size();
  while (digits > 0 && IsDigit(head[digits - 1])) --digits;
  // perf prints "pid/tid" when asked for both.
  if (digits > 0 && digits < head.size() && head[digits - 1] == '/') {
    --digits;
    while (digits > 0 && IsDigit(head[digits - 1])) --digits;
  }
  absl::string_view pid = head.substr(digits);
  const std::optional<uint64_t> value = TakeDecimal(&pid);
  if (!value || *value > std::numeric_limits<int32_t>::max() || digits == 0) return false;
  if (head[digits - 1] != '-' && head[digits - 1] != ' ') return false;
  out->pid = static_cast<int64_t>(*value);
  out->comm = absl::StripAsciiWhitespace(head.substr(0, digits - 1));
  return true;
}

// What follows "[cpu]": optional flag characters, time, event, text.
bool ParseTail(absl::string_view tail, TraceLine* out) {
  if (!absl::StartsWith(tail, " ")) return false;
  tail = absl::StripLeadingAsciiWhitespace(tail);
  if (!tail.empty() && !IsDigit(tail[0])) {
    const size_t space = tail.find(' ');
    // Four to six flags ("dN.1.", "..Zff"), then perhaps the delay mark of irqsoff.
    if (space == kNone || space > 8) return false;
    tail = absl::StripLeadingAsciiWhitespace(tail.substr(space));
    while (!tail.empty() && (tail[0] == '+' || tail[0] == '!' || tail[0] == '#')) {
      tail = absl::StripLeadingAsciiWhitespace(tail.substr(1));
    }
  }
  const std::optional<uint64_t> time = TakeTime(&tail);
  if (!time) return false;
  tail = absl::StripLeadingAsciiWhitespace(tail);
  // The event ends at the first colon followed by a space or the end; "iommu:map:" has one before.
  size_t colon = tail.find(':');
  while (colon != kNone && colon + 1 < tail.size() && tail[colon + 1] != ' ') {
    colon = tail.find(':', colon + 1);
  }
  if (colon == kNone || colon == 0) return false;
  absl::string_view event = tail.substr(0, colon);
  if (event.find(' ') != kNone) return false;
  const size_t subsystem = event.rfind(':');
  if (subsystem != kNone) event.remove_prefix(subsystem + 1);
  out->time_ns = *time;
  out->event = event;
  out->text = absl::StripLeadingAsciiWhitespace(tail.substr(colon + 1));
  return true;
}

}  // namespace

std::optional<TraceLine> ParseTraceLine(absl::string_view line) {
  while (absl::EndsWith(line, "\r")) line.remove_suffix(1);
  for (size_t open = line.find('['); open != kNone; open = line.find('[', open + 1)) {
    absl::string_view rest = line.substr(open + 1);
    const std::optional<uint64_t> cpu = TakeDecimal(&rest);
    if (!cpu || *cpu > std::numeric_limits<uint16_t>::max() || !absl::ConsumePrefix(&rest, "]")) {
      continue;
    }
    TraceLine parsed;
    parsed.cpu = static_cast<uint32_t>(*cpu);
    if (ParseTail(rest, &parsed) && ParseTask(line.substr(0, open), &parsed)) return parsed;
  }
  return std::nullopt;
}

std::optional<uint64_t> NumberField(absl::string_view text, absl::string_view key) {
  size_t at = text.find(key);
  while (at != kNone && at > 0 && text[at - 1] != ' ' && text[at - 1] != ':') {
    at = text.find(key, at + 1);
  }
  if (at == kNone) return std::nullopt;
  absl::string_view number = text.substr(at + key.size());
  number = number.substr(0, number.find_first_of(" ,("));
  uint64_t value = 0;
  if (absl::StartsWith(number, "0x")) {
    if (!absl::SimpleHexAtoi(number, &value)) return std::nullopt;
    return value;
  }
  if (number.empty() || !IsDigit(number[0]) || !absl::SimpleAtoi(number, &value)) {
    return std::nullopt;
  }
  return value;
}

std::optional<uint64_t> RangeEnd(absl::string_view text) {
  const size_t at = text.find(" - 0x");
  if (at == kNone) return std::nullopt;
  absl::string_view number = text.substr(at + 3);
  number = number.substr(0, number.find_first_of(" ("));
  uint64_t value = 0;
  if (!absl::SimpleHexAtoi(number, &value)) return std::nullopt;
  return value;
}

std::optional<uint16_t> ParseBdf(absl::string_view name) {
  name = absl::StripSuffix(absl::StripPrefix(name, "\""), "\"");
  if (name.size() == 12) {
    if (!absl::ConsumePrefix(&name, "0000:")) return std::nullopt;
  }
  if (name.size() != 7 || name[2] != ':' || name[5] != '.') return std::nullopt;
  uint32_t bus = 0;
  uint32_t device = 0;
  if (!absl::SimpleHexAtoi(name.substr(0, 2), &bus) ||
      !absl::SimpleHexAtoi(name.substr(3, 2), &device) || device > 31 || name[6] < '0' ||
      name[6] > '7') {
    return std::nullopt;
  }
  return static_cast<uint16_t>(bus << 8 | device << 3 | static_cast<uint32_t>(name[6] - '0'));
}

}  // namespace viommu
