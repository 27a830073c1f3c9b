// Blocks of another namespace or of another arena as the source of a conversion.
// A live engine may evict them at any moment: each payload is copied to private memory and the digest is taken of that copy,
// so what is converted later is what was verified. Checking in place and converting afterwards would leave a gap between.
#include <algorithm>
#include <cstring>

#include "../support/optimistic.h"
#include "source.h"

namespace gft {
namespace {

// Short enough that the digest finds in the first-level cache what was copied just before; 8 KiB were a tenth slower.
constexpr uint64_t kChunk = 4096;

class ArenaChain : public SourceChain {
 public:
  ArenaChain(std::shared_ptr<Core> core, std::vector<Sealed> blocks) : core_(std::move(core)), blocks_(std::move(blocks)) {}

  size_t length() const override { return blocks_.size(); }
  const std::vector<Sealed> &blocks() const { return blocks_; }

  // The digest covers the whole payload, so all of it is copied.
  Outcome read(size_t index, std::span<const ByteRange>, uint8_t *to, std::chrono::steady_clock::time_point) override {
    const Sealed &sealed = blocks_[index];
    const Outcome changed{GFT_CHANGED, "a source block was evicted while it was being converted"};
    try {
      core_->check_alive();
      if (!sealed.unchanged(*core_)) return changed;
      core_->prefault_payload(sealed.slot);
      Digest digest = copy(core_->payload(sealed.slot), to);
      if (digest == std::to_array(sealed.header.digest)) return {};
      if (!sealed.unchanged(*core_)) return changed;
      return {GFT_DIGEST, "the payload in slot " + std::to_string(sealed.slot) + " of arena " + core_->path() +
                              " is not what was sealed; recompute from position " +
                              std::to_string(sealed.header.position) + " of the source on"};
    } catch (...) {
      Fail why = current_failure();
      return {why.code, why.text};
    }
  }

 private:
  Digest copy(const uint8_t *from, uint8_t *to) const {
    OptimisticRead slot_may_be_given_away;
    DigestState state;
    Digest out;
    core_->digest().start(state);
    for (uint64_t at = 0, bytes = core_->geometry().slot_bytes; at < bytes; at += kChunk) {
      uint64_t chunk = std::min(kChunk, bytes - at);
      std::memcpy(to + at, from + at, chunk);
      core_->digest().update(state, to + at, chunk);
    }
    core_->digest().finish(state, out.data());
    return out;
  }

  const std::shared_ptr<Core> core_;
  const std::vector<Sealed> blocks_;
};

class ArenaSource : public Source {
 public:
  ArenaSource(std::shared_ptr<Core> core, Namespace name_space, uint64_t max_epoch)
      : core_(std::move(core)), name_space_(name_space), max_epoch_(max_epoch) {}

  const char *where() const override { return core_->path(); }
  uint64_t payload_bytes() const override { return core_->geometry().slot_bytes; }
  bool reads_all() const override { return true; }

  std::unique_ptr<SourceChain> find(uint32_t shard, const std::string *parent, uint64_t position,
                                    std::span<const std::string> hashes, Outcome &end) override {
    core_->check_alive();
    ChainWalk walk(*core_, {name_space_, shard, max_epoch_});
    Why why = walk.start(parent, position);
    for (size_t i = 0; why == Why::ok && i < hashes.size(); ++i) why = walk.step(hashes[i]);
    if (why != Why::ok)
      end = {why_status(why), "the source block at position " + std::to_string(position + walk.length()) + " of shard " +
                                  std::to_string(shard) + " in arena " + core_->path() + " cannot be used: " + why_text(why)};
    return std::make_unique<ArenaChain>(core_, walk.chain());
  }

  void keep(const SourceChain &chain, Writer &writer) override {
    Core &target = writer.core();
    if (std::memcmp(target.file().id, core_->file().id, sizeof target.file().id) != 0) return;
    // In the same arena, new blocks must not push out what is still to be read: what is read first becomes the oldest.
    uint64_t tick = target.tick(), last = (uint64_t{1} << 24) - 1, number = 0;
    for (const Sealed &sealed : static_cast<const ArenaChain &>(chain).blocks())
      target.stamp(sealed.slot).store(use_stamp(tick, last - std::min(number++, last)), std::memory_order_relaxed);
  }

 private:
  const std::shared_ptr<Core> core_;
  const Namespace name_space_;
  const uint64_t max_epoch_;
};

}  // namespace

std::unique_ptr<Source> arena_source(std::shared_ptr<Core> core, uint32_t name_space, uint64_t max_epoch) {
  Namespace known = core->name_space(name_space);
  return std::make_unique<ArenaSource>(std::move(core), known, max_epoch);
}

}  // namespace gft
