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

/* --- NVML: events of the driver, and a poll for what comes without one ------------------------------------------------ */

typedef struct gft_nvml_watcher gft_nvml_watcher;

typedef struct gft_nvml_options {
  const char *library;   /* "libnvidia-ml.so.1", or a path */
  const gft_bytes *gpus; /* indexes, UUIDs (of MIG instances too) or PCI addresses; NULL: all */
  size_t gpu_count;
  double poll_s;          /* 0: events only, else 0.01..3600 */
  double call_deadline_s; /* 0.05..600 */
} gft_nvml_options;

typedef struct gft_nvml_gpu {
  int index; /* -1 and empty bytes: not known */
  gft_bytes uuid, bdf, name;
  uint64_t supported, registered; /* event bits */
  int responsive;                 /* 0 for good once a call about it did not return */
  int avoided;                    /* asked nothing more: on request, after XID 79, 119, 120, 175 or "GPU unavailable" */
  int lost;                       /* the last poll said that it is lost or needs a reset */
  int recovery_action;            /* field 230, -1: not known */
} gft_nvml_gpu;

/* Opens the library. GFT_NOT_FOUND: there is none. GFT_VERSION: too old. Makes no CUDA context, ever. */
gft_status gft_nvml_watcher_create(gft_watch_queue *queue, const gft_nvml_options *options, gft_nvml_watcher **out);
/* Stops without waiting. What is stuck in the driver keeps what it needs. */
void gft_nvml_watcher_free(gft_nvml_watcher *watcher);
/* Once; afterwards events are recorded. Blocks at most about five call deadlines. GFT_TIMED_OUT: NVML's init does not return.
 * GFT_NOT_FOUND: no driver, or not one of the GPUs named. */
gft_status gft_nvml_watcher_start(gft_nvml_watcher *watcher);
/* Waits at most `seconds`. *ended: 0 when a thread is left, stuck in the driver or late; it does no harm. */
gft_status gft_nvml_watcher_stop(gft_nvml_watcher *watcher, double seconds, int *ended);
gft_status gft_nvml_watcher_gpus(gft_nvml_watcher *watcher, void (*each)(void *context, const gft_nvml_gpu *gpu), void *context);
/* Driver version and the library's path, for people. */
gft_status gft_nvml_watcher_about(gft_nvml_watcher *watcher, void (*each)(void *context, const char *name, const char *value),
                                  void *context);
/* Numbers by name: events, spurious_xids, event_errors, sets, polls, stuck_calls, event_threads. */
gft_status gft_nvml_watcher_counts(gft_nvml_watcher *watcher, void (*each)(void *context, const char *name, uint64_t value),
                                   void *context);
/* Asks the GPU of that index nothing more. *known: whether it is one of the watched. */
gft_status gft_nvml_watcher_avoid(gft_nvml_watcher *watcher, int index, int *known);

/* --- The kernel log and the driver's tracepoints, followed ------------------------------------------------------------ */

typedef struct gft_log_reader gft_log_reader;
typedef struct gft_trace_reader gft_trace_reader;

/* Starts a thread that follows the log at `path`: the kernel's device, a file (rotation, truncation, one that comes later), a pipe.
 * It begins at the end; with `from_start` what is there already comes first, each record with the fact "baseline". Lost lines are
 * told by a record "gap". GFT_NOT_FOUND (a device that is not there), GFT_IO (may not be read), each with what mends it. */
gft_status gft_log_reader_start(gft_watch_queue *queue, const char *path, int format, int from_start, double window,
                                gft_log_reader **out);
/* Lines read so far. */
uint64_t gft_log_reader_lines(gft_log_reader *reader);
/* Waits for the thread, which ends at once; what was folded is told. In a forked child only forgets. */
void gft_log_reader_free(gft_log_reader *reader);

/* The driver's tracepoints, `count` names like "nvidia/nvidia_dev_xid" (0: all known), in a tracefs instance of our own. `path`: NULL
 * looks where tracefs usually is; another tracefs; or a file in the format of trace_pipe, which is followed instead. Records have the
 * source "tracepoint". GFT_NOT_FOUND without tracefs or these events, GFT_IO where the instance may not be made. */
gft_status gft_trace_reader_start(gft_watch_queue *queue, const char *path, const char *const *events, size_t count, double window,
                                  gft_trace_reader **out);
/* The name of the i-th event that is on, NULL beyond them. */
const char *gft_trace_reader_event(gft_trace_reader *reader, size_t i);
uint64_t gft_trace_reader_lines(gft_trace_reader *reader);
void gft_trace_reader_free(gft_trace_reader *reader);
/* What could be read, changing nothing: GFT_OK, or the same errors as gft_trace_reader_start. */
gft_status gft_trace_readable(const char *path);
/* Whether `path` could be followed, reading nothing of it: GFT_OK, or the same errors as gft_log_reader_start. */
gft_status gft_log_readable(const char *path);

#ifdef __cplusplus
}
#endif

#endif
