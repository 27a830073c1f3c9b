// Takes the prefix off a line of a log, whoever wrote it: /dev/kmsg, dmesg, syslog, journalctl, or nobody.
// It is recognised line by line, so a file that mixes them is read as well; what looks like no prefix is all message.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace gft::watch {

struct Frame {
  std::string_view text;  // the message, views into the line
  enum class Clock : uint8_t { none, boot, wall } clock = Clock::none;
  int64_t stamp_ns = -1;  // of `clock`: since boot or since 1970; a stamp without a year has an arbitrary one
  uint64_t serial = 0;    // kmsg sequence number; 0: none
  bool escaped = false;   // kmsg writes bytes that it does not like as \xNN
  bool user = false;      // a process wrote it, not the kernel: a rehearsal, or something that imitates
  bool nvrm = false;      // the prefix itself says that the line is the driver's
  bool foreign = false;   // another program's line, whatever it says
};

// "6,1234,98765432,-;text" (kmsg), "[   12.345678] text" (dmesg, also -T and -x), "Jul 23 07:53:55 host kernel: text" (syslog and
// journalctl, also with ISO dates), "Xid (...) ..." (none of them). One line without its newline.
Frame frame_of(std::string_view line);

// The same for a line of tracefs: "  name-123  [001] d..1.  1234.567890: nvidia_dev_xid: text"; one in another form is all message.
Frame frame_of_trace(std::string_view line);
// "CPU:3 [LOST 12 EVENTS]" -> 12; 0 for any other line.
uint64_t lost_events(std::string_view line);

// What frame_of does with the name and facility that a journal gives in fields.
void judge_origin(std::string_view identifier, Frame &frame);

// The text of an escaped frame, at most `most` bytes of it, into `out`.
void unescape(std::string_view text, size_t most, std::string &out);

}  // namespace gft::watch
