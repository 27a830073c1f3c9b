// The door's arena half: status names, digests, files, namespaces, epochs, looking.
// One short body per function of gft.h; the promises are there.
#include <cstring>

#include "arena/chain.h"
#include "arena/epochs.h"
#include "arena/inspect.h"
#include "arena/limits.h"
#include "door.h"

#ifndef GFT_PACKAGE_VERSION
#define GFT_PACKAGE_VERSION "unknown"
#endif

namespace gft {
namespace {
thread_local char last_error[1024] = "";
}

void remember_error(const std::string &text) noexcept {
  size_t bytes = std::min(text.size(), sizeof last_error - 1);
  std::memcpy(last_error, text.data(), bytes);
  last_error[bytes] = 0;
}

}  // namespace gft

using gft::behind_wall;

const char *gft_status_name(gft_status status) {
  static constexpr const char *names[] = {"ok",     "present", "exists",    "not_found", "no_space",  "invalid",
                                          "io",     "damaged", "version",   "mismatch",  "read_only", "timed_out",
                                          "full",   "busy",    "fenced",    "no_parent", "chain",     "epoch",
                                          "digest", "changed", "cancelled", "closed",    "forked",    "device",    "internal"};
  static_assert(sizeof names / sizeof *names == GFT_INTERNAL + 1);
  return status >= 0 && status <= GFT_INTERNAL ? names[status] : "internal";
}

const char *gft_last_error(void) { return gft::last_error; }
const char *gft_version(void) { return GFT_PACKAGE_VERSION; }
const char *gft_digest_name(void) { return gft::preferred_digest().name; }
const char *gft_digest_variant(void) { return gft::preferred_digest().variant; }
const char *gft_xxhash_version(void) { return gft::xxhash_version(); }

void gft_digest(const void *data, size_t bytes, uint8_t out[16]) {
  std::memcpy(out, gft::preferred_digest().of(data, bytes).data(), 16);
}

namespace {

const gft::DigestAlgorithm &digest_kind(size_t number) {
  auto all = gft::all_digests();
  if (number >= all.size())
    gft::fail(GFT_NOT_FOUND, "there is no digest number %zu, only %zu; count from 0", number, all.size());
  return *all[number];
}

}  // namespace

gft_status gft_digest_kind(size_t number, const char **name, const char **variant) {
  return behind_wall([&] {
    *name = digest_kind(number).name;
    *variant = digest_kind(number).variant;
  });
}

gft_status gft_digest_by(size_t number, const void *data, size_t bytes, uint8_t out[16]) {
  return behind_wall([&] { std::memcpy(out, digest_kind(number).of(data, bytes).data(), 16); });
}

gft_status gft_arena_create(const char *path, const gft_geometry *geometry, int or_open, gft_arena **out) {
  return behind_wall([&] {
    auto wanted = gft::Geometry::of(geometry->slot_bytes, geometry->slots, geometry->ledger_bytes);
    auto mode = or_open ? gft::ArenaFile::Mode::open_or_create : gft::ArenaFile::Mode::create;
    *out = new gft_arena{std::make_shared<gft::Core>(gft::ArenaFile::create(path, wanted, mode))};
  });
}

gft_status gft_arena_open(const char *path, int read_only, gft_arena **out) {
  return behind_wall([&] { *out = new gft_arena{std::make_shared<gft::Core>(gft::ArenaFile::open(path, read_only != 0))}; });
}

void gft_arena_free(gft_arena *arena) { delete arena; }

gft_status gft_arena_info_get(gft_arena *arena, gft_arena_info *out) {
  return behind_wall([&] {
    const gft::Geometry &g = arena->core->geometry();
    *out = {arena->core->path(),
            {g.slot_bytes, g.slots, g.ledger_bytes},
            arena->core->digest().name,
            g.file_bytes,
            reinterpret_cast<uint64_t>(arena->core->file().base)};
  });
}

gft_status gft_arena_epoch(gft_arena *arena, uint64_t *out) {
  return behind_wall([&] {
    arena->core->check_alive();
    *out = arena->core->epoch();
  });
}

gft_status gft_arena_counts(gft_arena *arena, gft_counts *out) {
  return behind_wall([&] { *out = gft::count_slots(*arena->core); });
}

gft_status gft_arena_add_namespace(gft_arena *arena, gft_bytes record, uint32_t *out) {
  return behind_wall([&] { *out = arena->core->add_namespace(record.data, record.size); });
}

gft_status gft_arena_namespace_count(gft_arena *arena, uint32_t *out) {
  return behind_wall([&] {
    arena->core->check_alive();
    *out = arena->core->namespace_count();
  });
}

