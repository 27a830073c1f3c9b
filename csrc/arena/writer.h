// A shard's right to write in one epoch: claims, seals, holds, and reads of its own blocks.
// Every change starts and ends with the question whether the epoch and the ticket still stand.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "chain.h"
#include "core.h"
#include "epochs.h"
#include "identity.h"

namespace gft {

// A slot in WRITING that belongs to this writer, and what will be sealed in it.
struct Claimed {
  uint64_t slot = 0;
  StateWord word{};
  std::string hash;
  uint64_t position = 0;
  Id parent_link{};
};

class Writer {
 public:
  static std::shared_ptr<Writer> attach(std::shared_ptr<Core> core, uint32_t shard, const uint8_t token[16],
                                        uint32_t name_space, bool takeover);
  Writer(std::shared_ptr<Core> core, uint32_t shard, Namespace name_space, Lane lane);

  Core &core() const { return *core_; }
  const uint32_t shard;
  const uint64_t epoch;
  const Namespace name_space;
  Wanted wanted() const { return {name_space, shard, epoch}; }

  // Throws GFT_FENCED, GFT_CLOSED, GFT_FORKED, GFT_DAMAGED (cut file). Asks the kernel: once per block is enough.
  void check() const;
  // Throws GFT_FENCED, GFT_CLOSED. Two loads: asked before every step that cannot be undone.
  void check_current() const;

  // Nothing when an equal block with the right parent is sealed; that one was stamped and held.
  std::optional<Claimed> claim(std::string_view hash, const std::string *parent, uint64_t position);
  // A slot for a block whose parent is still being copied; its parent link is filled in before `publish`.
  Claimed reserve(std::string_view hash, uint64_t position, uint64_t spare);
  // Seals with the digest of the payload; returns the new link. On any failure the slot is given up first.
  Id publish(const Claimed &claimed, const Digest &payload);
  // Seals a block under the identity it had when it was sealed first. `parent` names the block before it, null at position
  // 0; that one must be sealed here with the link that the identity continues. False when a block with this very link is
  // sealed already. GFT_INVALID (of another namespace, shard or claim), GFT_MISMATCH, GFT_EPOCH, GFT_DAMAGED (the identity
  // contradicts itself), GFT_DIGEST, GFT_NO_PARENT, GFT_CHAIN. The slot is given up whenever it is not sealed.
  bool publish_as(const Claimed &claimed, const Identity &identity, const std::string *parent, const Digest &payload,
                  bool hold);
  void give_up(const Claimed &claimed) noexcept;

  // `stamp` only makes a block younger; `touch` says that another request used it, which protects it; `drop` is a release that
  // takes the block out of the arena when nobody else holds it.
  enum class Mark { hold, release, touch, stamp, drop };
  void mark(std::span<const std::string_view> hashes, Mark mark);
  void mark(const Sealed &sealed, Mark mark, uint64_t tick);
  // Pins what is sealed under these names until a time in seconds since 1970, 0: not at all. Returns how many blocks are
  // pinned then; GFT_FULL, and nothing is changed, above the cap. Linear in the slots.
  uint64_t pin(std::span<const std::string_view> hashes, uint32_t until);
  Sealed find(std::string_view hash, const std::string *parent);
  // Takes a block whose payload is not what was sealed out of the arena, so that it can be stored again.
  void drop(const Sealed &sealed) noexcept;

  void close();

  // Held while a claim of this writer is open: the lane's lock outlives `close` for so long.
  using LaneKept = std::shared_ptr<void>;
  LaneKept keep_lane();

 private:
  void check_name(std::string_view hash, bool has_parent, uint64_t position) const;
  std::vector<Sealed> parents(const std::string *parent, uint64_t position) const;
  SlotHeader checked_header(const Claimed &claimed, const Identity &identity, const std::string *parent,
                            const Digest &payload) const;
  // The last steps of both ways to publish; fills in what belongs to the slot. On any failure the slot is given up first.
  void seal(const Claimed &claimed, SlotHeader header, bool hold);

  const std::shared_ptr<Core> core_;
  const uint8_t lane_;
  const uint64_t ticket_;
  std::atomic<bool> closed_{false};
  std::mutex mutex_;
  std::shared_ptr<LockFile> lock_;
};

// A claim as the door hands it out: sealed, abandoned, or abandoned when dropped.
class Claim {
 public:
  // Null when an equal block is sealed already.
  static std::unique_ptr<Claim> open(std::shared_ptr<Writer> writer, std::string_view hash, const std::string *parent,
                                     uint64_t position);
  Claim(std::shared_ptr<Writer> writer, Writer::LaneKept kept, Claimed claimed);
  ~Claim();
  void seal();
  bool seal_as(const Identity &identity, const std::string *parent, bool hold);  // as Writer::publish_as
  void abandon();
  uint64_t slot() const { return claimed_.slot; }
  uint8_t *payload() const { return writer_->core().payload(claimed_.slot); }

 private:
  template <typename Publish>
  auto finish(Publish publish);

  std::mutex mutex_;
  const std::shared_ptr<Writer> writer_;
  const Writer::LaneKept kept_;
  const Claimed claimed_;
  bool open_ = true;
};

}  // namespace gft
