// The door's kernel log: whole logs and single lines. Translates between gft_watch.h and watch/log_stream.h.
// One short body per function; the promises are in the header.
#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "door.h"
#include "door_watch.h"
#include "watch/log_reader.h"
#include "watch/log_stream.h"
#include "watch/tracepoint.h"

using gft::behind_wall;
using gft::fail;
using namespace gft::watch;

struct gft_log_reader {
  std::unique_ptr<LogReader> reader;
};
struct gft_trace_reader {
  std::unique_ptr<TraceReader> reader;
};

namespace {

LogFormat format_of(int format) {
  if (format < GFT_LOG_AUTO || format > GFT_LOG_JOURNAL)
    fail(GFT_INVALID, "a log in format %d; it must be GFT_LOG_AUTO to GFT_LOG_JOURNAL (0 to 3)", format);
  return static_cast<LogFormat>(format);
}

Fold::Rules rules_of(double window) {
  if (!(window >= 0 && window <= 86400))
    fail(GFT_INVALID, "equal lines are folded within %g s; it must be between 0 and 86400", window);
  Fold::Rules rules;
  rules.window_ns = static_cast<int64_t>(window * 1e9);
  rules.longest_ns = 30 * rules.window_ns;
  return rules;
}

LogStream stream_for(int format, double window, gft_watch_callback each, void *context) {
  return LogStream(format_of(format), true, rules_of(window),
                   [each, context](const Record &record) { tell(each, context, record); });
}

std::vector<std::string> events_of(const char *const *events, size_t count) {
  if (!count) return {"nvidia/nvidia_dev_xid", "nvswitch/nvswitch_dev_sxid"};
  std::vector<std::string> out(events, events + count);
  for (const std::string &event : out)
    if (event.empty() || event.front() == '/' || event.find("..") != event.npos)
      fail(GFT_INVALID, "\"%s\" is no event; it must be like nvidia/nvidia_dev_xid", event.c_str());
  return out;
}

}  // namespace

gft_status gft_watch_parse_line(gft_bytes line, gft_watch_callback each, void *context) {
  return behind_wall([&] {
    Record found;
    if (parse_one(gft::view(line), found)) tell(each, context, found);
  });
}

gft_status gft_watch_parse_log(gft_bytes log, int format, double window, gft_watch_callback each, void *context) {
  return behind_wall([&] {
    LogStream stream = stream_for(format, window, each, context);
    stream.feed(gft::view(log), 0);
    stream.finish(0);
  });
}

gft_status gft_watch_parse_file(const char *path, int format, double window, gft_watch_callback each, void *context) {
  return behind_wall([&] {
    LogStream stream = stream_for(format, window, each, context);
    struct File {
      int descriptor;
      ~File() {
        if (descriptor >= 0) close(descriptor);
      }
    } file{open(path, O_RDONLY | O_CLOEXEC)};
    if (file.descriptor < 0)
      fail(errno == ENOENT ? GFT_NOT_FOUND : GFT_IO, "cannot open the log %s: %s; name a file that this user may read", path,
           strerror(errno));
    std::string piece(256 << 10, '\0');
    for (;;) {
      ssize_t got = read(file.descriptor, piece.data(), piece.size());
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) fail(GFT_IO, "cannot read the log %s: %s", path, strerror(errno));
      if (got == 0) break;
      stream.feed({piece.data(), static_cast<size_t>(got)}, 0);
    }
    stream.finish(0);
  });
}

gft_status gft_log_reader_start(gft_watch_queue *queue, const char *path, int format, int from_start, double window,
                                gft_log_reader **out) {
  return behind_wall([&] {
    ReaderRules rules{format_of(format), from_start != 0, rules_of(window), nullptr};
    *out = new gft_log_reader{std::make_unique<LogReader>(queue->queue, path, rules)};
  });
}

uint64_t gft_log_reader_lines(gft_log_reader *reader) { return reader->reader->lines(); }

void gft_log_reader_free(gft_log_reader *reader) { delete reader; }

gft_status gft_trace_reader_start(gft_watch_queue *queue, const char *path, const char *const *events, size_t count, double window,
                                  gft_trace_reader **out) {
  return behind_wall([&] {
    *out = new gft_trace_reader{
        std::make_unique<TraceReader>(queue->queue, path ? path : "", events_of(events, count), rules_of(window))};
  });
}

const char *gft_trace_reader_event(gft_trace_reader *reader, size_t i) {
  const auto &enabled = reader->reader->enabled();
  return i < enabled.size() ? enabled[i].c_str() : nullptr;
}

uint64_t gft_trace_reader_lines(gft_trace_reader *reader) { return reader->reader->lines(); }

void gft_trace_reader_free(gft_trace_reader *reader) { delete reader; }

gft_status gft_trace_readable(const char *path) {
  return behind_wall([&] { readable_tracepoints(path ? path : "", events_of(nullptr, 0)); });
}

gft_status gft_log_readable(const char *path) {
  return behind_wall([&] { Tail tail(path, false); });
}
