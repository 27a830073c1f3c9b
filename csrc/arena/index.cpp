// Insertion into the index. With at most half of the places alive, sixteen buckets of eight are full of living entries
// about once in 10^20 tries; then the claim fails as "full".
#include "index.h"

#include <cstring>

namespace gft {

uint64_t index_key(const Core &core, const Id &name_space_id, uint32_t shard, std::string_view hash) {
  struct {
    Id name_space_id;
    uint32_t shard, hash_bytes;
    uint8_t hash[kHashBytes];
  } name{name_space_id, shard, static_cast<uint32_t>(hash.size()), {}};
  std::memcpy(name.hash, hash.data(), hash.size());
  Digest digest = core.digest().of(&name, sizeof name);
  uint64_t low, high;
  std::memcpy(&low, digest.data(), 8);
  std::memcpy(&high, digest.data() + 8, 8);
  uint64_t key = (low ^ (high << 32 | high >> 32)) * 0x9e3779b97f4a7c15;  // every digest bit reaches the tag
  return key ^ key >> 29;
}

void index_insert(const Core &core, uint64_t key, uint64_t generation, uint64_t slot) {
  uint64_t fresh = IndexEntry::make(key, generation, slot);
  IndexWalk walk(core, key);
  for (uint32_t bucket = 0; bucket < kProbedBuckets; ++bucket, walk.next())
    for (uint32_t i = 0; i < kBucket; ++i) {
      Word place = core.index_entry(walk.entry(i));
      uint64_t there = place.load(std::memory_order_acquire);
      StateWord word;
      while (there == 0 || !entry_lives(core, there, word))
        if (place.compare_exchange_weak(there, fresh, std::memory_order_acq_rel)) return;
    }
  fail(GFT_FULL, "arena %s: the index places of this block are all taken by living blocks; use an arena with more slots",
       core.path());
}

}  // namespace gft
