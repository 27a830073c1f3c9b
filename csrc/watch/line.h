// What one line of a log says about a GPU, an NVSwitch or the driver: a pure function of the line and of the few lines before it.
// Views into the line, no allocation; frame.h takes the prefix off before, fold.h makes records of it afterwards.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>

namespace gft::watch {

// A PCI address in the one form used here, "0000:9b:00": lower case, domain of at least four digits, no function.
struct Bdf {
  char text[16] = {};
  uint8_t size = 0;
  std::string_view view() const { return {text, size}; }
  bool operator==(const Bdf &other) const { return view() == other.view(); }
};

// `what` and the facts that go with it. Facts are text exactly as printed; one that the line does not have is absent.
//
//   xid             code, device; channel, process, pid_unknown "1", previous_xid, and by code
//                   13: gpc tpc sm; 31: engine fault access address; 74: link registers "0x0, 0x0, ..."; 119, 120: gpu function;
//                   144..150, 155: unit severity "Fatal|Nonfatal" xc injected link intr_info error_status debug "0x.. 0x..";
//                   154: old_action new_action "0x1" old_text new_text
//   sxid            code, device (the switch); switch severity "fatal|non-fatal|correctable" link instance chiplet first "1"
//   sxid_detail     the Severity and Data lines behind an SXid: no fault of their own
//   fallen_off_bus  the driver's line without an XID; gpu (the driver's number of it); at probe: pci_id
//   gpu_uuid        "GPU at PCI:...: GPU-...": device and uuid;   board_serial: serial
//   gsp_timeout     a GSP timeout without its XID: gpu;           gsp_rate_limited: its lines are rationed from here on
//   reset_required  NV_ERR_RESET_REQUIRED; gpu;                   link_mask_failed: NVLink could not be trained
//   driver_loaded   version;                                      peermem_invalid_context
//   segfault        pid; process library address;                 hung_task: pid; process seconds
//   fabric_sxid     code, device; severity fid link;              fabric_handle: gpu;  fabric_topology;  fabric_healthy
struct Line {
  static constexpr size_t kFacts = 16;
  struct Fact {
    const char *name;
    std::string_view value;
  };

  const char *what = nullptr;  // nullptr: nothing about a GPU
  int64_t code = -1, pid = -1;
  int gi = -1, ci = -1;
  Bdf bdf;
  std::string_view uuid, text;
  std::array<Fact, kFacts> facts;  // the first fact_count of them mean something
  size_t fact_count = 0;
  // Two lines of one kind and device that differ in `detail` are two faults (another link, another unit). They are one fault
  // with news where they differ in `state` (another recovery action): the later must not wait behind the earlier.
  uint64_t detail = 0, state = 0;

  void clear() {
    what = nullptr;
    code = pid = gi = ci = -1;
    bdf.size = 0;
    uuid = text = {};
    fact_count = 0;
    detail = state = 0;
  }
  void add(const char *name, std::string_view value) {
    if (fact_count < kFacts && !value.empty()) facts[fact_count++] = {name, value};
  }
  std::string_view fact(std::string_view name) const {
    for (size_t i = 0; i < fact_count; ++i)
      if (name == facts[i].name) return facts[i].value;
    return {};
  }
};

// What a parser must remember from line to line. Bounded; lines of other subjects between do no harm.
class Memory {
 public:
  void next() { ++line_; }
  void named(const Bdf &bdf) { named_ = bdf, named_at_ = line_; }
  // The device that the previous lines named, for a line that only goes on.
  Bdf named() const { return line_ - named_at_ <= kNear ? named_ : Bdf(); }

  // The three lines of a GPU that does not answer at probe time: "The NVIDIA GPU x", "... has", "fallen off the bus ...".
  void probe_began(const Bdf &bdf);
  bool probe_has(Bdf &bdf);   // false: its device is not known
  bool probe_ended(Bdf &bdf);  // true: already told at "has", nothing new

 private:
  static constexpr uint64_t kNear = 64;
  static constexpr size_t kProbes = 16;
  struct Probe {
    Bdf bdf;
    uint64_t at;
    bool told;
  };
  void forget_old();
  std::array<Probe, kProbes> probes_{};
  size_t probe_count_ = 0;
  Bdf named_;
  uint64_t line_ = 0, named_at_ = 0;
};

// `text` is the message without any prefix, one line. `nvrm`: the prefix said that it is the driver's.
// False when it is about no GPU. The views in `out` point into `text`.
bool parse_line(std::string_view text, bool nvrm, Memory &memory, Line &out);

// "0000:9b:00.0", "PCI:0000:9B:00", "10000:e1:00", "03:00": false (nothing read) when `text` does not begin with an address.
struct Cursor;
bool read_bdf(Cursor &from, Bdf &out);
// "GPU4" -> "4": the driver's own number of a GPU, which is not NVML's.
std::string_view gpu_number(std::string_view text);

// The parts of parse_line; `at` is behind "Xid (" or "SXid (", `text` the whole message.
bool parse_xid(std::string_view text, std::string_view at, Memory &memory, Line &out);
void parse_xid_message(std::string_view message, Line &out);
bool parse_sxid(std::string_view text, std::string_view at, Line &out);
bool parse_fabric(std::string_view text, Line &out);
bool parse_driver(std::string_view text, Memory &memory, Line &out);   // NVRM lines without a code
bool parse_process(std::string_view text, Line &out);  // what the kernel says of processes

}  // namespace gft::watch
