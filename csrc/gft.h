/* The native door: everything the host core offers, as opaque handles and status codes.
 * bind.cpp and the C++ test programs see the core only through this header; nothing below it knows Python. */
#ifndef GFT_H
#define GFT_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Every function that can fail returns one of these. The text of the last failure of the calling thread is
 * gft_last_error(); it names what failed, where, the value seen, the rule, and one thing to try. No function
 * throws, ends the process, or waits without a deadline. Handles may be shared between threads; freeing a handle
 * while another thread uses that same handle is the caller's error. */
typedef enum gft_status {
  GFT_OK = 0,
  GFT_PRESENT,   /* not a failure: an equal block is sealed already */
  GFT_EXISTS,    /* the file is there */
  GFT_NOT_FOUND, /* no such file or block */
  GFT_NO_SPACE,  /* the file system cannot hold the arena */
  GFT_INVALID,   /* an argument breaks a rule */
  GFT_IO,        /* the operating system refused */
  GFT_DAMAGED,   /* bytes of the arena contradict themselves */
  GFT_VERSION,   /* another format version */
  GFT_MISMATCH,  /* a sound arena, but of another geometry or digest */
  GFT_READ_ONLY, /* opened read only */
  GFT_TIMED_OUT, /* a deadline passed */
  GFT_FULL,      /* no room left of the kind asked for */
  GFT_BUSY,      /* a live process has it */
  GFT_FENCED,    /* the caller's epoch or ticket is over */
  GFT_NO_PARENT, /* the parent block is not sealed */
  GFT_CHAIN,     /* the parent link does not fit */
  GFT_EPOCH,     /* sealed in an epoch newer than the reader's */
  GFT_DIGEST,    /* the payload differs from its digest */
  GFT_CHANGED,   /* the slot was given away while it was being read */
  GFT_CANCELLED, /* dropped on request before it started */
  GFT_CLOSED,    /* the handle was closed */
  GFT_FORKED,    /* the handle belongs to the parent process */
  GFT_DEVICE,    /* the device is lost, wedged or refused; what was being copied does not count */
  GFT_INTERNAL   /* out of memory or a broken invariant of ours */
} gft_status;

const char *gft_status_name(gft_status status); /* "ok", "no_space", ...; never NULL */
const char *gft_last_error(void);               /* of this thread; valid until its next failing call */
const char *gft_version(void);

/* Digests. gft_digest_name is what new arenas are made with. */
const char *gft_digest_name(void);    /* "xxh3_128" or "crc32c" */
const char *gft_digest_variant(void); /* which instructions this machine uses for it, e.g. "avx512" */
const char *gft_xxhash_version(void); /* "0.8.1", or "absent" when built without it */
void gft_digest(const void *data, size_t bytes, uint8_t out[16]);
/* All that this build and this processor have, by number from 0; GFT_NOT_FOUND ends it. Instructions never change values. */
gft_status gft_digest_kind(size_t number, const char **name, const char **variant);
gft_status gft_digest_by(size_t number, const void *data, size_t bytes, uint8_t out[16]);

typedef struct gft_bytes {
  const uint8_t *data;
  size_t size;
} gft_bytes;

/* ---- Arena ------------------------------------------------------------------------------------------------- */

typedef struct gft_arena gft_arena;

typedef struct gft_geometry {
  uint64_t slot_bytes; /* payload bytes of one block */
  uint64_t slots;
  uint64_t ledger_bytes; /* both halves together, rounded up to pages */
} gft_geometry;

typedef struct gft_arena_info {
  const char *path;
  gft_geometry geometry;
  const char *digest_name;
  uint64_t file_bytes;
  uint64_t base_address; /* of the mapping in this process */
} gft_arena_info;

typedef struct gft_counts {
  /* The last three are parts of sealed and may overlap; a word with an unknown state counts as writing. */
  uint64_t empty, writing, sealed, held, is_protected, pinned;
} gft_counts;

typedef struct gft_slot_info {
  uint64_t slot;
  const char *state;  /* "writing" or "sealed" */
  int64_t name_space; /* index, -1 when not sealed or when the header does not hold */
  uint64_t shard, position, epoch, generation, payload_bytes, last_used;
  int held, is_protected;
  uint64_t pinned_until; /* seconds since 1970, 2^32 - 1: until unpinned, 0: not pinned, or not any more */
  uint8_t block_hash[64];
  size_t hash_bytes;
} gft_slot_info;

