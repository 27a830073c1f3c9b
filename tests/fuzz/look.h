// Asks an arena for everything that can be read without being a writer, and checks that answers stay within their bounds.
// Shared by the fuzz targets; no refusal is an error here.
#pragma once

#include "../native/programs/support.h"

namespace fuzz {

inline void look_at_everything(gft_arena *arena) {
  gft_arena_info info{};
  CHECK(gft_arena_info_get(arena, &info) == GFT_OK);
  uint64_t slots = info.geometry.slots;
  gft_counts counts{};
  if (gft_arena_counts(arena, &counts) == GFT_OK) CHECK(counts.empty + counts.writing + counts.sealed == slots);
  (void)gft_arena_scan(
      arena,
      [](void *last, const gft_slot_info *found) {
        CHECK(found->slot < *static_cast<uint64_t *>(last) && found->hash_bytes <= 64);
      },
      &slots);
  const char *text = "";
  for (uint64_t slot = 0; slot < std::min<uint64_t>(slots, 64); ++slot) (void)gft_arena_verify(arena, slot, &text);
  CHECK(gft_arena_verify(arena, slots, &text) != GFT_OK);
  uint32_t count = 0;
  if (gft_arena_namespace_count(arena, &count) == GFT_OK)
    for (uint32_t i = 0; i < count; ++i) {
      std::vector<uint8_t> record(4096);  // on the heap: a byte too many is seen
      size_t size = 0;
      if (gft_arena_namespace(arena, i, record.data(), &size) == GFT_OK) CHECK(size <= record.size());
    }
  std::string names[3] = {"block 0", "block 1", "block 2"};
  gft_bytes hashes[3] = {bytes_of(names[0]), bytes_of(names[1]), bytes_of(names[2])};
  uint32_t shards[2] = {0, 1};
  gft_prefix prefix{};
  for (uint32_t name_space = 0; name_space < 3; ++name_space)
    for (size_t shard_count : {1, 2})
      if (gft_arena_usable_prefix(arena, name_space, shards, shard_count, hashes, 3, 1, &prefix) == GFT_OK)
        CHECK(prefix.blocks <= 3);
  uint64_t bytes = 0;
  if (gft_arena_read_ledger(
          arena, [](void *sum, uint32_t, gft_bytes record) { *static_cast<uint64_t *>(sum) += record.size; }, &bytes,
          &text) == GFT_OK)
    CHECK(bytes <= info.geometry.ledger_bytes + 8192);
  std::vector<gft_usage> usage(64);
  size_t namespaces = usage.size();
  if (gft_arena_usage(arena, usage.data(), &namespaces) == GFT_OK) CHECK(namespaces <= usage.size());
  uint64_t epoch;
  (void)gft_arena_epoch(arena, &epoch);
}

}  // namespace fuzz
