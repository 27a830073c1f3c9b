/* The disk log's part of the native door: opaque handles and status codes, as in gft.h, whose rules hold here too.
 * disk/log.h says the same for C++ code of the core; disk/README.md is the format. */
#ifndef GFT_DISK_H
#define GFT_DISK_H

#include "gft.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct gft_disk gft_disk;

/* A block's identity as it was sealed in the arena. */
typedef struct gft_disk_key {
  uint8_t name_space[16], parent_link[16], link[16], digest[16];
  uint64_t position, epoch, payload_bytes;
  uint32_t shard, hash_bytes;
  uint8_t hash[64];
} gft_disk_key;

typedef struct gft_disk_entry {
  gft_disk_key key;
  uint64_t segment, offset, stored_bytes;
  uint32_t codec; /* 0 none, 1 zstd, 2 lz4 */
} gft_disk_entry;

/* Fails operations `nth` to `nth` + `count` - 1 of a kind (0 read, 1 write, 2 sync) with errno `error`: for tests. */
typedef struct gft_disk_fault {
  uint32_t kind;
  uint64_t nth, count;
  int error;
} gft_disk_fault;

/* Fill with gft_disk_defaults, then change what is wanted. */
typedef struct gft_disk_options {
  uint64_t segment_bytes, cap_bytes, staging_bytes, group_bytes;
  uint32_t window_ms, depth, read_threads, idle_ms;
  double live_ratio;
  uint32_t compress; /* a codec */
  uint32_t backend;  /* 0 best, 1 io_uring, 2 threads */
  int direct, takeover;
  const char *digest; /* "": what new arenas are made with */
  const gft_disk_fault *faults;
  size_t fault_count;
} gft_disk_options;

typedef struct gft_disk_range {
  uint64_t from, bytes;
  uint8_t *to;
} gft_disk_range;

typedef struct gft_disk_read {
  const gft_disk_entry *entry;
  const gft_disk_range *ranges;
  size_t range_count;
  gft_status status; /* answer */
} gft_disk_read;

/* Numbers in the order of gft_disk_number_name; texts valid during the call back. */
typedef struct gft_disk_stats {
  const double *numbers;
  size_t count;
  gft_status reason; /* why appends are refused; GFT_OK: they are not */
  const char *reason_text, *backend, *digest;
} gft_disk_stats;
const char *gft_disk_number_name(size_t index);

void gft_disk_defaults(gft_disk_options *options);
gft_status gft_disk_open(const char *folder, const gft_disk_options *options, int read_only, gft_disk **out);
/* Writes digest and link of `payload` into `key`, whose other fields are set: what the arena would have sealed. */
void gft_disk_seal(gft_disk_key *key, const uint8_t *payload);

gft_status gft_disk_add_namespace(gft_disk *log, gft_bytes record, uint8_t id[16]);
/* Waits for staging memory up to `seconds`; GFT_PRESENT when it is stored. After GFT_OK poll reports `ticket` once. */
gft_status gft_disk_append(gft_disk *log, const gft_disk_key *key, const uint8_t *payload, uint64_t ticket, double seconds);
gft_status gft_disk_poll(gft_disk *log, void (*each)(void *context, uint64_t ticket, gft_status status), void *context);
gft_status gft_disk_flush(gft_disk *log, double seconds, int *done);
gft_status gft_disk_find(gft_disk *log, const uint8_t name_space[16], uint32_t shard, gft_bytes hash, int64_t position,
                         void (*each)(void *context, const gft_disk_entry *entry), void *context);
gft_status gft_disk_find_link(gft_disk *log, const uint8_t link[16], gft_disk_entry *out); /* GFT_NOT_FOUND */
gft_status gft_disk_entries(gft_disk *log, void (*each)(void *context, const gft_disk_entry *entry), void *context);
gft_status gft_disk_namespaces(gft_disk *log, void (*each)(void *context, gft_bytes record), void *context);
/* Each read has its own status; `detail` (may be NULL) gets the text of each that is not GFT_OK. */
gft_status gft_disk_read_many(gft_disk *log, gft_disk_read *reads, size_t count, double seconds,
                              void (*detail)(void *context, size_t index, const char *text), void *context);
gft_status gft_disk_mark(gft_disk *log, const uint8_t (*links)[16], size_t count, int what); /* 0 touch, 1 hold, 2 release */
gft_status gft_disk_drop(gft_disk *log, const gft_disk_entry *entry);
gft_status gft_disk_refresh(gft_disk *log);
gft_status gft_disk_get_stats(gft_disk *log, void (*each)(void *context, const gft_disk_stats *stats), void *context);
gft_status gft_disk_close(gft_disk *log, double seconds, int *done);
void gft_disk_free(gft_disk *log);

/* Who has the log of a folder open, by its locks: `writer` is 0 when none lives, else its pid (1 when it did not say). */
gft_status gft_disk_users(const char *folder, uint64_t *writer, int *readers);
/* Renames the folder of a log that nobody has open to `to`; GFT_BUSY. What is in it stays; who opens the log begins a new one. */
gft_status gft_disk_set_aside(const char *folder, const char *to, int even_if_read);

/* What the build found: versions, or "absent". */
const char *gft_disk_uring_version(void);
const char *gft_disk_codec_version(uint32_t codec);

#ifdef __cplusplus
}
#endif
#endif
