// Where a conversion's blocks come from: something that finds one shard's chain and copies blocks of it out, verified.
// Implementations: an arena (arena_source.cpp) and, behind the same interface, a disk log.
#pragma once

#include <chrono>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "../copy/load.h"
#include "../disk/log.h"
#include "plan.h"

namespace gft {

// Consecutive blocks of one shard that form one chain, oldest first. Headers and links have been checked.
class SourceChain {
 public:
  virtual ~SourceChain() = default;
  virtual size_t length() const = 0;
  // Copies at least `ranges` of block `index`'s payload to their places in `to`, which has room for the whole payload. GFT_OK:
  // these bytes are what was sealed, whatever happened to the block since. Anything else: they are worthless. Never throws.
  virtual Outcome read(size_t index, std::span<const ByteRange> ranges, uint8_t *to,
                       std::chrono::steady_clock::time_point deadline) = 0;
};

class Source {
 public:
  virtual ~Source() = default;
  virtual const char *where() const = 0;
  virtual uint64_t payload_bytes() const = 0;
  // Whether `read` copies more than what it was asked for: the whole payload, that is.
  virtual bool reads_all() const = 0;
  // The leading blocks of `hashes` that form a chain behind `parent` (null: from position 0); `end` says why there are no more.
  virtual std::unique_ptr<SourceChain> find(uint32_t shard, const std::string *parent, uint64_t position,
                                            std::span<const std::string> hashes, Outcome &end) = 0;
  // These blocks are needed in this order, and no longer once they were read. `writer` is about to claim slots.
  virtual void keep(const SourceChain &chain, Writer &writer) = 0;
};

// `name_space` is a number of the source arena. Throws GFT_INVALID when there is no such record.
std::unique_ptr<Source> arena_source(std::shared_ptr<Core> core, uint32_t name_space, uint64_t max_epoch);

struct ShardLog {
  uint32_t shard;
  std::shared_ptr<disk::Log> log;
};
// `name_space` is the digest of the record under which the blocks were stored.
std::unique_ptr<Source> log_source(std::vector<ShardLog> logs, const Id &name_space, uint64_t payload_bytes,
                                   uint64_t max_epoch);

}  // namespace gft