typedef struct gft_prefix {
  uint64_t blocks;
  const char *reason; /* "complete" "missing" "writing" "chain" "epoch" "namespace" "damaged" */
  int64_t shard;      /* -1 when complete */
} gft_prefix;

/* Makes, allocates and publishes the file: nobody can open it half made. Blocks for the allocation. Racing callers
 * take turns; with `or_open` the losers open the winner's file, else they get GFT_EXISTS. */
gft_status gft_arena_create(const char *path, const gft_geometry *geometry, int or_open, gft_arena **out);
/* Maps an existing file after checking owner, mode, header, geometry and length. Reads no slot. */
gft_status gft_arena_open(const char *path, int read_only, gft_arena **out);
/* The mapping goes when the last writer, claim, read, engine or ledger made from it is gone. */
void gft_arena_free(gft_arena *arena);
gft_status gft_arena_info_get(gft_arena *arena, gft_arena_info *out); /* pointers live as long as the handle */
gft_status gft_arena_epoch(gft_arena *arena, uint64_t *out);
gft_status gft_arena_counts(gft_arena *arena, gft_counts *out); /* linear in the slots */

/* Waits at most two seconds for the administration lock, then GFT_TIMED_OUT with the pid that has it. */
gft_status gft_arena_add_namespace(gft_arena *arena, gft_bytes record, uint32_t *out);
gft_status gft_arena_namespace_count(gft_arena *arena, uint32_t *out);
/* Copies record `index` to `out` (room for 4096 bytes). GFT_DAMAGED when its checksum does not hold. */
gft_status gft_arena_namespace(gft_arena *arena, uint32_t index, uint8_t *out, size_t *size);

/* What the eviction policy may keep, in thousandths of the slots: protected blocks 0 to 1000, pinned blocks 0 to 900. For all
 * processes that map the arena, from now on. */
gft_status gft_arena_set_caps(gft_arena *arena, uint32_t protected_part, uint32_t pinned_part);
gft_status gft_arena_caps(gft_arena *arena, uint32_t *protected_part, uint32_t *pinned_part);
/* The slots that a namespace's blocks may have, 0: no limit. Above it the namespace evicts its own blocks first. */
gft_status gft_arena_set_quota(gft_arena *arena, uint32_t name_space, uint64_t slots);
typedef struct gft_usage {
  uint64_t used, quota;  /* slots, counted by a scan; quota 0: no limit */
  uint64_t evicted;      /* blocks that had to go because of the quota */
} gft_usage;
/* Of every namespace, in the order of their numbers; `out` has room for 64. */
gft_status gft_arena_usage(gft_arena *arena, gft_usage *out, size_t *count);

/* The epoch of the engine start named by `token`; see the stub for who gets which answer. Same deadline. An epoch that is
 * opened lies above `floor`: the newest epoch of blocks that outlived an older arena elsewhere, 0 when there are none. */
gft_status gft_arena_begin_epoch(gft_arena *arena, const uint8_t token[16], int takeover, uint64_t floor, uint64_t *out);

/* Walks headers and links only; mutates nothing; takes no lock. */
gft_status gft_arena_usable_prefix(gft_arena *arena, uint32_t name_space, const uint32_t *shards, size_t shard_count,
                                   const gft_bytes *hashes, size_t hash_count, uint64_t max_epoch, gft_prefix *out);
/* Calls `each` for every non-empty slot, in order, from this thread. */
gft_status gft_arena_scan(gft_arena *arena, void (*each)(void *context, const gft_slot_info *info), void *context);
/* "ok" "digest" "seal" "changed" "empty": reads the payload of one slot, mutates nothing. */
gft_status gft_arena_verify(gft_arena *arena, uint64_t slot, const char **out);

/* ---- Writer ------------------------------------------------------------------------------------------------ */

typedef struct gft_writer gft_writer;
typedef struct gft_claim gft_claim;
typedef struct gft_read gft_read;

/* Takes a lane; its lock dies with the process. GFT_BUSY while another live process (or handle) writes the shard in
 * this epoch, or has a claim of it open; `takeover` fences that one instead. GFT_FENCED when `token` does not name the
 * current epoch. Whoever is fenced may live and copy on: it seals and marks nothing any more (GFT_FENCED), and a slot
 * that it has open is given to nobody until its claim is over or its process is gone. */
