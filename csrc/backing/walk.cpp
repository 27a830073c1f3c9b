// The walk of chain.cpp over two places. A record of the log is believed as far as its link holds for itself: the log has
// checked its bytes, this file checks that identity, name, epoch and parent are the ones asked for.
#include "walk.h"

#include <algorithm>
#include <optional>

namespace gft {

Identity identity_of(const disk::Key &key) {
  return {key.name_space, key.shard, key.position, key.epoch, key.payload_bytes, key.hash, key.parent_link, key.link, key.digest};
}

namespace {

SlotHeader header_of(const disk::Key &key) {
  SlotHeader header{};
  put_identity(identity_of(key), header);
  return header;
}

Why judge(const Shape &shape, const disk::Key &key, const Wanted &wanted, std::string_view hash, uint64_t position) {
  if (key.hash.size() > kHashBytes || key.hash != hash || key.shard != wanted.shard) return Why::missing;
  if (key.name_space != wanted.name_space.id) return Why::name_space;
  if (key.payload_bytes != shape.payload_bytes || Core::link_of(*shape.digest, header_of(key)) != key.link)
    return Why::damaged;
  if (key.epoch > wanted.max_epoch) return Why::epoch;
  return key.position == position ? Why::ok : Why::chain;
}

}  // namespace

Id Place::link() const { return on_disk ? entry.key.link : std::to_array(sealed.header.link); }
Id Place::parent_link() const { return on_disk ? entry.key.parent_link : std::to_array(sealed.header.parent_link); }

std::vector<Place> BackedWalk::places(std::string_view hash, uint64_t position, Why &why) const {
  std::vector<Place> found;
  why = Why::missing;
  if (core_)
    for (Sealed &sealed : candidates(*core_, wanted_, hash, static_cast<int64_t>(position), why)) {
      found.push_back({});
      found.back().sealed = std::move(sealed);
    }
  if (!log_) return found;
  for (disk::Entry &entry : log_->find(wanted_.name_space.id, wanted_.shard, hash, static_cast<int64_t>(position))) {
    if (found.size() >= kCandidates) break;
    Why answer = judge(shape_, entry.key, wanted_, hash, position);
    bool twin = std::any_of(found.begin(), found.end(), [&](const Place &p) { return p.link() == entry.key.link; });
    if (answer != Why::ok || twin) {
      why = std::max(why, answer);
      continue;
    }
    found.push_back({});
    found.back().on_disk = true;
    found.back().entry = std::move(entry);
  }
  return found;
}

Why BackedWalk::start(const std::string *parent, uint64_t position) {
  return levels_.start(wanted_.name_space.id, parent, position,
                       [this](std::string_view hash, uint64_t at, Why &why) { return places(hash, at, why); });
}

Why BackedWalk::step(std::string_view hash) {
  return levels_.step(hash, [this](std::string_view name, uint64_t at, Why &why) { return places(name, at, why); });
}

namespace {

// The record's number in the arena; nothing when the arena does not know it. A damaged record is none.
std::optional<Namespace> known_namespace(Core &core, const Id &id) {
  for (uint32_t i = core.namespace_count(); i-- > 0;) {
    try {
      if (Namespace known = core.name_space(i); known.id == id) return known;
    } catch (const Fail &) {
    }
  }
  return std::nullopt;
}

// The algorithm all places use; the arena's counts when there is one.
const DigestAlgorithm *digest_of(const Core *core, std::span<disk::Log *const> logs) {
  if (core) return &core->digest();
  for (const disk::Log *log : logs)
    if (log)
      if (const DigestAlgorithm *found = find_digest(log->stats().digest.c_str())) return found;
  return nullptr;
}

}  // namespace

BackedAnswer backed_prefix(Core *core, std::span<disk::Log *const> logs, std::string_view record, uint64_t payload_bytes,
                           std::span<const uint32_t> shards, std::span<const std::string_view> hashes, uint64_t max_epoch) {
  if (!logs.empty() && logs.size() != shards.size())
    fail(GFT_INVALID, "%zu disk logs for %zu shards; pass one per shard, or none", logs.size(), shards.size());
  BackedAnswer answer;
  answer.why = Why::missing;
  answer.shard = shards.empty() ? -1 : static_cast<int64_t>(shards[0]);
  const DigestAlgorithm *digest = digest_of(core, logs);
  if (shards.empty() || !digest) return answer;
  Namespace known{~uint32_t{0}, digest->of(record.data(), record.size())};
  if (core) {
    core->check_alive();
    auto found = known_namespace(*core, known.id);
    if (found) known = *found;
    if (!found || core->geometry().slot_bytes != payload_bytes) core = nullptr;
  }
  Shape shape{payload_bytes, digest};
  std::vector<BackedWalk> walks;
  for (size_t k = 0; k < shards.size(); ++k) {
    walks.emplace_back(core, logs.empty() ? nullptr : logs[k], Wanted{known, shards[k], max_epoch}, shape);
    walks.back().start(nullptr, 0);
  }
  answer = {hashes.size(), Why::ok, -1, {}};
  for (size_t i = 0; i < hashes.size() && answer.shard < 0; ++i)
    for (size_t k = 0; k < walks.size(); ++k)
      if (Why why = walks[k].step(hashes[i]); why != Why::ok) {
        answer = {i, why, static_cast<int64_t>(shards[k]), {}};
        break;
      }
  answer.on_disk.assign(answer.blocks, false);
  for (const BackedWalk &walk : walks) {
    auto chain = walk.chain();
    for (uint64_t i = 0; i < answer.blocks; ++i)
      if (chain[i].on_disk) answer.on_disk[i] = true;
  }
  return answer;
}

}  // namespace gft
