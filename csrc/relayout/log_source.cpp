// Blocks in disk logs, one log per shard, as the source of a conversion: only the ranges that the plan needs are read.
// The log verifies the chunks it reads; here the identities are checked against each other, so that what is read is one chain.
#include <algorithm>

#include "../arena/identity.h"
#include "source.h"

namespace gft {
namespace {

class LogChain : public SourceChain {
 public:
  LogChain(std::shared_ptr<disk::Log> log, std::vector<disk::Entry> blocks) : log_(std::move(log)), blocks_(std::move(blocks)) {}

  size_t length() const override { return blocks_.size(); }

  Outcome read(size_t index, std::span<const ByteRange> ranges, uint8_t *to,
               std::chrono::steady_clock::time_point deadline) override {
    try {
      disk::Read read;
      read.entry = blocks_[index];
      for (const ByteRange &range : ranges) read.ranges.push_back({range.begin, range.bytes, to + range.begin});
      log_->read(std::span(&read, 1), deadline);
      return {read.status, read.detail};
    } catch (...) {
      Fail why = current_failure();
      return {why.code, why.text};
    }
  }

 private:
  const std::shared_ptr<disk::Log> log_;
  const std::vector<disk::Entry> blocks_;
};

class LogSource : public Source {
 public:
  LogSource(std::vector<ShardLog> logs, const Id &name_space, uint64_t payload_bytes, uint64_t max_epoch)
      : logs_(std::move(logs)), name_space_(name_space), payload_bytes_(payload_bytes), max_epoch_(max_epoch) {}

  const char *where() const override { return "the disk log"; }
  uint64_t payload_bytes() const override { return payload_bytes_; }
  bool reads_all() const override { return false; }
  void keep(const SourceChain &, Writer &) override {}

  std::unique_ptr<SourceChain> find(uint32_t shard, const std::string *parent, uint64_t position,
                                    std::span<const std::string> hashes, Outcome &end) override {
    auto of_shard = std::find_if(logs_.begin(), logs_.end(), [&](const ShardLog &each) { return each.shard == shard; });
    if (of_shard == logs_.end()) fail(GFT_INVALID, "no disk log of source shard %u was given; open one per shard", shard);
    disk::Log &log = *of_shard->log;
    const DigestAlgorithm *digest = find_digest(log.stats().digest.c_str());
    if (!digest) fail(GFT_MISMATCH, "the disk log of shard %u has digests that this build lacks; rebuild with xxHash", shard);
    log.refresh();
    std::vector<Id> links;
    gft_status why = GFT_OK;
    if (!parent) {
      links.push_back(name_space_);
    } else {
      for (const disk::Entry &entry : usable(log, *digest, shard, *parent, position - 1, why)) links.push_back(entry.key.link);
    }
    // Several records may bear one name: all that fit so far are kept, so that the walk does not end at the wrong twin.
    std::vector<std::vector<std::pair<disk::Entry, size_t>>> levels;  // each with its place in the level before
    for (const std::string &hash : hashes) {
      if (links.empty()) break;
      auto found = usable(log, *digest, shard, hash, position + levels.size(), why);
      std::vector<std::pair<disk::Entry, size_t>> level;
      std::vector<Id> next;
      for (disk::Entry &entry : found) {
        auto before = std::find(links.begin(), links.end(), entry.key.parent_link);
        if (before == links.end()) continue;
        next.push_back(entry.key.link);
        level.emplace_back(std::move(entry), static_cast<size_t>(before - links.begin()));
      }
      if (level.empty()) {
        if (!found.empty()) why = GFT_CHAIN;
        break;
      }
      levels.push_back(std::move(level));
      links = std::move(next);
    }
    if (levels.size() < hashes.size())
      end = {why == GFT_OK ? GFT_NOT_FOUND : why, "the source block at position " + std::to_string(position + levels.size()) +
                                                      " of shard " + std::to_string(shard) + " in the disk log cannot be used"};
    std::vector<disk::Entry> chain(levels.size());
    size_t at = 0;
    for (size_t i = levels.size(); i-- > 0;) {
      chain[i] = std::move(levels[i][at].first);
      at = levels[i][at].second;
    }
    return std::make_unique<LogChain>(of_shard->log, std::move(chain));
  }

 private:
  // Records of that name whose identity holds; `why` when there is none.
  std::vector<disk::Entry> usable(disk::Log &log, const DigestAlgorithm &digest, uint32_t shard, const std::string &hash,
                                  uint64_t position, gft_status &why) const {
    std::vector<disk::Entry> out;
    why = GFT_NOT_FOUND;
    for (disk::Entry &entry : log.find(name_space_, shard, hash, static_cast<int64_t>(position))) {
      const disk::Key &key = entry.key;
      if (key.payload_bytes != payload_bytes_ || key.hash != hash || key.position != position || key.shard != shard ||
          key.name_space != name_space_)
        continue;
      SlotHeader header{};
      put_identity({key.name_space, key.shard, key.position, key.epoch, key.payload_bytes, key.hash, key.parent_link, key.link,
                    key.digest},
                   header);
      if (key.epoch > max_epoch_)
        why = GFT_EPOCH;
      else if (Core::link_of(digest, header) != key.link)
        why = GFT_DAMAGED;
      else
        out.push_back(std::move(entry));
      if (out.size() == kCandidates) break;
    }
    return out;
  }

  const std::vector<ShardLog> logs_;
  const Id name_space_;
  const uint64_t payload_bytes_, max_epoch_;
};

}  // namespace

std::unique_ptr<Source> log_source(std::vector<ShardLog> logs, const Id &name_space, uint64_t payload_bytes,
                                   uint64_t max_epoch) {
  return std::make_unique<LogSource>(std::move(logs), name_space, payload_bytes, max_epoch);
}

}  // namespace gft
