// From (namespace, shard, block hash) to slots: a table of hints whose truth is in the slots themselves.
// Entries die with their slot's generation and are then reused in place; nothing is ever deleted or rebuilt.
#pragma once

#include <cstdint>
#include <string_view>

#include "core.h"

namespace gft {

// Hashes a block's name; every user of the index starts here.
uint64_t index_key(const Core &core, const Id &name_space_id, uint32_t shard, std::string_view hash);

// Puts (key -> slot of this generation) in. Throws GFT_FULL when all probed places are taken by living blocks.
void index_insert(const Core &core, uint64_t key, uint64_t generation, uint64_t slot);

// Calls `each(slot, state word)` for the living entries with this key's tag; `each` returns false to stop.
// Looks at no more than kProbedBuckets * kBucket entries.
template <typename Each>
void index_probe(const Core &core, uint64_t key, Each each);

// ---- details shared by both ----

struct IndexWalk {
  uint64_t mask, at, step;
  IndexWalk(const Core &core, uint64_t key)
      : mask(core.geometry().index_entries / kBucket - 1), at(key & mask), step(((key >> 20) & 0xffffff) | 1) {}
  uint64_t entry(uint32_t i) const { return at * kBucket + i; }
  void next() { at = (at + step) & mask; }
};

// Whether the slot of `entry` still has the generation the entry was made for; `word` gets its state.
inline bool entry_lives(const Core &core, uint64_t entry, StateWord &word) {
  uint64_t slot = IndexEntry::slot(entry);
  if (slot >= core.geometry().slots) return false;
  word = StateWord::of(core.state(slot).load(std::memory_order_acquire));
  return word.state != Slot::empty && IndexEntry::same_generation(entry, word.generation);
}

template <typename Each>
void index_probe(const Core &core, uint64_t key, Each each) {
  IndexWalk walk(core, key);
  for (uint32_t bucket = 0; bucket < kProbedBuckets; ++bucket, walk.next())
    for (uint32_t i = 0; i < kBucket; ++i) {
      uint64_t entry = core.index_entry(walk.entry(i)).load(std::memory_order_acquire);
      if (entry == 0) return;  // an insertion would have used this place
      StateWord word;
      if (IndexEntry::same_tag(entry, key) && entry_lives(core, entry, word) && !each(IndexEntry::slot(entry), word)) return;
    }
}

}  // namespace gft
