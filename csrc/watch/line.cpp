// Chooses the parser of a line by the words that only such lines have, and keeps the memory between lines.
// Nearly every line of a log is about something else, so saying no is what must be quick.
#include "line.h"

#include "text.h"

namespace gft::watch {

void Memory::forget_old() {
  size_t kept = 0;
  for (size_t i = 0; i < probe_count_; ++i)
    if (line_ - probes_[i].at <= kNear) probes_[kept++] = probes_[i];
  probe_count_ = kept;
}

void Memory::probe_began(const Bdf &bdf) {
  forget_old();
  if (probe_count_ < kProbes) probes_[probe_count_++] = {bdf, line_, false};
}

bool Memory::probe_has(Bdf &bdf) {
  forget_old();
  for (size_t i = 0; i < probe_count_; ++i)
    if (!probes_[i].told) {
      probes_[i].told = true;
      bdf = probes_[i].bdf;
      return true;
    }
  return false;
}

bool Memory::probe_ended(Bdf &bdf) {
  forget_old();
  if (!probe_count_) return false;
  // Interleaved ones end in the order in which they began: nothing in the line says whose it is.
  Probe first = probes_[0];
  for (size_t i = 1; i < probe_count_; ++i) probes_[i - 1] = probes_[i];
  --probe_count_;
  bdf = first.bdf;
  return first.told;
}

bool read_bdf(Cursor &from, Bdf &out) {
  Cursor at = from;
  auto group = [&at](size_t least, size_t most) {
    size_t n = 0;
    while (n < at.left.size() && hex_value(at.left[n]) >= 0) ++n;
    return n >= least && n <= most ? at.take(n) : std::string_view();
  };
  // "0000:9b:00", or the old "9b:00" without a domain.
  std::string_view first = group(2, 8), domain, bus, slot;
  if (first.empty() || !at.skip(":")) return false;
  if (first.size() >= 4) {
    domain = first;
    bus = group(2, 2);
    if (bus.empty() || !at.skip(":")) return false;
  } else {
    bus = first;
  }
  slot = group(2, 2);
  if (bus.size() != 2 || slot.empty()) return false;
  if (at.left.size() > 1 && at.left[0] == '.' && at.left[1] >= '0' && at.left[1] <= '7') at.take(2);
  // A colon may end the address ("GPU 0000:18:00.0: GPU has ..."); more digits make it something else, a time for one.
  if (at.left.size() > 1 && at.left[0] == ':' && hex_value(at.left[1]) >= 0) return false;
  out = Bdf();
  auto put = [&out](char c) { out.text[out.size++] = c >= 'A' && c <= 'F' ? static_cast<char>(c - 'A' + 'a') : c; };
  while (domain.size() > 4 && domain.front() == '0') domain.remove_prefix(1);
  for (char c : domain.empty() ? std::string_view("0000") : domain) put(c);
  for (std::string_view part : {bus, slot}) {
    put(':');
    for (char c : part) put(c);
  }
  from = at;
  return true;
}

std::string_view gpu_number(std::string_view text) {
  Cursor at{text};
  while (at.jump("GPU"))
    if (is_digit(at.peek()) || (at.skip(" ") && is_digit(at.peek()))) {
      std::string_view number = at.digits();
      if (number.size() <= 3 && hex_value(at.peek()) < 0 && !(at.peek() == ':' && at.left.size() > 2 && hex_value(at.left[1]) >= 0))
        return number;
    }
  return {};
}

bool parse_line(std::string_view text, bool nvrm, Memory &memory, Line &out) {
  memory.next();
  out.clear();
  if (size_t at = text.find("Xid ("); at != text.npos) {
    std::string_view behind = text.substr(at + 5);
    char before = at ? text[at - 1] : ' ';
    if (before == 'S') return parse_sxid(text, behind, out);
    if (before == ' ' || before == '\t' || before == ':') return parse_xid(text, behind, memory, out);
    return false;
  }
  size_t driver = text.find("NVRM: ");
  if (driver != text.npos || nvrm) {
    if (driver != text.npos) text.remove_prefix(driver);
    return parse_driver(text, memory, out);
  }
  if (parse_process(text, out)) return true;
  out.clear();
  if (parse_fabric(text, out)) return true;
  out.clear();
  // The second and third line of a probe failure carry no "NVRM: " where the kernel printed them as one.
  Cursor rest{text};
  rest.spaces();
  for (std::string_view word : {"(PCI ID: ", "installed in this ", "fallen off the bus", "GPU "})
    if (rest.left.starts_with(word) && (word[0] != 'G' || contains(text, "fallen off the bus")) && parse_driver(text, memory, out))
      return true;
  return false;
}

}  // namespace gft::watch
