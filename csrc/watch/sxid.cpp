// Parses SXid lines of NVSwitches, as the switch driver prints them, and the fabric manager's own log lines about them.
// Forms: NVIDIA/open-gpu-kernel-modules src/common/nvswitch/kernel (intr_nvswitch.h, error_nvswitch.c), fabric manager logs.
#include "line.h"
#include "text.h"

namespace gft::watch {
namespace {

// The lines behind an SXid with the same code: "Severity 1 Engine instance 00 Sub-engine instance 00", "Data {0x..., ...}".
bool is_detail(std::string_view message) {
  return message.starts_with("Data {") || (message.starts_with("Severity ") && contains(message, "instance"));
}

void severity_of(Cursor &at, Line &out) {
  const struct {
    std::string_view word, value;
  } words[] = {{"Fatal", "fatal"}, {"Non-fatal", "non-fatal"}, {"Nonfatal", "non-fatal"}, {"Correctable", "correctable"}};
  for (auto [word, value] : words)
    if (at.skip(word)) {
      out.add("severity", value);
      at.skip(",");
      at.spaces();
      return;
    }
}

std::string_view number_behind(std::string_view text, std::string_view word) {
  Cursor at{text};
  return at.jump(word) ? at.digits() : std::string_view();
}

}  // namespace

bool parse_sxid(std::string_view text, std::string_view behind, Line &out) {
  Cursor at{behind};
  at.skip("PCI:");
  size_t close = at.left.substr(0, 64).find(')');
  if (close == at.left.npos) return false;
  read_bdf(at, out.bdf);
  if (!at.jump(")")) return false;
  at.skip(":");
  at.spaces();
  std::string_view digits = Cursor{at.left}.digits();
  if (digits.size() > 9 || !at.number(out.code)) return false;
  at.skip(",");
  at.spaces();
  out.text = text;
  Cursor prefix{text};
  if (prefix.jump("nvidia-nvswitch")) out.add("switch", prefix.digits());
  if (is_detail(at.left)) {
    out.what = "sxid_detail";
    return true;
  }
  out.what = "sxid";
  severity_of(at, out);
  std::string_view link;
  if (at.skip("Link ")) out.add("link", link = at.digits());
  std::string_view instance = number_behind(at.left, "instance="), chiplet = number_behind(at.left, "chiplet=");
  out.add("instance", instance);
  out.add("chiplet", chiplet);
  if (contains(at.left, "(First)")) out.add("first", "1");
  out.detail = mixed(mixed(mixed(out.detail, link), instance), chiplet);
  return true;
}

bool parse_fabric(std::string_view text, Line &out) {
  // One of these rare letters is in all of its lines; nearly every other line is rejected by the first of them.
  if (text.find("NV") == text.npos && text.find("GPU handle ") == text.npos) return false;
  // The manager's own file has "[date] [LEVEL] [tid n] " in front, which frame.h leaves in the text.
  Cursor at{text};
  if (at = {text}; at.jump("detected NVSwitch ")) {
    severity_of(at, out);
    if (out.fact_count == 0) {
      std::string_view word = at.until(" ");
      if (word == "fatal" || word == "non-fatal") out.add("severity", word);
      at.spaces();
    }
    if (!at.jump("error ") || Cursor{at.left}.digits().size() > 9 || !at.number(out.code)) return false;
    out.what = "fabric_sxid";
    out.add("fid", number_behind(at.left, "on fid "));
    Cursor bus{at.left};
    if (bus.jump("pci bus id ")) read_bdf(bus, out.bdf);
    std::string_view port = number_behind(at.left, " port ");
    out.add("link", port);
    out.detail = mixed(out.detail, port);
  } else if (at = {text}; at.jump("failed to find the GPU handle ")) {
    out.what = "fabric_handle";
    out.add("gpu", at.digits());
    out.detail = mixed(out.detail, out.fact("gpu"));
  } else if (contains(text, "number of NVSwitches don't match")) {
    out.what = "fabric_topology";
  } else if (contains(text, "NV_WARN_NOTHING_TO_DO")) {
    out.what = "fabric_healthy";
  } else {
    return false;
  }
  out.text = text;
  return true;
}

}  // namespace gft::watch
