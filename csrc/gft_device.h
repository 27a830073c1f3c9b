/* The device half of the native door: devices (real or simulated), the device copy engine, and the twin's controls.
 * The rules of gft.h hold here too: status codes, no exception, no wait without a deadline. */
#ifndef GFT_DEVICE_H
#define GFT_DEVICE_H

#include "gft.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct gft_device gft_device;

/* One line for `doctor`: the driver and what it offers; no context is made. GFT_NOT_FOUND, GFT_VERSION. */
gft_status gft_device_probe(char *text, size_t size);

/* Retains the primary context of device `ordinal` (the one torch uses) and makes two streams in it. Calls that take longer
 * than `timeout` seconds count as a wedged device. GFT_NOT_FOUND, GFT_VERSION, GFT_INVALID (no such device), GFT_DEVICE. */
gft_status gft_device_open(int ordinal, double timeout, gft_device **out);
/* The handle; engines made from it keep what they need. A wedged device is left behind, never waited for. */
void gft_device_free(gft_device *device);
/* Calls `each` with facts as text: name, driver, uuid, compute, simulated, batch, kernels, node. */
gft_status gft_device_facts(gft_device *device, void (*each)(void *context, const char *name, const char *value), void *context);
/* `image`: a fat binary, cubin or PTX (a zero byte at its end) with both kernels, or NULL: do without from now on.
 * GFT_DEVICE when the driver does not take it; then the kernels loaded before stay in use. */
gft_status gft_device_use_kernels(gft_device *device, const char *const *images, const size_t *sizes, size_t count);
/* Median seconds of copying `count` pieces of `bytes` bytes each, out (0) or in (1), by "plain", "batch" or "kernel".
 * Blocks, at most two seconds. GFT_NOT_FOUND when the device has no such way. */
gft_status gft_device_measure(gft_device *device, const char *way, int in, uint64_t bytes, uint64_t count, double *seconds);

/* ---- Device copy engine ------------------------------------------------------------------------------------- */

typedef struct gft_threshold {
  uint64_t count, below; /* transfers of at least `count` pieces pack pieces shorter than `below` bytes */
} gft_threshold;

typedef struct gft_device_options {
  int threads;            /* batches under way at once: one copies while another is digested */
  uint64_t staging_bytes; /* per thread, on the device; a batch is not larger */
  uint64_t chunk_bytes;   /* of registration; at most 64 GiB */
  int thread_blocks;      /* of the kernels */
  int device_digest;      /* compare what a kernel saw with what arrived; needs kernels */
  uint64_t rate;          /* bytes per second that stores may take at most; 0: no limit */
  double slowdown;        /* how much longer a step may take (0.01: one percent) before stores give way; 0: do not look */
  const gft_threshold *out, *in;
  size_t out_count, in_count;
} gft_device_options;

/* As gft_engine_create, over `regions` in the device's memory. The other gft_engine_* functions take the result too. */
gft_status gft_device_engine_create(gft_writer *writer, gft_device *device, const gft_region *regions, size_t count,
                                    const gft_device_options *options, gft_engine **out);
/* As gft_engine_store and _load, ordered behind all that `stream` (the raw handle) holds at this moment.
 * GFT_BUSY while the stream is being captured into a graph; GFT_DEVICE when the device is lost. */
gft_status gft_engine_submit_after(gft_engine *engine, int load, int64_t job_id, const gft_block *blocks, size_t count,
                                   uint64_t stream);
/* The engine's last step took `seconds`. Cheap; feeds the byte budget. */
gft_status gft_engine_step(gft_engine *engine, double seconds);
/* Calls `each` with counters and states (see the stub). */
gft_status gft_engine_facts(gft_engine *engine, void (*each)(void *context, const char *name, double value), void *context);

/* ---- The twin: a device simulated on the CPU ------------------------------------------------------------------ */

