/* The door to conversions between layouts: plans that are checked once and run often, and the converter of whole prefixes.
 * Status codes, errors and handles follow gft.h. */
#ifndef GFT_RELAYOUT_H
#define GFT_RELAYOUT_H

#include "gft.h"
#include "gft_disk.h"

#ifdef __cplusplus
extern "C" {
#endif

#define GFT_COPY_DIMS 5

/* Copies runs of `bytes` from source payload `source` to the target for every combination of steps along `dims`
 * dimensions, outermost first, beginning at byte `from` there and byte `to` here. */
typedef struct gft_strided_copy {
  uint64_t source, from, to;
  uint32_t dims;
  uint64_t count[GFT_COPY_DIMS], from_stride[GFT_COPY_DIMS], to_stride[GFT_COPY_DIMS];
  uint64_t bytes;
} gft_strided_copy;

typedef struct gft_relayout gft_relayout;

/* GFT_INVALID unless every copy stays inside its payloads, no two write the same byte, and together they write the whole
 * target. `source_bytes` has one size per source payload. */
gft_status gft_relayout_create(const gft_strided_copy *copies, size_t count, const uint64_t *source_bytes, size_t sources,
                               uint64_t target_bytes, gft_relayout **out);
void gft_relayout_free(gft_relayout *relayout);
/* Blocks for the copy. The buffers have the sizes given at creation; sources and target do not overlap. */
gft_status gft_relayout_run(gft_relayout *relayout, const uint8_t *const *sources, uint8_t *target);
/* Calls `each` for the byte ranges of `source` that run reads (small gaps included), in order, none overlapping. */
gft_status gft_relayout_ranges(gft_relayout *relayout, size_t source,
                               void (*each)(void *context, uint64_t begin, uint64_t bytes), void *context);

/* ---- Converter --------------------------------------------------------------------------------------------- */

typedef struct gft_converter gft_converter;

/* Makes blocks of `writer`'s shard of sealed blocks of another layout: in `source`, which may be the writer's own arena,
 * another one, or one opened read only, under `name_space` there. `phases` follow kv/relayout.py: target block p is run
 * through phases[p % phase_count], and a phase's payload k * shard_count + i is source block k of shards[i].
 * Blocks sealed after `max_epoch` of the source are not used. */
gft_status gft_converter_create(gft_writer *writer, gft_arena *source, uint32_t name_space, uint64_t max_epoch,
                                const uint32_t *shards, size_t shard_count, gft_relayout *const *phases,
                                size_t phase_count, gft_converter **out);
/* The same from disk logs, `logs[i]` being that of shards[i]: blocks stored under the namespace record with this digest. Of
 * their payloads only what the phases need is read, and verified by chunks. */
gft_status gft_converter_create_from_logs(gft_writer *writer, gft_disk *const *logs, const uint8_t name_space_id[16],
                                          uint64_t payload_bytes, uint64_t max_epoch, const uint32_t *shards,
                                          size_t shard_count, gft_relayout *const *phases, size_t phase_count,
                                          gft_converter **out);
/* Ends a convert under way at its next block. */
void gft_converter_free(gft_converter *converter);

typedef struct gft_target {
  gft_bytes hash, parent; /* parent.data NULL: position 0 */
  uint64_t position;
  const gft_bytes *sources; /* names of the source blocks it is made of, in order */
  size_t source_count;
} gft_target;

typedef struct gft_converted {
  const gft_status *statuses; /* one per target */
  size_t count;
  uint64_t bytes; /* of targets sealed */
  double seconds;
  const char *detail; /* text of the first failure, "" when there was none */
} gft_converted;

/* Converts consecutive blocks of one prefix, in order, in the calling thread; `source_parent` names the source block before
 * the first one (data NULL: position 0). GFT_OK (verified, converted, sealed and held) or GFT_PRESENT per target; the first
 * other status ends the prefix and the rest is GFT_CHAIN. GFT_TIMED_OUT after `seconds` or a cancel (GFT_CANCELLED) leave what is
 * sealed by then. One call at a time. Returns anything but GFT_OK (nothing done) for malformed arguments only. */
gft_status gft_converter_convert(gft_converter *converter, const gft_target *targets, size_t count,
                                 gft_bytes source_parent, double seconds,
                                 void (*done)(void *context, const gft_converted *result), void *context);
/* From any thread: the convert under way, if there is one, stops at its next block. */
gft_status gft_converter_cancel(gft_converter *converter);

#ifdef __cplusplus
}
#endif
#endif
