// Bytes of a log in, records out: cutting, prefixes, parsing and folding in a row, for one log.
// Used by the reader that follows a log and by whoever reads one as a whole. One thread at a time.
#pragma once

#include <atomic>
#include <memory>

#include "fold.h"
#include "split.h"

namespace gft::watch {

enum class LogFormat { automatic, text, kmsg, journal, trace };

class LogStream {
 public:
  // `own_clock`: times of records are those written in the log (facts "clock": "boot" or "wall"; without any, that of the line before);
  // else they are what feed() is told. `out` is called from within feed, tick and finish.
  LogStream(LogFormat format, bool own_clock, Fold::Rules rules, Fold::Out out);
  LogStream(const LogStream &) = delete;
  LogStream &operator=(const LogStream &) = delete;

  // Any piece of the log. An automatic format is decided by its first bytes.
  void feed(std::string_view bytes, int64_t now_ns);
  // One record as /dev/kmsg gives it per read.
  void record(std::string_view bytes, int64_t now_ns);
  // Something was lost before what comes next: a record "gap".
  void gap(const char *why, uint64_t count, int64_t now_ns);
  // What is unfinished will not be continued: the writer died, the file was exchanged.
  void cut(int64_t now_ns);
  void tick(int64_t now_ns);
  int64_t next_due() const { return fold_.next_due(); }
  void finish(int64_t now_ns);

  // From now on records were there already before anybody watched.
  void baseline(bool was_there) { was_there_ = was_there; }
  uint64_t lines() const noexcept { return lines_.load(std::memory_order_relaxed); }  // from any thread

 private:
  void tell(Record record);
  void line(std::string_view text, bool whole);
  void entry(const JournalEntry &entry);
  void message(const Frame &frame, bool whole);
  void say(std::string_view text, const Frame &frame, bool whole);

  LogFormat format_;
  const Fold::Out out_;
  const bool own_clock_;
  bool was_there_ = false;
  Fold fold_;
  Lines split_;
  Journal journal_;
  Memory memory_;
  Line said_;
  std::string plain_;
  std::atomic<uint64_t> lines_{0};  // counted before what the line says goes out
  int64_t now_ns_ = 0, last_stamp_ = 0;
};

// The first thing that a piece of a log says, as a record with its own time; false: nothing about a GPU.
bool parse_one(std::string_view bytes, Record &out);

}  // namespace gft::watch
