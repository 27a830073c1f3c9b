// Parses what the driver and the kernel print without a code: a lost GPU, names of GPUs, GSP timeouts, resets, crashes, hung tasks.
// Forms: NVIDIA/open-gpu-kernel-modules (nv-pci.c, osinit.c, kernel_gsp.c); the kernel's hung_task.c and fault.c.
#include "line.h"
#include "text.h"

namespace gft::watch {
namespace {

bool told(const char *what, std::string_view text, Line &out) {
  out.what = what;
  out.text = text;
  return true;
}

// The first PCI address behind "GPU ", "GPU at PCI:" or "PCI:".
void find_device(std::string_view text, Line &out) {
  for (std::string_view word : {"GPU at PCI:", "PCI:", "GPU at ", "GPU "})
    for (Cursor at{text}; !out.bdf.size && at.jump(word);) {
      Cursor from = at;
      read_bdf(from, out.bdf);
    }
}

bool name_of_a_gpu(Cursor at, std::string_view text, Memory &memory, Line &out) {
  at.skip("PCI:");
  if (!read_bdf(at, out.bdf)) return false;
  memory.named(out.bdf);
  at.skip(":");
  at.spaces();
  if (!at.left.starts_with("GPU-")) return false;
  size_t n = 4;
  while (n < at.left.size() && (hex_value(at.left[n]) >= 0 || at.left[n] == '-')) ++n;
  if (n != 40) return false;  // cut: half a name is none
  out.uuid = at.take(n);
  out.state = mixed(1, out.uuid);
  return told("gpu_uuid", text, out);
}

bool fallen(std::string_view text, Memory &memory, Line &out) {
  if (Cursor at{text}; at.jump("The NVIDIA GPU ") && read_bdf(at, out.bdf)) {
    memory.named(out.bdf);
    memory.probe_began(out.bdf);
  }
  if (contains(text, "is not supported")) {  // the same beginning, another end
    Bdf unsupported;
    memory.probe_ended(unsupported);
    return false;
  }
  Cursor rest{text};
  while (rest.skip("NVRM:") || rest.skip(" ")) {
  }
  bool has = contains(text, "installed in this system has");
  bool ends = rest.left.starts_with("fallen off the bus") || contains(text, "fallen off the bus and is not responding");
  if (has || ends) {
    if (Cursor at{text}; at.jump("PCI ID: ")) out.add("pci_id", at.until(")"));
    bool news = false;
    if (has) news = memory.probe_has(out.bdf);
    if (ends) {
      if (!news) out.bdf = Bdf();
      news = !memory.probe_ended(out.bdf) || news;
    }
    return news && told("fallen_off_bus", text, out);
  }
  out.bdf = Bdf();
  if (!contains(text, "fallen off the bus")) return false;
  find_device(text, out);
  if (out.bdf.size) memory.named(out.bdf);
  else out.add("gpu", gpu_number(text));
  return told("fallen_off_bus", text, out);
}

}  // namespace

bool parse_driver(std::string_view text, Memory &memory, Line &out) {
  Cursor at{text};
  while (at.skip("NVRM: ")) at.spaces();
  if (at.skip("GPU at ")) {
    if (name_of_a_gpu(at, text, memory, out)) return true;
    at.left = text;
  }
  if (at = {text}; at.jump("Board Serial Number: ") || at.jump("serial number is ")) {
    std::string_view serial = at.until(" .\t");
    if (serial.empty()) return false;
    out.add("serial", serial);
    find_device(text, out);
    if (!out.bdf.size) out.bdf = memory.named();
    out.state = mixed(1, serial);
    return told("board_serial", text, out);
  }
  if (contains(text, "The NVIDIA GPU ") || contains(text, "installed in this ") || contains(text, "fallen off the bus"))
    return fallen(text, memory, out);
  if (contains(text, "NV_ERR_RESET_REQUIRED")) {
    out.add("gpu", gpu_number(text));
    find_device(text, out);
    return told("reset_required", text, out);
  }
  if (contains(text, "Rate limiting GSP RPC")) {
    find_device(text, out);
    return told("gsp_rate_limited", text, out);
  }
  if (contains(text, "GSP Timeout") || contains(text, "waiting for RPC response from GPU") ||
      contains(text, "heartbeat timed out")) {
    out.add("gpu", gpu_number(text));
    find_device(text, out);
    return told("gsp_timeout", text, out);
  }
  if (contains(text, "ostRxDetLinkMask failed")) {
    out.add("gpu", gpu_number(text));
    return told("link_mask_failed", text, out);
  }
  if (at = {text}; at.jump("loading NVIDIA UNIX ")) {
    // "... Kernel Module  595.45.04  Tue ...", "... Open Kernel Module for x86_64  595.45.04  Release Build ..."
    while (at.jump(" ")) {
      Cursor version = at;
      std::string_view major = version.digits();
      if (major.size() == 3 && version.peek() == '.') {
        out.add("version", at.until(" "));
        return told("driver_loaded", text, out);
      }
    }
  }
  return false;
}

bool parse_process(std::string_view text, Line &out) {
  Cursor at{text};
  size_t crash = text.npos;
  for (size_t end = text.find(']'); end != text.npos && crash == text.npos; end = text.find(']', end + 1))
    for (std::string_view word : {"]: segfault at ", "] general protection", "] trap "})
      if (text.substr(end).starts_with(word)) crash = end;
  if (crash != text.npos) {
    at = {text.substr(crash)};
    std::string_view library;
    while (library.empty() && at.jump(" in "))
      if (at.left.starts_with("libnccl") || at.left.starts_with("libcuda")) library = at.until("[ ");
    if (library.empty()) return false;
    std::string_view before = text.substr(0, crash);
    size_t open = before.rfind('[');
    Cursor pid{open == before.npos ? std::string_view() : before.substr(open + 1)};
    if (!pid.number(out.pid) || !pid.done()) return false;
    std::string_view name = before.substr(0, open);
    if (name.starts_with("traps: ")) name.remove_prefix(7);
    out.add("process", name);
    out.add("library", library);
    at = {text.substr(crash)};
    if (at.jump(" at ") || at.jump(" ip:")) out.add("address", at.until(" "));
    return told("segfault", text, out);
  }
  if (at = {text}; at.jump("INFO: task ")) {
    size_t blocked = at.left.find(" blocked for more than ");
    if (blocked == at.left.npos) return false;
    std::string_view task = at.left.substr(0, blocked);
    if (task.ends_with(':')) task.remove_suffix(1);
    size_t colon = task.rfind(':');
    Cursor pid{colon == task.npos ? std::string_view() : task.substr(colon + 1)};
    if (pid.number(out.pid)) task = task.substr(0, colon);
    out.add("process", task);
    at.left.remove_prefix(blocked + 23);
    out.add("seconds", at.digits());
    return told("hung_task", text, out);
  }
  if (at = {text}; at.jump("-peermem ") && contains(at.left, "detected invalid context"))
    return told("peermem_invalid_context", text, out);
  return false;
}

}  // namespace gft::watch
