// Parses XID lines of the driver in every form it has had, and the message behind the number as far as verdicts need it.
// Forms: NVIDIA/open-gpu-kernel-modules krcReportXid_IMPL and its messages (595.45.04), older drivers by their logs.
#include "line.h"
#include "text.h"

namespace gft::watch {
namespace {

// How messages begin: tells the end of a process name that has commas in it.
constexpr std::string_view kBeginnings[] = {
    "Ch ",      "Channel",   "channel", "Graphics", "MMU",   "NVLink", "NVLINK", "GPU",    "GSP",    "Row ",  "Contained",
    "Uncontained", "Timeout", "An ",    "A ",       "DBE",   "SBE",    "ECC",    "Page",   "PMU",    "L2",    "Unrecover",
    "Reset",    "engmask",   "Engine",  "errorString", "CCMDs", "FECS", "Failed", "RLW",    "TLW",    "TREX",  "SAW",
    "NVLPW",    "NETIR",     "MSE",     "Recovery", "C2C",   "Fatal",  "Error",  "Firmware", "Robust", "Event", "Critical"};
constexpr size_t kComm = 15;  // of a process name the kernel keeps this much

bool begins_a_message(std::string_view text) {
  for (std::string_view word : kBeginnings)
    if (text.starts_with(word)) return true;
  return false;
}

std::string_view process_name(Cursor &at) {
  if (at.skip("'<unknown>'") || at.skip("<unknown>")) {
    (void)(at.skip(",") || at.skip(";"));
    at.spaces();
    return {};
  }
  size_t first = at.left.npos, end = at.left.npos;
  for (size_t comma = at.left.find(','); comma != at.left.npos && comma <= kComm; comma = at.left.find(',', comma + 1)) {
    if (first == at.left.npos) first = comma;
    Cursor behind{at.left.substr(comma + 1)};
    behind.spaces();
    if (behind.done() || begins_a_message(behind.left)) {
      end = comma;
      break;
    }
  }
  if (end == at.left.npos) end = first != at.left.npos ? first : at.left.find(',');
  std::string_view name = at.take(end);
  at.skip(",");
  at.spaces();
  return name;
}

void device_of(std::string_view attributes, Line &out) {
  Cursor at{attributes};
  at.skip("PCI:");
  read_bdf(at, out.bdf);
  int64_t number;
  Cursor gi{at.left}, ci{at.left};
  if (gi.jump("GPU-I:") && gi.number(number) && number < 1000) out.gi = static_cast<int>(number);
  if (ci.jump("GPU-CI:") && ci.number(number) && number < 1000) out.ci = static_cast<int>(number);
}

std::string_view word(Cursor &at) {
  at.spaces();
  return at.until(" \t");
}

std::string_view number_word(Cursor &at) {
  size_t n = at.peek() == '-';
  while (n < at.left.size() && is_digit(at.left[n])) ++n;
  return at.take(n);
}

// <unit> <Fatal|Nonfatal> <XC0|XC1> <i0|i1> Link <NN|-1> (<intrInfo> <errorStatus> <debug> ...), with any number of spaces.
void nvlink5(std::string_view message, Line &out) {
  Cursor at{message};
  std::string_view unit = word(at), link, info, status;
  if (unit.empty() || !contains(at.left, "(0x")) return;
  out.add("unit", unit);
  while (at.spaces(), !at.done() && at.peek() != '(') {
    std::string_view each = word(at);
    if (each == "Fatal" || each == "Nonfatal" || each == "Non-fatal") out.add("severity", each == "Fatal" ? each : "Nonfatal");
    if (each.starts_with("XC")) out.add("xc", each.substr(2));
    if (each.size() == 2 && each[0] == 'i' && is_digit(each[1])) out.add("injected", each.substr(1));
    if (each == "Link") {
      at.spaces();
      out.add("link", link = number_word(at));
    }
  }
  if (!at.skip("(")) return;
  at.spaces();
  out.add("intr_info", info = at.hex_word());
  at.spaces();
  out.add("error_status", status = at.hex_word());
  at.spaces();
  out.add("debug", at.until(")"));
  out.detail = mixed(mixed(mixed(mixed(out.detail, unit), link), info), status);
}

void recovery_action(Cursor at, Line &out) {
  const char *const names[] = {"old_action", "old_text", "new_action", "new_text"};
  for (int i = 0; i < 4; i += 2) {
    std::string_view action = at.hex_word();
    out.add(names[i], action);
    if (i) out.state = mixed(1, action);
    if (!at.skip(" (")) return;
    out.add(names[i + 1], at.until(")"));
    if (!i && !at.skip(") to ")) return;
  }
}

void mmu_fault(Cursor at, Line &out) {
  out.add("engine", at.until(" ,."));
  if (at.jump("faulted @ ")) out.add("address", at.until(" .,"));
  if (at.jump("of type ")) {
    out.add("fault", at.until(" ."));
    if (at.skip(" ")) out.add("access", at.until(" ."));
  }
}

void streaming_multiprocessor(Cursor at, Line &out) {
  const struct {
    std::string_view before;
    const char *name;
  } parts[] = {{"GPC ", "gpc"}, {", TPC ", "tpc"}, {", SM ", "sm"}};
  for (auto [before, name] : parts) {
    if (!at.skip(before)) return;
    std::string_view number = at.digits();
    out.add(name, number);
    out.detail = mixed(out.detail, number);
  }
}

void nvlink(Cursor at, Line &out) {
  std::string_view link = at.digits();
  out.add("link", link);
  out.detail = mixed(out.detail, link);
  at.spaces();
  if (at.skip("(")) out.add("registers", at.until(")"));
}

}  // namespace

void parse_xid_message(std::string_view message, Line &out) {
  Cursor at{message};
  if (at.skip("Ch ")) out.add("channel", at.until(" ,.:"));
  if (at = {message}; at.jump(" caused by previous Xid ")) {
    std::string_view previous = at.digits();
    out.add("previous_xid", previous);
    out.detail = mixed(out.detail, previous);
  }
  if (at = {message}; at.jump("recovery action changed from ")) recovery_action(at, out);
  switch (out.code) {
    case 13:
      if (at = {message}; at.jump("(")) streaming_multiprocessor(at, out);
      break;
    case 31:
      if (at = {message}; at.jump("ENGINE ")) mmu_fault(at, out);
      break;
    case 74:
      if (at = {message}; at.jump("on link ")) nvlink(at, out);
      break;
    case 119:
    case 120:
    case 175:
      if (at = {message}; at.jump("from ")) out.add("gpu", gpu_number(at.left));
      if (at = {message}; at.jump("Expected function ")) out.add("function", at.digits());
      break;
    case 144:
    case 145:
    case 146:
    case 147:
    case 148:
    case 149:
    case 150:
    case 155:
      nvlink5(message, out);
      break;
    default:
      break;
  }
}

bool parse_xid(std::string_view text, std::string_view behind, Memory &memory, Line &out) {
  constexpr size_t kAttributes = 64;
  size_t close = behind.substr(0, kAttributes).find(')');
  if (close == behind.npos) return false;
  Cursor at{behind.substr(close + 1)};
  at.skip(":");
  at.spaces();
  std::string_view digits = Cursor{at.left}.digits();
  if (digits.size() > 9 || !at.number(out.code)) return false;
  device_of(behind.substr(0, close), out);
  if (out.bdf.size) memory.named(out.bdf);
  out.what = "xid";
  out.text = text;
  at.skip(",");
  at.spaces();
  if (at.skip("pid=")) {
    if (!at.number(out.pid)) {
      if (at.skip("'<unknown>'") || at.skip("<unknown>")) out.add("pid_unknown", "1");
    }
    at.skip(",");
    at.spaces();
    if (at.skip("name=")) out.add("process", process_name(at));
  }
  parse_xid_message(at.left, out);
  return true;
}

}  // namespace gft::watch
