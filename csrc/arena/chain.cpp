// Reading headers without locks: state word, header, state word again, then seal, then link.
// Whatever does not hold ends the walk with its reason; nothing is trusted because it was found in the index.
#include "chain.h"

#include <algorithm>
#include <cstring>

#include "index.h"

namespace gft {

bool Sealed::unchanged(const Core &core) const {
  std::atomic_thread_fence(std::memory_order_acquire);
  StateWord now = StateWord::of(core.state(slot).load(std::memory_order_relaxed));
  return now.readable() && now.generation == StateWord::of(word).generation;
}

const char *why_text(Why why) {
  static constexpr const char *texts[] = {"missing", "writing", "namespace", "damaged", "epoch", "chain", "complete"};
  return texts[static_cast<int>(why)];
}

gft_status why_status(Why why) {
  static constexpr gft_status codes[] = {GFT_NOT_FOUND, GFT_NOT_FOUND, GFT_NOT_FOUND, GFT_DAMAGED,
                                         GFT_EPOCH,     GFT_CHAIN,     GFT_OK};
  return codes[static_cast<int>(why)];
}

Why read_sealed(const Core &core, uint64_t slot, StateWord word, const Wanted &wanted, Sealed &out) {
  if (!word.readable()) return word.state == Slot::writing ? Why::writing : Why::missing;
  out.slot = slot;
  out.word = word.packed();
  out.header = core.read_header(slot);
  if (!out.unchanged(core)) return Why::missing;
  const SlotHeader &header = out.header;
  if (core.seal_of(slot, header) != std::to_array(header.seal) || header.generation != word.generation ||
      header.hash_bytes == 0 || header.hash_bytes > kHashBytes || header.payload_bytes != core.geometry().slot_bytes ||
      Core::link_of(core.digest(), header) != std::to_array(header.link))
    return Why::damaged;
  if (std::to_array(header.name_space_id) != wanted.name_space.id || header.name_space != wanted.name_space.index)
    return Why::name_space;
  if (header.shard != wanted.shard) return Why::missing;
  if (header.epoch > wanted.max_epoch) return Why::epoch;
  return Why::ok;
}

std::vector<Sealed> candidates(const Core &core, const Wanted &wanted, std::string_view hash, int64_t position, Why &why) {
  std::vector<Sealed> found;
  why = Why::missing;
  index_probe(core, index_key(core, wanted.name_space.id, wanted.shard, hash), [&](uint64_t slot, StateWord word) {
    Sealed sealed;
    Why answer = read_sealed(core, slot, word, wanted, sealed);
    if (answer == Why::ok || answer == Why::epoch) {
      const SlotHeader &header = sealed.header;
      if (header.hash_bytes != hash.size() || std::memcmp(header.hash, hash.data(), hash.size()) != 0)
        answer = Why::missing;  // another block with the same tag
      else if (position >= 0 && header.position != static_cast<uint64_t>(position))
        answer = Why::chain;
    }
    why = std::max(why, answer);
    if (answer == Why::ok) found.push_back(sealed);
    return found.size() < kCandidates;
  });
  return found;
}

Why ChainWalk::start(const std::string *parent, uint64_t position) {
  return levels_.start(wanted_.name_space.id, parent, position, [this](std::string_view hash, uint64_t at, Why &why) {
    return candidates(core_, wanted_, hash, static_cast<int64_t>(at), why);
  });
}

Why ChainWalk::step(std::string_view hash) {
  return levels_.step(hash, [this](std::string_view name, uint64_t at, Why &why) {
    return candidates(core_, wanted_, name, static_cast<int64_t>(at), why);
  });
}

PrefixAnswer usable_prefix(Core &core, uint32_t name_space, std::span<const uint32_t> shards,
                           std::span<const std::string_view> hashes, uint64_t max_epoch) {
  core.check_alive();
  Namespace known = core.name_space(name_space);
  std::vector<ChainWalk> walks;
  for (uint32_t shard : shards) {
    walks.emplace_back(core, Wanted{known, shard, max_epoch});
    walks.back().start(nullptr, 0);
  }
  for (size_t i = 0; i < hashes.size(); ++i)
    for (size_t k = 0; k < walks.size(); ++k)
      if (Why why = walks[k].step(hashes[i]); why != Why::ok) return {i, why, shards[k]};
  return {hashes.size(), Why::ok, -1};
}

}  // namespace gft