gft_status gft_arena_attach(gft_arena *arena, uint32_t shard, const uint8_t token[16], uint32_t name_space, int takeover,
                            gft_writer **out);
/* Gives the lane back once no claim is open; later calls get GFT_CLOSED. */
gft_status gft_writer_close(gft_writer *writer);
void gft_writer_free(gft_writer *writer);
void gft_writer_info(gft_writer *writer, uint32_t *shard, uint64_t *epoch, uint32_t *name_space);

/* `parent.data` NULL means position 0. GFT_PRESENT: an equal block with the right parent is sealed; it was touched
 * and held, and `*out` is NULL. A claim starts held. */
gft_status gft_writer_claim(gft_writer *writer, gft_bytes hash, gft_bytes parent, uint64_t position, gft_claim **out);
void gft_claim_info(gft_claim *claim, uint64_t *slot, uint64_t *address);
/* Digests the payload where it lies, writes header and seal, publishes by one release-store. */
gft_status gft_claim_seal(gft_claim *claim);
/* What a block is for life, wherever it lies: all that its link was made from. */
typedef struct gft_identity {
  uint8_t name_space_id[16]; /* digest of the namespace's record */
  uint32_t shard;
  uint64_t position, epoch, payload_bytes;
  gft_bytes hash;
  uint8_t parent_link[16], link[16], digest[16];
} gft_identity;
/* Seals the payload as the block it was when it was sealed first. `parent.data` NULL at position 0; else that block must be
 * sealed here with the link that the identity continues. GFT_PRESENT: a block with this very link is sealed. GFT_INVALID: of
 * another namespace, shard or claim. GFT_MISMATCH: of another payload length. GFT_EPOCH: newer than the writer. GFT_DAMAGED:
 * its link does not follow from it. GFT_DIGEST, GFT_NO_PARENT, GFT_CHAIN. The claim is over in every case. */
gft_status gft_claim_seal_as(gft_claim *claim, const gft_identity *identity, gft_bytes parent, int hold);
/* The link that follows from the rest of an identity, by the digest that new arenas are made with. GFT_INVALID: no such hash. */
gft_status gft_identity_link(const gft_identity *identity, uint8_t out[16]);
/* The identity of the block sealed in `slot` (its hash goes to `hash`), and with `to` not NULL a copy of its payload, verified.
 * Mutates nothing. GFT_NOT_FOUND, GFT_CHANGED, GFT_DAMAGED, GFT_DIGEST. */
gft_status gft_arena_read_block(gft_arena *arena, uint64_t slot, uint8_t *to, uint8_t hash[64], gft_identity *out);
gft_status gft_claim_abandon(gft_claim *claim); /* the slot is empty again; safe to repeat */
void gft_claim_free(gft_claim *claim);          /* abandons an unsealed claim */

/* Unknown hashes are passed over. A hold counts in its own and in the next epoch. Hold, release and touch stamp the
 * list so that its last block is the oldest; touch says that another request used them, which protects them. */
gft_status gft_writer_hold(gft_writer *writer, const gft_bytes *hashes, size_t count);
gft_status gft_writer_release(gft_writer *writer, const gft_bytes *hashes, size_t count);
gft_status gft_writer_touch(gft_writer *writer, const gft_bytes *hashes, size_t count);

/* Keeps blocks until `until` (seconds since 1970; 2^32 - 1: until unpinned; 0: unpins them), whoever dies meanwhile. A pin is
 * never shortened by another. GFT_FULL, and nothing is changed, when the pinned part of the arena would exceed its cap.
 * `*pinned` is how many of the blocks are pinned then. Linear in the slots. */
gft_status gft_writer_pin(gft_writer *writer, const gft_bytes *hashes, size_t count, uint32_t until, uint64_t *pinned);

gft_status gft_writer_find(gft_writer *writer, gft_bytes hash, gft_bytes parent, gft_read **out);
void gft_read_info(gft_read *read, uint64_t *slot, uint64_t *address, uint64_t *payload_bytes);
void gft_read_identity(gft_read *read, gft_identity *out); /* the hash lives as long as the handle */
/* Reads the whole payload. On GFT_DIGEST the bad block is taken out of the arena, so that it can be stored again. */
gft_status gft_read_verify(gft_read *read);
gft_status gft_read_recheck(gft_read *read);
void gft_read_free(gft_read *read);

/* ---- Copy engine ------------------------------------------------------------------------------------------- */

typedef struct gft_engine gft_engine;

