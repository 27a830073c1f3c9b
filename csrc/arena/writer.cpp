// Claiming, sealing and marking blocks. The order inside `publish` is the promise of the arena: payload, header, index
// and marks are in place before the one release-store that makes the block readable.
#include "writer.h"

#include <algorithm>
#include <cstring>

#include "../support/fork_guard.h"
#include "index.h"
#include "pins.h"
#include "room.h"

namespace gft {

std::shared_ptr<Writer> Writer::attach(std::shared_ptr<Core> core, uint32_t shard, const uint8_t token[16],
                                       uint32_t name_space, bool takeover) {
  core->check_writable();
  Namespace known = core->name_space(name_space);
  Lane lane = take_lane(*core, shard, token, takeover);
  return std::make_shared<Writer>(std::move(core), shard, known, std::move(lane));
}

Writer::Writer(std::shared_ptr<Core> core, uint32_t shard_, Namespace name_space_, Lane lane)
    : shard(shard_),
      epoch(lane.epoch),
      name_space(name_space_),
      core_(std::move(core)),
      lane_(lane.number),
      ticket_(lane.ticket),
      lock_(std::move(lane.lock)) {}

void Writer::check() const {
  core_->check_alive();
  check_current();
}

void Writer::check_current() const {
  if (closed_.load(std::memory_order_relaxed))
    fail(GFT_CLOSED, "the writer of shard %u was closed; attach a new one", shard);
  if (uint64_t now = core_->epoch(); now != epoch)
    fail(GFT_FENCED,
         "the writer of shard %u belongs to epoch %llu, arena %s is in epoch %llu: this engine was replaced; stop "
         "it",
         shard, (unsigned long long)epoch, core_->path(), (unsigned long long)now);
  if (Word(core_->lane(lane_)->ticket).load(std::memory_order_acquire) != ticket_)
    fail(GFT_FENCED, "another process took over writing shard %u of arena %s; stop this one", shard, core_->path());
}

void Writer::check_name(std::string_view hash, bool has_parent, uint64_t position) const {
  if (hash.empty() || hash.size() > kHashBytes)
    fail(GFT_INVALID, "a block hash of %zu bytes; it must have between 1 and %u", hash.size(), kHashBytes);
  if (has_parent != (position > 0))
    fail(GFT_INVALID, "a block at position %llu %s a parent hash; only position 0 has none", (unsigned long long)position,
         has_parent ? "with" : "without");
}

std::vector<Sealed> Writer::parents(const std::string *parent, uint64_t position) const {
  Why why;
  auto found = candidates(*core_, wanted(), *parent, static_cast<int64_t>(position - 1), why);
  if (found.empty())
    fail(GFT_NO_PARENT, "the parent of the block at position %llu of shard %u is not sealed (%s); store its prefix first",
         (unsigned long long)position, shard, why_text(why));
  // A block sealed now builds on the newest twin.
  std::sort(found.begin(), found.end(), [](auto &a, auto &b) { return a.header.epoch > b.header.epoch; });
  return found;
}

std::optional<Claimed> Writer::claim(std::string_view hash, const std::string *parent, uint64_t position) {
  check();
  check_name(hash, parent != nullptr, position);
  std::vector<Id> links;
  uint64_t tick = core_->tick(), spare = ~uint64_t{0};
  if (parent) {
    auto found = parents(parent, position);
    for (const Sealed &sealed : found) links.push_back(std::to_array(sealed.header.link));
    spare = found.front().slot;
    mark(found.front(), Mark::stamp, tick);
  } else {
    links.push_back(name_space.id);
  }
  Why why;
  for (const Sealed &there : candidates(*core_, wanted(), hash, static_cast<int64_t>(position), why))
    if (std::find(links.begin(), links.end(), std::to_array(there.header.parent_link)) != links.end()) {
      mark(there, Mark::hold, tick);
      protect(*core_, there);
      if (there.unchanged(*core_)) return std::nullopt;
    }
  Claimed claimed = reserve(hash, position, spare);
  claimed.parent_link = links.front();
  return claimed;
}

Claimed Writer::reserve(std::string_view hash, uint64_t position, uint64_t spare) {
  check_name(hash, position > 0, position);
  Claimed claimed;
  std::tie(claimed.slot, claimed.word) =
      core_->room().take({lane_, name_space.index, spare, [this] { check_current(); }});
  claimed.hash = hash;
  claimed.position = position;
  try {
    check_current();
    index_insert(*core_, index_key(*core_, name_space.id, shard, hash), claimed.word.generation, claimed.slot);
  } catch (...) {
    give_up(claimed);
    throw;
  }
  return claimed;
}

Id Writer::publish(const Claimed &claimed, const Digest &payload) {
  Identity identity{name_space.id, shard, claimed.position,    epoch, core_->geometry().slot_bytes,
                    claimed.hash,  claimed.parent_link, {}, payload};
  SlotHeader header{};
  put_identity(identity, header);
  identity.link = Core::link_of(core_->digest(), header);
  std::memcpy(header.link, identity.link.data(), 16);
  seal(claimed, header, true);
  // Blocks of this name on another parent are of a prefix that was since replaced.
  Why why;
  for (const Sealed &old : candidates(*core_, wanted(), claimed.hash, -1, why))
    if (old.slot != claimed.slot && std::to_array(old.header.parent_link) != claimed.parent_link) drop(old);
  return identity.link;
}

void Writer::seal(const Claimed &claimed, SlotHeader header, bool hold) {
  header.generation = claimed.word.generation;
  header.name_space = name_space.index;
  std::memcpy(header.seal, core_->seal_of(claimed.slot, header).data(), 16);
  try {
    check_current();
    core_->write_header(claimed.slot, header);
    core_->stamp(claimed.slot).store(use_stamp(core_->tick(), claimed.position), std::memory_order_relaxed);
    core_->hold(claimed.slot)
        .store(HoldWord{epoch, claimed.word.generation, hold ? uint64_t{1} : 0}.packed(), std::memory_order_relaxed);
    uint64_t expected = claimed.word.packed();
    if (!core_->state(claimed.slot)
             .compare_exchange_strong(expected, claimed.word.with(Slot::sealed).packed(), std::memory_order_acq_rel))
      fail(GFT_CHANGED, "slot %llu of arena %s changed hands while it was being written; the arena is damaged: remove it",
           (unsigned long long)claimed.slot, core_->path());
  } catch (...) {
    give_up(claimed);
    throw;
  }
}

void Writer::give_up(const Claimed &claimed) noexcept {
  uint64_t expected = claimed.word.packed();
  uint8_t owner = core_->owner_of(claimed.slot, claimed.word.generation);
  if (core_->state(claimed.slot)
          .compare_exchange_strong(expected, claimed.word.with(Slot::empty).packed(), std::memory_order_acq_rel))
    core_->account(owner, -1);
}

void Writer::mark(const Sealed &sealed, Mark mark, uint64_t tick) {
  uint64_t generation = StateWord::of(sealed.word).generation;
  if (mark == Mark::drop) {
    HoldWord hold = HoldWord::of(core_->hold(sealed.slot).load(std::memory_order_relaxed));
    bool ours = hold.epoch == epoch && hold.generation == (generation & 0xfff);
    if (!ours || hold.count <= 1) return drop(sealed);
    mark = Mark::release;
  }
  core_->stamp(sealed.slot).store(use_stamp(tick, sealed.header.position), std::memory_order_relaxed);
  if (mark == Mark::touch) protect(*core_, sealed);
  if (mark == Mark::touch || mark == Mark::stamp) return;
  Word word = core_->hold(sealed.slot);
  uint64_t packed = word.load(std::memory_order_relaxed);
  for (;;) {
    HoldWord hold = HoldWord::of(packed);
    bool ours = hold.epoch == epoch && hold.generation == (generation & 0xfff);
    HoldWord next = ours ? hold : HoldWord{epoch, generation, 0};
    if (mark == Mark::hold && next.count < 0xfffff) ++next.count;
    if (mark == Mark::release) {
      if (!ours || next.count == 0) return;
      --next.count;
    }
    if (word.compare_exchange_weak(packed, next.packed(), std::memory_order_relaxed)) return;
  }
}

void Writer::mark(std::span<const std::string_view> hashes, Mark how) {
  check();
  uint64_t tick = core_->tick();
  for (std::string_view hash : hashes) {
    if (hash.empty() || hash.size() > kHashBytes) continue;
    Why why;
    for (const Sealed &sealed : candidates(*core_, wanted(), hash, -1, why)) mark(sealed, how, tick);
  }
}

uint64_t Writer::pin(std::span<const std::string_view> hashes, uint32_t until) {
  check();
  std::vector<Sealed> blocks;
  for (std::string_view hash : hashes) {
    if (hash.empty() || hash.size() > kHashBytes) continue;
    Why why;
    for (const Sealed &sealed : candidates(*core_, wanted(), hash, -1, why)) blocks.push_back(sealed);
  }
  return gft::pin(*core_, blocks, until);
}

Sealed Writer::find(std::string_view hash, const std::string *parent) {
  check();
  check_name(hash, false, 0);
  Why why;
  auto found = candidates(*core_, wanted(), hash, -1, why);
  std::vector<Sealed> before;
  Why unused;
  if (parent) before = candidates(*core_, wanted(), *parent, -1, unused);
  for (const Sealed &sealed : found) {
    Id wanted_link = std::to_array(sealed.header.parent_link);
    bool fits = parent ? std::any_of(before.begin(), before.end(),
                                     [&](const Sealed &p) {
                                       return std::to_array(p.header.link) == wanted_link &&
                                              p.header.position + 1 == sealed.header.position;
                                     })
                       : wanted_link == name_space.id && sealed.header.position == 0;
    if (!fits) continue;
    mark(sealed, Mark::stamp, core_->tick());
    return sealed;
  }
  if (!found.empty())
    fail(GFT_CHAIN, "a block of that hash is sealed in arena %s, but not behind that parent; recompute from the parent on",
         core_->path());
  fail(why_status(why), "no usable block of that hash in arena %s for shard %u: %s; recompute it", core_->path(), shard,
       why_text(why));
}

void Writer::drop(const Sealed &sealed) noexcept {
  uint64_t expected = sealed.word;
  StateWord word = StateWord::of(sealed.word);
  uint8_t owner = core_->owner_of(sealed.slot, word.generation);
  if (word.state == Slot::sealed && core_->epoch() == epoch &&
      core_->state(sealed.slot).compare_exchange_strong(expected, word.with(Slot::empty).packed(), std::memory_order_acq_rel))
    core_->account(owner, -1);
}

Writer::LaneKept Writer::keep_lane() {
  std::lock_guard lock(mutex_);
  if (!lock_) fail(GFT_CLOSED, "the writer of shard %u was closed; attach a new one", shard);
  return lock_;
}

void Writer::close() {
  core_->check_alive();
  closed_.store(true, std::memory_order_relaxed);
  std::lock_guard lock(mutex_);
  lock_.reset();
}

std::unique_ptr<Claim> Claim::open(std::shared_ptr<Writer> writer, std::string_view hash, const std::string *parent,
                                   uint64_t position) {
  writer->check();
  Writer::LaneKept kept = writer->keep_lane();  // before the claim, so that its lane cannot be given back in between
  auto claimed = writer->claim(hash, parent, position);
  if (!claimed) return nullptr;
  return std::make_unique<Claim>(std::move(writer), std::move(kept), std::move(*claimed));
}

Claim::Claim(std::shared_ptr<Writer> writer, Writer::LaneKept kept, Claimed claimed)
    : writer_(std::move(writer)), kept_(std::move(kept)), claimed_(std::move(claimed)) {}

Claim::~Claim() {
  // A forked child must not give away what its parent is writing.
  if (open_ && writer_->core().file().fork_generation == fork_generation()) writer_->give_up(claimed_);
}

template <typename Publish>
auto Claim::finish(Publish publish) {
  writer_->core().check_alive();
  std::lock_guard lock(mutex_);
  if (!open_) fail(GFT_INVALID, "this claim was sealed or abandoned already; claim again");
  open_ = false;
  try {
    writer_->check();
  } catch (...) {
    writer_->give_up(claimed_);
    throw;
  }
  return publish(writer_->core().payload_digest(claimed_.slot));
}

void Claim::seal() {
  finish([this](const Digest &payload) { return writer_->publish(claimed_, payload); });
}

bool Claim::seal_as(const Identity &identity, const std::string *parent, bool hold) {
  return finish(
      [&](const Digest &payload) { return writer_->publish_as(claimed_, identity, parent, payload, hold); });
}

void Claim::abandon() {
  writer_->core().check_alive();
  std::lock_guard lock(mutex_);
  if (open_) writer_->give_up(claimed_);
  open_ = false;
}

}  // namespace gft