typedef struct gft_twin_options {
  uint64_t seed;
  double gb_per_s;         /* of each copy */
  double call_seconds;     /* that a call keeps its caller */
  double work_seconds;     /* after which queued work takes effect, at least; a random part of it on top */
  int version;             /* of the driver it plays: 13000, 12080, 12020, ... */
  int kernels;             /* whether it takes kernels at all */
  uint64_t register_bytes; /* how much can be registered; 0: none */
  int64_t fail_at;         /* the n-th call from now (1 is the next) fails once; 0: none */
  int fail_with;           /* ... with this result */
  int64_t lose_at;         /* the device is lost at the n-th call from now; 0: never */
  int64_t block_at;        /* the n-th call from now does not return until the options are set again; 0: none */
  int64_t flip_every;      /* each n-th copy changes one bit on its way; 0: none */
} gft_twin_options;

/* The next device of this process, simulated. It stays until the process ends. */
gft_status gft_twin_make(const gft_twin_options *options, double timeout, gft_device **out);
/* GFT_INVALID for a device that is not a twin; the same for all below. */
gft_status gft_twin_set(gft_device *device, const gft_twin_options *options);
gft_status gft_twin_calls(gft_device *device, uint64_t *calls, uint64_t *registered_bytes);
gft_status gft_twin_allocate(gft_device *device, uint64_t bytes, uint64_t *address);
/* Host memory at `address` becomes memory of this device, under its own address. */
gft_status gft_twin_adopt(gft_device *device, uint64_t address, uint64_t bytes);
gft_status gft_twin_stream(gft_device *device, uint64_t *stream);
/* Now and past every stream: what a test puts down and looks at. */
gft_status gft_twin_write(gft_device *device, uint64_t address, gft_bytes data);
gft_status gft_twin_read(gft_device *device, uint64_t address, uint8_t *out, uint64_t bytes);
/* Work of the simulated engine, queued on `stream`, taking effect `seconds` after its turn: fills a range, or copies one. */
gft_status gft_twin_fill(gft_device *device, uint64_t stream, uint64_t address, uint64_t bytes, int value, double seconds);
gft_status gft_twin_copy(gft_device *device, uint64_t stream, uint64_t to, uint64_t from, uint64_t bytes, double seconds);
/* Runs a kernel by name ("gft_gather", "gft_scatter") over pieces of five words each: address, offset, bytes, word, owner.
 * `digests` has room for 64. Blocks. */
gft_status gft_twin_launch(gft_device *device, const char *kernel, const uint64_t *pieces, size_t count, uint64_t staging,
                           uint64_t staging_bytes, int digest, uint64_t *error, uint64_t *digests);

/* The pure decisions, for whoever wants to look at them: tests, and the curious. */
typedef struct gft_fragment {
  uint64_t device, host, bytes, owner, position;
} gft_fragment;
typedef struct gft_plan_rules {
  int kernels, pack_all;
  const gft_threshold *pack;
  size_t pack_count;
  uint64_t staging_bytes, max_pieces, host_base, host_chunk;
} gft_plan_rules;
/* Calls `each` in order: way 0: one direct copy (device, host, bytes); way 1: a packed piece of round `round` (device, offset
 * in staging, bytes, owner, position); way 2: a copy between staging and host of that round (offset, host, bytes). */
gft_status gft_device_plan(const gft_fragment *fragments, size_t count, const gft_plan_rules *rules,
                           void (*each)(void *context, int way, uint64_t round, const uint64_t values[5]), void *context);
/* Feeds `count` events (time, kind, value) to a byte budget: kind 0 a step of `value` seconds, 1 `value` bytes spent, 2 a
 * question. Writes for each event the seconds to wait and the rate in force. */
gft_status gft_device_pace(double rate, double slowdown, const double (*events)[3], size_t count, double (*out)[2]);

/* The position-keyed digest of a payload's words from number `first` on; bytes are a multiple of 8. */
uint64_t gft_device_mix(const void *data, size_t bytes, uint64_t first);

#ifdef __cplusplus
}
#endif
#endif
