/* The watchers' part of the native door: opaque handles and status codes, as in gft.h, whose rules hold here too.
 * Sources of faults push records into a queue; C++ hears of each by a callback, everybody else takes them. */
#ifndef GFT_WATCH_H
#define GFT_WATCH_H

#include "gft.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct gft_watch_queue gft_watch_queue;

typedef struct gft_watch_fact {
  const char *name;
  gft_bytes value;
} gft_watch_fact;

/* One record, as csrc/watch/record.h says; -1 and empty bytes are unknown. Valid during the callback that gets it. */
typedef struct gft_watch_record {
  const char *source, *what;
  int64_t at_ns, last_ns; /* CLOCK_MONOTONIC */
  uint64_t count, serial;
  int64_t code, pid;
  int index, gi, ci;
  gft_bytes bdf, uuid, text;
  const gft_watch_fact *facts;
  size_t fact_count;
} gft_watch_record;

typedef void (*gft_watch_callback)(void *context, const gft_watch_record *record);

/* Room for `capacity` records; what does not fit is counted and told by one record "queue"/"overflow". `on_record` (may be NULL)
 * runs on the source's thread for every record, fitting or not; it must be quick. The queue lives as long as its sources. */
gft_status gft_watch_queue_create(size_t capacity, gft_watch_callback on_record, void *context, gft_watch_queue **out);
void gft_watch_queue_free(gft_watch_queue *queue);
/* Calls `each` for up to `limit` records (0: all), oldest first. Never blocks. */
gft_status gft_watch_queue_take(gft_watch_queue *queue, size_t limit, gft_watch_callback each, void *context);
/* *ready: whether there is something to take; waits for it at most `seconds`. */
gft_status gft_watch_queue_wait(gft_watch_queue *queue, double seconds, int *ready);
/* Readable while there is something to take; belongs to the queue; -1 in a forked child. */
int gft_watch_queue_descriptor(gft_watch_queue *queue);
uint64_t gft_watch_queue_lost(gft_watch_queue *queue);

/* How a log is written: any text with or without prefixes (told apart line by line), the kernel's own records one per read,
 * `journalctl -o export`. Automatic decides by the kind of file and its first bytes. */
enum { GFT_LOG_AUTO = 0, GFT_LOG_TEXT = 1, GFT_LOG_KMSG = 2, GFT_LOG_JOURNAL = 3 };

/* Calls `each` at most once: what a line (or a record of several) of a log says about a GPU. csrc/watch/line.h lists the kinds. */
gft_status gft_watch_parse_line(gft_bytes line, gft_watch_callback each, void *context);
/* A whole log, from memory or from a file that is read to its end. Equal lines within `window` seconds (growing to 30 windows)
 * are folded: the first is told at once, then their count. Times are those of the log. Nothing of the log is kept. */
gft_status gft_watch_parse_log(gft_bytes log, int format, double window, gft_watch_callback each, void *context);
gft_status gft_watch_parse_file(const char *path, int format, double window, gft_watch_callback each, void *context);

#ifdef __cplusplus
}
#endif

#endif
