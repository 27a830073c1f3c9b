// The row of log_stream.h. A record of the kernel may hold several lines; each is parsed with the memory of the one before.
// Nothing here throws but for lack of memory.
#include "log_stream.h"

#include <algorithm>

#include "text.h"

namespace gft::watch {
namespace {
constexpr int64_t kBack = 60'000'000'000;  // lines of several processors are disordered by less
}

LogStream::LogStream(LogFormat format, bool own_clock, Fold::Rules rules, Fold::Out out)
    : format_(format),
      out_(std::move(out)),
      own_clock_(own_clock),
      fold_(rules, [this](Record record) { tell(std::move(record)); }),
      split_([this](std::string_view text, bool whole) { line(text, whole); }),
      journal_([this](const JournalEntry &each) { entry(each); }) {}

void LogStream::feed(std::string_view bytes, int64_t now_ns) {
  now_ns_ = now_ns;
  if (bytes.empty()) return;
  // Every entry of a journal begins with its addresses, which begin with two underscores.
  if (format_ == LogFormat::automatic) format_ = bytes.starts_with("__") ? LogFormat::journal : LogFormat::text;
  if (format_ == LogFormat::journal)
    journal_.feed(bytes);
  else
    split_.feed(bytes);
}

void LogStream::record(std::string_view bytes, int64_t now_ns) {
  now_ns_ = now_ns;
  // Behind the first newline comes the record's dictionary (" DEVICE=..."); newlines of the text are escaped.
  line(bytes.substr(0, bytes.find('\n')), true);
}

void LogStream::cut(int64_t now_ns) {
  now_ns_ = now_ns;
  split_.cut();
  journal_.cut();
}

void LogStream::gap(const char *why, uint64_t count, int64_t now_ns) {
  Record record;
  record.source = "kernel_log";
  record.what = "gap";
  record.at_ns = record.last_ns = now_ns;
  record.count = std::max<uint64_t>(count, 1);
  record.serial = lines();
  record.facts.emplace_back("why", why);
  tell(std::move(record));
}

void LogStream::tell(Record record) {
  if (format_ == LogFormat::trace) record.source = "tracepoint";
  out_(std::move(record));
}

void LogStream::tick(int64_t now_ns) { fold_.tick(own_clock_ ? last_stamp_ : now_ns); }

void LogStream::finish(int64_t now_ns) {
  cut(now_ns);
  fold_.flush();
}

void LogStream::line(std::string_view text, bool whole) {
  lines_.fetch_add(1, std::memory_order_relaxed);
  if (format_ == LogFormat::trace)
    if (uint64_t lost = lost_events(text)) return gap("overwritten", lost, now_ns_);
  Frame frame = format_ == LogFormat::trace ? frame_of_trace(text) : frame_of(text);
  if (!frame.serial) frame.serial = lines();
  message(frame, whole);
}

void LogStream::entry(const JournalEntry &entry) {
  lines_.fetch_add(1, std::memory_order_relaxed);
  Frame frame;
  frame.text = entry.message;
  frame.serial = entry.serial ? static_cast<uint64_t>(entry.serial) : lines();
  constexpr int64_t kMostUs = INT64_MAX / 1000;
  if (entry.wall_us >= 0 && entry.wall_us < kMostUs) {
    frame.clock = Frame::Clock::wall;
    frame.stamp_ns = entry.wall_us * 1000;
  } else if (entry.boot_us >= 0 && entry.boot_us < kMostUs) {
    frame.clock = Frame::Clock::boot;
    frame.stamp_ns = entry.boot_us * 1000;
  }
  if (!entry.identifier.empty()) judge_origin(entry.identifier, frame);
  if (entry.facility > 0) frame.user = true;
  // A process may call itself "kernel", but not choose how its line came into the journal.
  if (!entry.transport.empty() && entry.transport != "kernel" && entry.identifier == "kernel") frame.user = true;
  message(frame, true);
}

void LogStream::message(const Frame &frame, bool whole) {
  if (frame.foreign) return;
  std::string_view text = frame.text;
  if (frame.escaped && contains(text, "\\x")) {
    unescape(text, kMost, plain_);
    text = plain_;
  }
  // A GPU that does not answer at probe time is three lines of one record, of which only all together say it.
  if (contains(text, "\n") && contains(text, "The NVIDIA GPU ")) {
    if (text.data() != plain_.data()) plain_ = text;
    std::replace(plain_.begin(), plain_.end(), '\n', ' ');
    text = plain_;
  }
  for (;;) {
    size_t end = text.find('\n');
    say(text.substr(0, end), frame, whole);
    if (end == text.npos) return;
    text.remove_prefix(end + 1);
  }
}

void LogStream::say(std::string_view text, const Frame &frame, bool whole) {
  if (!parse_line(text, frame.nvrm, memory_, said_)) return;
  if (said_.what == std::string_view("sxid_detail")) return;
  int64_t at = now_ns_;
  const char *clock = nullptr;
  if (own_clock_) {
    if (frame.clock != Frame::Clock::none) {
      // Another boot, or another log behind this one: what was counted belongs before it.
      if (frame.stamp_ns < last_stamp_ - kBack) fold_.flush();
      last_stamp_ = frame.stamp_ns;
    }
    at = last_stamp_;
    clock = frame.clock == Frame::Clock::boot ? "boot" : frame.clock == Frame::Clock::wall ? "wall" : nullptr;
  }
  fold_.tick(at);
  fold_.add(said_, {was_there_, !whole, frame.user, clock}, at, frame.serial);
}

bool parse_one(std::string_view bytes, Record &out) {
  bool any = false;
  LogStream stream(LogFormat::text, true, {}, [&](Record record) {
    if (!any) out = std::move(record);
    any = true;
  });
  stream.feed(bytes, 0);
  // Whoever hands over a line without its newline means the whole of it.
  stream.feed("\n", 0);
  stream.finish(0);
  return any;
}

}  // namespace gft::watch