typedef struct gft_region {
  uint64_t address;        /* of block 0's fragment */
  uint64_t stride;         /* bytes from one block's fragment to the next */
  uint64_t fragment_bytes; /* of one block in this region */
  uint64_t blocks;
} gft_region;

typedef struct gft_block {
  uint64_t block_id;
  gft_bytes hash, parent; /* parent.data NULL: position 0 */
  uint64_t position;
} gft_block;

typedef struct gft_job_result {
  int64_t job_id;
  const char *kind; /* "store", "load" or "pin" */
  uint64_t bytes;   /* copied by blocks that ended GFT_OK */
  double seconds;   /* from the first block started to the last one done */
  const gft_status *statuses;
  size_t count;
  const char *detail; /* text of the first failure, "" when there was none */
} gft_job_result;

/* GFT_INVALID for no region, zero lengths, a stride shorter than its fragment, or a sum that overflows. */
gft_status gft_layout_measure(const gft_region *regions, size_t count, uint64_t *block_bytes, uint64_t *num_blocks);

/* Starts `threads` threads that block all signals. The caller keeps the regions' memory alive until close says true.
 * GFT_MISMATCH when the layout's block is not exactly the arena's payload. */
gft_status gft_engine_create(gft_writer *writer, const gft_region *regions, size_t count, int threads, gft_engine **out);
/* Both queue and return. GFT_INVALID (nothing queued) for a block id outside the layout or a malformed hash. */
gft_status gft_engine_store(gft_engine *engine, int64_t job_id, const gft_block *blocks, size_t count);
gft_status gft_engine_load(gft_engine *engine, int64_t job_id, const gft_block *blocks, size_t count);
/* Marks behind the stores queued before. GFT_DROP releases, and takes the block out of the arena when nobody holds it then. */
typedef enum gft_mark { GFT_HOLD = 0, GFT_RELEASE, GFT_TOUCH, GFT_DROP } gft_mark;
gft_status gft_engine_mark(gft_engine *engine, const gft_bytes *hashes, size_t count, gft_mark mark);
/* As gft_writer_pin, behind the stores queued before. The job has one status: GFT_NOT_FOUND when none of the blocks is there. */
gft_status gft_engine_pin(gft_engine *engine, int64_t job_id, const gft_bytes *hashes, size_t count, uint32_t until);
gft_status gft_engine_cancel(gft_engine *engine, const int64_t *job_ids, size_t count);
/* Calls `each` for every job finished since the last call; never waits for a copy. */
gft_status gft_engine_poll(gft_engine *engine, void (*each)(void *context, const gft_job_result *result), void *context);
gft_status gft_engine_wait(gft_engine *engine, double seconds, int *done);
gft_status gft_engine_backlog(gft_engine *engine, uint64_t *blocks, uint64_t *bytes);
/* Finishes what is queued within `seconds`, drops the rest, ends the threads. `*done` 0: a thread is still inside a copy. */
gft_status gft_engine_close(gft_engine *engine, double seconds, int *done);
void gft_engine_free(gft_engine *engine); /* as close with nothing to finish; never hangs */

/* ---- Ledger ------------------------------------------------------------------------------------------------ */

typedef struct gft_ledger gft_ledger;

/* The one live writer. GFT_BUSY names the pid; `takeover` copies the live bytes to the other half and fences it. */
gft_status gft_arena_open_ledger(gft_arena *arena, int takeover, gft_ledger **out);
gft_status gft_ledger_usage(gft_ledger *ledger, uint64_t *used, uint64_t *capacity);
gft_status gft_ledger_append(gft_ledger *ledger, uint32_t kind, gft_bytes payload);
gft_status gft_ledger_begin_compaction(gft_ledger *ledger);
gft_status gft_ledger_commit_compaction(gft_ledger *ledger);
gft_status gft_ledger_abort_compaction(gft_ledger *ledger); /* appends go to the old half again; safe to repeat */
gft_status gft_ledger_close(gft_ledger *ledger);
void gft_ledger_free(gft_ledger *ledger);
/* Calls `each` for every whole record in order. `*end` is "clean" or "torn". Needs no lock; GFT_CHANGED when the ledger
 * was compacted during every one of its attempts. */
gft_status gft_arena_read_ledger(gft_arena *arena, void (*each)(void *context, uint32_t kind, gft_bytes payload),
                                 void *context, const char **end);

#ifdef __cplusplus
}
#endif
#endif
