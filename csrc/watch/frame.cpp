// Recognises prefixes by their shape, each reader giving back "not mine" at the first byte that does not fit.
// Dates become numbers only so that distances between lines can be told.
#include "frame.h"

#include <ctime>

#include "text.h"

namespace gft::watch {
namespace {

using Clock = Frame::Clock;
constexpr int64_t kSecond = 1'000'000'000;

// "123.456789" with up to nine decimals -> ns.
bool seconds(Cursor &at, int64_t &out) {
  int64_t whole;
  if (!at.number(whole) || whole > 9'000'000'000) return false;
  int64_t part = 0, unit = kSecond;
  if (at.skip(".") || at.skip(","))
    for (; is_digit(at.peek()) && unit > 1; at.take(1)) part += (at.peek() - '0') * (unit /= 10);
  while (is_digit(at.peek())) at.take(1);
  out = whole * kSecond + part;
  return true;
}

bool two(Cursor &at, int &out) {
  if (at.left.size() < 2) return false;
  char high = at.left[0] == ' ' ? '0' : at.left[0];
  if (!is_digit(high) || !is_digit(at.left[1])) return false;
  out = (high - '0') * 10 + (at.left[1] - '0');
  at.take(2);
  return true;
}

bool month(Cursor &at, int &out) {
  constexpr std::string_view names = "JanFebMarAprMayJunJulAugSepOctNovDec";
  if (at.left.size() < 3) return false;
  size_t found = names.find(at.left.substr(0, 3));
  if (found == names.npos || found % 3) return false;
  out = static_cast<int>(found / 3);
  at.take(3);
  return true;
}

bool clock_time(Cursor &at, struct tm &out, int64_t &part) {
  if (!two(at, out.tm_hour) || !at.skip(":") || !two(at, out.tm_min) || !at.skip(":") || !two(at, out.tm_sec)) return false;
  part = 0;
  if (at.peek() == '.' || at.peek() == ',') {
    int64_t unit = kSecond;
    for (at.take(1); is_digit(at.peek()); at.take(1))
      if (unit > 1) part += (at.peek() - '0') * (unit /= 10);
  }
  return true;
}

int64_t stamp(struct tm &when, int64_t part) { return static_cast<int64_t>(timegm(&when)) * kSecond + part; }

bool year(Cursor &at, int &out) {
  int high, low;
  if (!two(at, high) || !two(at, low) || high < 19 || high > 21) return false;
  out = high * 100 + low - 1900;
  return true;
}

// "2024-07-23T07:53:55.123456+00:00" or with a space in the middle; the zone is left out of account.
bool iso_date(Cursor &at, Frame &out) {
  struct tm when = {};
  int64_t part;
  if (!year(at, when.tm_year) || !at.skip("-") || !two(at, when.tm_mon) || !at.skip("-") || !two(at, when.tm_mday)) return false;
  --when.tm_mon;
  if (!at.skip("T") && !at.skip(" ")) return false;
  if (!clock_time(at, when, part)) return false;
  at.skip("Z");
  at.skip(" UTC");
  if (at.peek() == '+' || at.peek() == '-') at.until(" ");
  out.clock = Clock::wall;
  out.stamp_ns = stamp(when, part);
  return true;
}

// "Jul 23 07:53:55", as syslog writes it, or with the year between: "Jul 23 2024 07:53:55", as the fabric manager does.
bool short_date(Cursor &at, Frame &out) {
  struct tm when = {};
  int64_t part;
  when.tm_year = 100;
  if (!month(at, when.tm_mon) || !at.skip(" ") || !two(at, when.tm_mday) || !at.skip(" ")) return false;
  if (at.left.size() > 4 && at.left[4] == ' ' && (!year(at, when.tm_year) || !at.skip(" "))) return false;
  if (!clock_time(at, when, part)) return false;
  out.clock = Clock::wall;
  out.stamp_ns = stamp(when, part);
  return true;
}

// "Tue Jul 23 07:53:55 2024", as dmesg -T writes it.
bool long_date(Cursor &at, Frame &out) {
  at.take(3);
  if (!at.skip(" ") || !short_date(at, out)) return false;
  if (Cursor with = at; with.skip(" ")) {
    struct tm when = {};
    if (year(with, when.tm_year)) {
      time_t known = static_cast<time_t>(out.stamp_ns / kSecond);
      struct tm whole = {};
      gmtime_r(&known, &whole);
      whole.tm_year = when.tm_year;
      out.stamp_ns = stamp(whole, out.stamp_ns % kSecond);
      at = with;
    }
  }
  return true;
}

bool kmsg(std::string_view line, Frame &out) {
  Cursor at{line};
  int64_t priority, serial, usec;
  if (!at.number(priority) || !at.skip(",") || !at.number(serial) || !at.skip(",") || !at.number(usec) || usec > INT64_MAX / 1000 ||
      !at.skip(",") || !at.jump(";"))
    return false;
  out.text = at.left;
  out.clock = Clock::boot;
  out.stamp_ns = usec * 1000;
  out.serial = static_cast<uint64_t>(serial);
  out.escaped = true;
  out.user = priority >> 3 != 0;  // facility 0 is the kernel's and cannot be chosen by a process
  return true;
}

// "host kernel: " or "host nv-fabricmanager[12]: " behind a date. `only_kernel` where other words may look like that.
void host_and_name(Cursor at, bool only_kernel, Frame &out) {
  std::string_view host = at.until(" ");
  if (host.empty() || host.ends_with(':') || !at.skip(" ")) return;
  std::string_view name = at.until(":[ ");
  if (name.empty() || name.front() == '(') return;  // "Xid (PCI:..." behind a date is no host
  if (at.peek() == '[') {
    at.take(1);
    at.digits();
    if (!at.skip("]")) return;
  }
  if (!at.skip(":") || (!at.skip(" ") && !at.done()) || (only_kernel && name != "kernel")) return;
  out.text = at.left;
  judge_origin(name, out);
}

// "[   12.345678] ", "[T1234] " or "[ C7] " behind it, "[Tue Jul 23 07:53:55 2024] ".
bool brackets(Cursor &at, Frame &out) {
  if (!at.skip("[")) return false;
  at.spaces();
  Frame dated = out;
  if (Cursor date = at; long_date(date, dated) && date.skip("]")) {
    out = dated;
    at = date;
  } else if (Cursor date = at; short_date(date, dated) && date.skip("]")) {
    out = dated;
    at = date;
  } else {
    int64_t since;
    if (!seconds(at, since) || !at.skip("]")) return false;
    if (out.clock == Clock::none) out.clock = Clock::boot, out.stamp_ns = since;
  }
  at.skip(" ");
  if (Cursor caller = at; caller.skip("[")) {
    caller.spaces();
    if ((caller.skip("T") || caller.skip("C")) && !caller.digits().empty() && caller.skip("]")) {
      at = caller;
      at.skip(" ");
    }
  }
  out.text = at.left;
  return true;
}

// "kern  :err   : " of dmesg -x, "<3>" of raw syslog.
void level(Cursor &at, Frame &out) {
  int64_t priority;
  Cursor mark = at;
  if (mark.skip("<") && mark.number(priority) && mark.skip(">")) {
    out.user = priority >> 3 != 0;
    at = mark;
  }
  bool kernel = at.left.starts_with("kern ");
  if (kernel || at.left.starts_with("user ") || at.left.starts_with("daemon:")) {
    Cursor decoded = at;
    decoded.until(":");
    decoded.skip(":");
    decoded.until(":");
    if (!decoded.skip(":")) return;
    decoded.spaces();
    out.user = !kernel;
    at = decoded;
  }
}

}  // namespace

void judge_origin(std::string_view identifier, Frame &frame) {
  if (identifier == "kernel") return;
  frame.user = true;
  // journald takes the word before the colon for a name when a process wrote the line into the kernel's log.
  if (identifier == "NVRM" || identifier.starts_with("nvidia-nvswitch"))
    frame.nvrm = identifier == "NVRM";
  else if (!contains(identifier, "fabricmanager") && !contains(identifier, "fabric-manager"))
    frame.foreign = true;
}

Frame frame_of(std::string_view line) {
  if (line.ends_with('\r')) line.remove_suffix(1);
  Frame out;
  out.text = line;
  if (kmsg(line, out)) return out;
  Cursor at{line};
  level(at, out);
  out.text = at.left;
  if (at.peek() == '[') {
    if (brackets(at, out)) host_and_name(at, true, out);
    return out;
  }
  Frame dated = out;
  Cursor date = at;
  bool found = false;
  if (is_digit(at.peek())) {
    found = iso_date(date, dated);
    if (!found) {  // journalctl -o short-unix
      date = at;
      found = at.left.size() > 10 && at.left[10] == '.' && seconds(date, dated.stamp_ns);
      dated.clock = Clock::wall;
    }
  } else {
    found = short_date(date, dated);
    if (!found) {  // journalctl -o short-full
      date = at;
      date.take(3);
      found = date.skip(" ") && iso_date(date, dated);
    }
  }
  if (!found || !date.skip(" ")) return out;
  out = dated;
  out.text = date.left;
  host_and_name(date, false, out);
  // The kernel's own stamp stays in front of the text where syslog was told to keep it.
  if (Cursor inner{out.text}; !out.foreign && inner.peek() == '[') brackets(inner, out);
  return out;
}

Frame frame_of_trace(std::string_view line) {
  Frame out;
  out.text = line;
  // The name of the task may hold anything, a bracket too; what follows the right bracket has one shape only.
  for (Cursor at{line}; at.jump("] ");) {
    Cursor event = at;
    int64_t since;
    event.spaces();
    event.until(" ");
    event.spaces();
    if (!seconds(event, since) || !event.skip(": ") || event.until(":").empty() || !event.skip(": ")) continue;
    out.text = event.left;
    out.clock = Clock::boot;
    out.stamp_ns = since;
    break;
  }
  return out;
}

uint64_t lost_events(std::string_view line) {
  Cursor at{line};
  int64_t count;
  return at.skip("CPU:") && at.jump(" [LOST ") && at.number(count) && at.skip(" EVENTS]") && count > 0
             ? static_cast<uint64_t>(count)
             : 0;
}

void unescape(std::string_view text, size_t most, std::string &out) {
  out.clear();
  for (size_t i = 0; i < text.size() && out.size() < most; ++i) {
    int high = -1, low = -1;
    if (text[i] == '\\' && i + 3 < text.size() && text[i + 1] == 'x') {
      high = hex_value(text[i + 2]);
      low = hex_value(text[i + 3]);
    }
    if (high >= 0 && low >= 0) {
      out.push_back(static_cast<char>(high << 4 | low));
      i += 3;
    } else {
      out.push_back(text[i]);
    }
  }
}

}  // namespace gft::watch
