// Cuts a stream of bytes, which arrives in any pieces, into lines or into entries of a journal.
// Memory is bounded: of a line or a field that is longer than kMost the rest is skipped.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

namespace gft::watch {

constexpr size_t kMost = 16 << 10;

class Lines {
 public:
  // `whole` is false for a line whose end was lost: longer than kMost, or ended by cut().
  using Each = std::function<void(std::string_view line, bool whole)>;
  explicit Lines(Each each) : each_(std::move(each)) {}
  void feed(std::string_view bytes);
  // Nothing more will come of the unfinished line.
  void cut();

 private:
  const Each each_;
  std::string held_;
  bool skipping_ = false;
};

// What an entry of `journalctl -o export` says as far as it matters here; views are valid during the call.
struct JournalEntry {
  std::string message, identifier, transport;
  int64_t facility = -1, wall_us = -1, boot_us = -1, serial = 0;
};

// The Journal Export Format: FIELD=value lines, or FIELD, a length in 8 bytes and that many bytes; an empty line ends an entry.
class Journal {
 public:
  using Each = std::function<void(const JournalEntry &entry)>;
  explicit Journal(Each each) : each_(std::move(each)) {}
  void feed(std::string_view bytes);
  // Nothing more will come of the unfinished entry; it is given as it is when its message is complete.
  void cut();

 private:
  void line();
  void field(std::string_view name, std::string_view value);
  void end_entry();

  const Each each_;
  enum class At : uint8_t { line, length, data, after } at_ = At::line;
  std::string held_, name_;
  uint64_t left_ = 0;
  bool any_ = false;
  JournalEntry entry_;
};

}  // namespace gft::watch
