/* The door to the arena's disk backing: spilling sealed blocks to a log, fetching them back, and asking both what they have.
 * Same rules as gft.h: status codes, no exception, no wait without a deadline. */
#ifndef GFT_BACKING_H
#define GFT_BACKING_H

#include "gft.h"
#include "gft_disk.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct gft_backing gft_backing;

typedef struct gft_name {
  gft_bytes hash, parent; /* parent.data NULL: position 0 */
  uint64_t position;
} gft_name;

typedef struct gft_backing_stats {
  uint64_t spilled_blocks, spilled_bytes; /* durable in the log */
  uint64_t spill_queue;                   /* blocks that are not yet */
  uint64_t dropped_queue, dropped_evicted, dropped_log;
  uint64_t fetched_blocks, fetched_bytes;
} gft_backing_stats;

/* `on_disk` of a usable block: some shard has it in its log only. */
typedef struct gft_backed_prefix {
  uint64_t blocks;
  const char *reason; /* as gft_prefix */
  int64_t shard;
} gft_backed_prefix;

/* The arena and the logs of its shards as one place. `arena` may be NULL; `logs` has `shard_count` entries (NULL: that shard has
 * none), or is NULL. `record` is the namespace. `on_disk` has room for `hash_count` bytes. Headers only; mutates nothing. */
gft_status gft_backed_usable_prefix(gft_arena *arena, gft_disk *const *logs, gft_bytes record, uint64_t payload_bytes,
                                    const uint32_t *shards, size_t shard_count, const gft_bytes *hashes, size_t hash_count,
                                    uint64_t max_epoch, gft_backed_prefix *out, uint8_t *on_disk);

/* Starts two threads that block all signals. `queue_blocks` may wait to be spilled; then the oldest is left out. */
gft_status gft_backing_create(gft_writer *writer, gft_disk *log, size_t queue_blocks, gft_backing **out);
/* Both queue and return. A fetch is over `seconds` from now at the latest, but for the read under way. */
gft_status gft_backing_spill(gft_backing *backing, const gft_name *blocks, size_t count);
gft_status gft_backing_fetch(gft_backing *backing, int64_t job_id, const gft_name *blocks, size_t count, double seconds);
gft_status gft_backing_cancel(gft_backing *backing, const int64_t *job_ids, size_t count); /* returns at once */
/* Calls `each` for every fetch that is over, cancelled ones too (kind "fetch"): GFT_OK, now sealed in the arena and held once;
 * GFT_PRESENT, it was there. */
gft_status gft_backing_poll(gft_backing *backing, void (*each)(void *context, const gft_job_result *result), void *context);
gft_status gft_backing_wait(gft_backing *backing, double seconds, int *done); /* spills durable, fetches over */
/* `trouble`: the log's latest reason for refusing a block, "" when it takes them; valid until this thread's next call. */
gft_status gft_backing_stats_get(gft_backing *backing, gft_backing_stats *out, const char **trouble);
gft_status gft_backing_close(gft_backing *backing, double seconds, int *done);
void gft_backing_free(gft_backing *backing);

#ifdef __cplusplus
}
#endif
#endif
