// Sealed blocks as a reader may believe them, and the walk along links from block to block.
// Headers only: payloads are checked by whoever copies them.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core.h"
#include "levels.h"

namespace gft {

// A header that was whole, sealed and unchanged while it was copied; `word` is the state it had.
struct Sealed {
  uint64_t slot;
  uint64_t word;
  SlotHeader header;

  Id link() const { return std::to_array(header.link); }
  Id parent_link() const { return std::to_array(header.parent_link); }
  // Still the same generation: nothing has been written to the slot since `word` was read.
  bool unchanged(const Core &core) const;
};

// What a block must be to be used.
struct Wanted {
  Namespace name_space;
  uint32_t shard;
  uint64_t max_epoch;
};

// Reads and checks one slot whose state was `word`. `missing` when the slot was given away meanwhile.
Why read_sealed(const Core &core, uint64_t slot, StateWord word, const Wanted &wanted, Sealed &out);

// All sealed blocks named `hash` at `position` (any position when negative), at most kCandidates; `why` when there is none.
inline constexpr size_t kCandidates = 8;
std::vector<Sealed> candidates(const Core &core, const Wanted &wanted, std::string_view hash, int64_t position, Why &why);

// Follows one shard's chain.
class ChainWalk {
 public:
  ChainWalk(const Core &core, const Wanted &wanted) : core_(core), wanted_(wanted) {}

  // Starts at position 0 (no parent) or behind the sealed block `parent`.
  Why start(const std::string *parent, uint64_t position);
  Why step(std::string_view hash);
  uint64_t length() const { return levels_.length(); }
  std::vector<Sealed> chain() const { return levels_.chain(); }

 private:
  const Core &core_;
  const Wanted wanted_;
  Levels<Sealed> levels_;
};

struct PrefixAnswer {
  uint64_t blocks;
  Why why;
  int64_t shard;
};
PrefixAnswer usable_prefix(Core &core, uint32_t name_space, std::span<const uint32_t> shards,
                           std::span<const std::string_view> hashes, uint64_t max_epoch);

}  // namespace gft
