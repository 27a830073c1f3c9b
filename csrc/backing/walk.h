// One shard's chain over two places: blocks sealed in the arena and records of the disk log.
// A block keeps its identity wherever it lies, so links join the two; headers only, payloads are checked by whoever copies.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "../arena/chain.h"
#include "../arena/identity.h"
#include "../disk/log.h"

namespace gft {

Identity identity_of(const disk::Key &key);

// One block of a chain. Which member counts is said by `on_disk`.
struct Place {
  bool on_disk = false;
  Sealed sealed{};
  disk::Entry entry{};

  Id link() const;
  Id parent_link() const;
};

// What every payload of a namespace has in common.
struct Shape {
  uint64_t payload_bytes;
  const DigestAlgorithm *digest;
};

class BackedWalk {
 public:
  // Either place may be missing: a log that is null, an arena that is null.
  BackedWalk(const Core *core, const disk::Log *log, const Wanted &wanted, const Shape &shape)
      : core_(core), log_(log), wanted_(wanted), shape_(shape) {}

  // As ChainWalk: position 0, or behind the block named `parent`, wherever that lies.
  Why start(const std::string *parent, uint64_t position);
  Why step(std::string_view hash);
  uint64_t length() const { return levels_.length(); }
  // The blocks of the whole walk as one chain, oldest first; from the arena where it has them.
  std::vector<Place> chain() const { return levels_.chain(); }

 private:
  // Everything of that name that holds for itself, in the arena first; a record whose block is in the arena is left out.
  std::vector<Place> places(std::string_view hash, uint64_t position, Why &why) const;

  const Core *core_;
  const disk::Log *log_;
  const Wanted wanted_;
  const Shape shape_;
  Levels<Place> levels_;
};

// How much of a prefix can be had, and from where: `runs` alternate between arena and disk in prefix order.
struct BackedAnswer {
  uint64_t blocks = 0;
  Why why = Why::ok;
  int64_t shard = -1;
  std::vector<bool> on_disk;  // per usable block: some shard has to read it from disk
};
// `logs` is empty or as long as `shards`; entries may be null, and so may the arena. A place that does
// not know the record, or has payloads of another length, holds nothing of it.
BackedAnswer backed_prefix(Core *core, std::span<disk::Log *const> logs, std::string_view record, uint64_t payload_bytes,
                           std::span<const uint32_t> shards, std::span<const std::string_view> hashes, uint64_t max_epoch);

}  // namespace gft