gft_status gft_arena_namespace(gft_arena *arena, uint32_t index, uint8_t *out, size_t *size) {
  return behind_wall([&] {
    auto bytes = arena->core->namespace_bytes(index);
    std::memcpy(out, bytes.data(), bytes.size());
    *size = bytes.size();
  });
}

gft_status gft_arena_begin_epoch(gft_arena *arena, const uint8_t token[16], int takeover, uint64_t floor, uint64_t *out) {
  return behind_wall([&] { *out = gft::begin_epoch(*arena->core, token, takeover != 0, floor); });
}

gft_status gft_arena_set_caps(gft_arena *arena, uint32_t protected_part, uint32_t pinned_part) {
  return behind_wall([&] { gft::set_caps(*arena->core, protected_part, pinned_part); });
}

gft_status gft_arena_caps(gft_arena *arena, uint32_t *protected_part, uint32_t *pinned_part) {
  return behind_wall([&] {
    arena->core->check_alive();
    auto caps = gft::CapsWord::of(gft::Word(arena->core->control()->caps).load(std::memory_order_relaxed));
    *protected_part = static_cast<uint32_t>(caps.protected_part);
    *pinned_part = static_cast<uint32_t>(caps.pinned_part);
  });
}

gft_status gft_arena_set_quota(gft_arena *arena, uint32_t name_space, uint64_t slots) {
  return behind_wall([&] { gft::set_quota(*arena->core, name_space, slots); });
}

gft_status gft_arena_usage(gft_arena *arena, gft_usage *out, size_t *count) {
  return behind_wall([&] {
    auto usage = gft::count_usage(*arena->core);
    std::copy(usage.begin(), usage.end(), out);
    *count = usage.size();
  });
}

gft_status gft_arena_usable_prefix(gft_arena *arena, uint32_t name_space, const uint32_t *shards, size_t shard_count,
                                   const gft_bytes *hashes, size_t hash_count, uint64_t max_epoch, gft_prefix *out) {
  return behind_wall([&] {
    if (shard_count == 0) gft::fail(GFT_INVALID, "usable_prefix needs at least one shard");
    auto names = gft::views(hashes, hash_count);
    for (auto name : names)
      if (name.empty() || name.size() > gft::kHashBytes)
        gft::fail(GFT_INVALID, "a block hash of %zu bytes; it must have between 1 and %u", name.size(), gft::kHashBytes);
    auto answer = gft::usable_prefix(*arena->core, name_space, {shards, shard_count}, names, max_epoch);
    *out = {answer.blocks, gft::why_text(answer.why), answer.shard};
  });
}

gft_status gft_arena_scan(gft_arena *arena, void (*each)(void *, const gft_slot_info *), void *context) {
  return behind_wall([&] {
    for (const gft_slot_info &info : gft::scan_slots(*arena->core)) each(context, &info);
  });
}

gft_status gft_arena_verify(gft_arena *arena, uint64_t slot, const char **out) {
  return behind_wall([&] { *out = gft::verify_slot(*arena->core, slot); });
}

gft_status gft_arena_open_ledger(gft_arena *arena, int takeover, gft_ledger **out) {
  return behind_wall([&] { *out = new gft_ledger{gft::Ledger::open(arena->core, takeover != 0)}; });
}

gft_status gft_ledger_usage(gft_ledger *ledger, uint64_t *used, uint64_t *capacity) {
  return behind_wall([&] { ledger->ledger->usage(*used, *capacity); });
}

gft_status gft_ledger_append(gft_ledger *ledger, uint32_t kind, gft_bytes payload) {
  return behind_wall([&] { ledger->ledger->append(kind, {payload.data, payload.size}); });
}

gft_status gft_ledger_begin_compaction(gft_ledger *ledger) {
  return behind_wall([&] { ledger->ledger->begin_compaction(); });
}

gft_status gft_ledger_commit_compaction(gft_ledger *ledger) {
  return behind_wall([&] { ledger->ledger->commit_compaction(); });
}

gft_status gft_ledger_abort_compaction(gft_ledger *ledger) {
  return behind_wall([&] { ledger->ledger->abort_compaction(); });
}

gft_status gft_ledger_close(gft_ledger *ledger) {
  return behind_wall([&] { ledger->ledger->close(); });
}

void gft_ledger_free(gft_ledger *ledger) { delete ledger; }

gft_status gft_arena_read_ledger(gft_arena *arena, void (*each)(void *, uint32_t, gft_bytes), void *context,
                                 const char **end) {
  return behind_wall([&] {
    gft::LedgerContents contents = gft::read_ledger(*arena->core);
    for (const auto &record : contents.records) each(context, record.kind, {record.payload.data(), record.payload.size()});
    *end = contents.torn ? "torn" : "clean";
  });
}
