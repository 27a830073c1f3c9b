/* The heartbeat's part of the native door: opaque handles and status codes, as in gft.h, whose rules hold here too.
 * A rank's process writes its slot of a shared file; whoever watches gets records in a queue of gft_watch.h. */
#ifndef GFT_BEATS_H
#define GFT_BEATS_H

#include "gft_watch.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct gft_beat gft_beat;
typedef struct gft_hang_watch gft_hang_watch;
typedef struct gft_judge gft_judge;

/* Makes the heartbeat file `path` for `ranks` slots if it is not there, and checks it; the errors of gft_beat_open. */
gft_status gft_beats_make(const char *path, uint32_t ranks);
/* Takes slot `rank` of the heartbeat file `path` (made for `ranks` if it is not there) for this process, and starts the thread that
 * shows that the process runs. GFT_IO, GFT_NO_SPACE, GFT_DAMAGED (no file of ours), GFT_MISMATCH (too small), GFT_INVALID. */
gft_status gft_beat_open(const char *path, uint32_t ranks, uint32_t rank, double tick_seconds, gft_beat **out);
/* Marks the slot as left on purpose. */
void gft_beat_free(gft_beat *beat);
/* A few stores each, never an error; without effect in a forked child and once another process has the slot. */
/* A step of class `kind` (0 to 23) starts on this thread. `step`: its number among all ranks, growing; 0: one more than the last.
 * Ranks that are replaced one by one need it: who has begun fewer than another says whom a collective waits for. */
void gft_beat_begin(gft_beat *beat, uint32_t kind, uint64_t step);
void gft_beat_end(gft_beat *beat);
void gft_beat_busy(gft_beat *beat, double limit_seconds); /* other work that may take so long */
void gft_beat_idle(gft_beat *beat);
void gft_beat_leave(gft_beat *beat); /* the slot is left on purpose */
uint64_t gft_beat_steps(gft_beat *beat);
int gft_beat_ours(gft_beat *beat);
/* Address of the 64-bit word in which a device counts the steps it has finished; it lives as long as the beat. Valid for
 * cuStreamWriteValue64 or a kernel once the page is registered with the driver. */
uint64_t gft_beat_device_word(gft_beat *beat, uint64_t *page, uint64_t *page_bytes);

/* What a slot says now, for people; a word may be newer than its neighbour. Times are CLOCK_MONOTONIC; phase as in gft_seen. */
typedef struct gft_beat_state {
  uint32_t rank, phase, kind, pid;
  uint64_t step, device_step;
  int64_t began_ns, tick_ns;
} gft_beat_state;
typedef void (*gft_beat_callback)(void *context, const gft_beat_state *state);
/* Calls `each` for every slot that a process took. GFT_NOT_FOUND when there is no such file; else as gft_beat_open. */
gft_status gft_beats_look(const char *path, gft_beat_callback each, void *context);

typedef struct gft_hang_rules {
  double after_s, floor_s, unknown_s, silent_s, no_step_s, poll_s;
  uint32_t known_steps, slow_steps;
} gft_hang_rules;
void gft_hang_defaults(gft_hang_rules *out);

/* Watches every slot of the file from a thread of its own; records: source "heartbeat", what "hang" "slow" "fine" "gone". */
gft_status gft_hang_watch_start(gft_watch_queue *queue, const char *path, uint32_t ranks, const gft_hang_rules *rules,
                                gft_hang_watch **out);
void gft_hang_watch_free(gft_hang_watch *watch);
/* Whether requests wait, so that some rank should begin a step within no_step_s. */
void gft_hang_watch_expect(gft_hang_watch *watch, int work);

/* The decision alone, with time handed in: one rank, its own history. */
gft_status gft_judge_create(const gft_hang_rules *rules, gft_judge **out);
void gft_judge_free(gft_judge *judge);
void gft_judge_learn(gft_judge *judge, uint32_t kind, double seconds);
typedef struct gft_seen {
  uint32_t phase; /* 0 empty, 1 idle, 2 in a step, 3 announced work, 4 left */
  uint32_t kind;
  uint64_t step, device_step;
  double began_s, limit_s, tick_s;
} gft_seen;
/* *verdict: 0 fine, 1 uneasy, 2 hung; *cause: static text. `most_s`: a look counts for at most so long. */
gft_status gft_judge_look(gft_judge *judge, double now_s, double most_s, const gft_seen *seen, double stolen_s, int *verdict,
                          const char **cause, double *limit_s);
double gft_judge_usual(gft_judge *judge, uint32_t kind); /* seconds, 0: not known */

#ifdef __cplusplus
}
#endif

#endif
