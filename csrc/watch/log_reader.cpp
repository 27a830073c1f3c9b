// The loop of the log's thread: read what is there, give out folds that are due, wait for more.
// Records that were lost are told by their sequence numbers, where the kernel gives them.
#include "log_reader.h"

#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "../support/fail.h"

namespace gft::watch {
namespace {

LogFormat chosen(LogFormat asked, const Tail &tail) {
  if (asked != LogFormat::automatic || tail.kind() != Tail::Kind::file || tail.head().empty()) return asked;
  // Where reading begins in the middle of a file, its beginning still tells its format.
  return tail.head().starts_with("__") ? LogFormat::journal : LogFormat::text;
}

}  // namespace

LogReader::LogReader(std::shared_ptr<Queue> queue, const std::string &path, ReaderRules rules)
    : queue_(std::move(queue)),
      rules_(rules),
      opened_ns_(now_ns()),
      tail_(path, rules.from_start, rules.call),
      stream_(chosen(rules.format, tail_), false, rules.fold, [this](Record record) { queue_->push(std::move(record)); }),
      looker_("the thread of the log " + path) {
  looker_.start([this] { run(); });
}

LogReader::~LogReader() {
  ending_.store(true, std::memory_order_relaxed);
  looker_.end();
}

void LogReader::run() {
  while (!ending_.load(std::memory_order_relaxed)) {
    int64_t now = now_ns();
    bool more = false;
    try {
      more = read_some(now);
      stream_.tick(now);
    } catch (...) {  // no memory: what was read is lost, what comes is not
      lost_ = true;
    }
    if (more) continue;
    struct pollfd waiting[2] = {{looker_.ending(), POLLIN, 0}, {tail_.descriptor(), POLLIN, 0}};
    poll(waiting, 2, pause(now));
  }
  try {
    stream_.finish(now_ns());
  } catch (...) {
  }
}

// How long to wait: for ever where the log wakes us and nothing is folded.
int LogReader::pause(int64_t now) const {
  int64_t most = tail_.descriptor() < 0 ? Tail::kLookMs : rules_.format == LogFormat::trace ? 2 * Tail::kLookMs : -1;
  if (stream_.next_due() != INT64_MAX) {
    int64_t due = std::max<int64_t>((stream_.next_due() - now) / 1'000'000 + 1, 1);
    most = most < 0 ? due : std::min(most, due);
  }
  return static_cast<int>(std::min<int64_t>(most, 60'000));
}

// Whether there may be more at once.
bool LogReader::read_some(int64_t now) {
  Tail::Piece piece = tail_.next();
  switch (piece.what) {
    case Tail::Piece::nothing:
      return false;
    case Tail::Piece::bytes:
      stream_.baseline(tail_.old());
      stream_.feed(piece.view, now);
      return true;
    case Tail::Piece::record:
      take_record(piece.view, now);
      return true;
    case Tail::Piece::cut:
      stream_.cut(now);
      return true;
    case Tail::Piece::gap:
      stream_.cut(now);
      // Of the kernel's records the next one tells how many were lost.
      if (tail_.kind() == Tail::Kind::records)
        lost_ = true;
      else
        stream_.gap(piece.why, 1, now);
      return true;
  }
  return false;
}

void LogReader::take_record(std::string_view record, int64_t now) {
  Frame frame = frame_of(record.substr(0, record.find('\n')));
  bool jumped = last_serial_ && frame.serial > last_serial_ + 1;
  if (lost_ || jumped) stream_.gap("overwritten", jumped ? frame.serial - last_serial_ - 1 : 1, now);
  lost_ = false;
  if (frame.serial) last_serial_ = frame.serial;
  // The kernel's clock and ours begin together; a record younger than our opening is no old one, however late it is read.
  stream_.baseline(tail_.old() && frame.stamp_ns < opened_ns_);
  stream_.record(record, now);
}

}  // namespace gft::watch
