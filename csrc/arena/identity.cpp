// Headers to identities and back, and the way back into the arena of a block that was sealed before.
// An identity comes from a disk or a peer: it is checked against itself, the writer and the arena before anything is sealed.
#include "identity.h"

#include <algorithm>
#include <cstring>

#include "writer.h"

namespace gft {

Identity identity_of(const SlotHeader &header) {
  Identity out;
  out.name_space = std::to_array(header.name_space_id);
  out.shard = header.shard;
  out.position = header.position;
  out.epoch = header.epoch;
  out.payload_bytes = header.payload_bytes;
  out.hash.assign(reinterpret_cast<const char *>(header.hash), std::min(header.hash_bytes, kHashBytes));
  out.parent_link = std::to_array(header.parent_link);
  out.link = std::to_array(header.link);
  out.digest = std::to_array(header.digest);
  return out;
}

void put_identity(const Identity &identity, SlotHeader &header) {
  header.epoch = identity.epoch;
  header.shard = identity.shard;
  header.position = identity.position;
  header.payload_bytes = identity.payload_bytes;
  header.hash_bytes = static_cast<uint32_t>(identity.hash.size());
  std::memcpy(header.hash, identity.hash.data(), identity.hash.size());
  std::memcpy(header.name_space_id, identity.name_space.data(), 16);
  std::memcpy(header.parent_link, identity.parent_link.data(), 16);
  std::memcpy(header.link, identity.link.data(), 16);
  std::memcpy(header.digest, identity.digest.data(), 16);
}

SlotHeader Writer::checked_header(const Claimed &claimed, const Identity &identity, const std::string *parent,
                                  const Digest &payload) const {
  auto position = (unsigned long long)identity.position;
  if (identity.hash != claimed.hash || identity.position != claimed.position)
    fail(GFT_INVALID, "slot %llu was claimed for another block than the one at position %llu; claim it by its own name",
         (unsigned long long)claimed.slot, position);
  check_name(identity.hash, parent != nullptr, identity.position);
  if (identity.shard != shard || identity.name_space != name_space.id)
    fail(GFT_INVALID, "the block at position %llu is of shard %u %s; a writer of shard %u restores only its own", position,
         identity.shard, identity.name_space == name_space.id ? "of this namespace" : "of another namespace", shard);
  if (identity.payload_bytes != core_->geometry().slot_bytes)
    fail(GFT_MISMATCH, "the block at position %llu has %llu bytes, a slot of arena %s has %llu; it is of another layout",
         position, (unsigned long long)identity.payload_bytes, core_->path(),
         (unsigned long long)core_->geometry().slot_bytes);
  if (identity.epoch > epoch)
    fail(GFT_EPOCH, "the block at position %llu was sealed in epoch %llu, newer than this writer's %llu; recompute it",
         position, (unsigned long long)identity.epoch, (unsigned long long)epoch);
  SlotHeader header{};
  put_identity(identity, header);
  if (identity.epoch == 0 || Core::link_of(core_->digest(), header) != identity.link)
    fail(GFT_DAMAGED, "the identity of the block at position %llu does not fit its link; drop it and recompute the block",
         position);
  if (payload != identity.digest)
    fail(GFT_DIGEST, "the payload of the block at position %llu is not what was sealed; drop it and recompute the block",
         position);
  bool fits = identity.parent_link == name_space.id;
  if (parent) {
    auto before = parents(parent, identity.position);  // GFT_NO_PARENT
    fits = std::any_of(before.begin(), before.end(),
                       [&](const Sealed &sealed) { return std::to_array(sealed.header.link) == identity.parent_link; });
  }
  if (!fits)
    fail(GFT_CHAIN, "the block at position %llu continues another prefix than the one in arena %s; recompute it", position,
         core_->path());
  return header;
}

bool Writer::publish_as(const Claimed &claimed, const Identity &identity, const std::string *parent, const Digest &payload,
                        bool hold) {
  SlotHeader header;
  try {
    header = checked_header(claimed, identity, parent, payload);
    Why why;
    for (const Sealed &there : candidates(*core_, wanted(), identity.hash, static_cast<int64_t>(identity.position), why))
      if (std::to_array(there.header.link) == identity.link) {
        give_up(claimed);
        return false;
      }
  } catch (...) {
    give_up(claimed);
    throw;
  }
  seal(claimed, header, hold);
  return true;
}

}  // namespace gft
