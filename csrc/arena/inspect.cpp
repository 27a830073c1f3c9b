// Scans for people and tests. A slot that changes while it is looked at is reported as what it was when its header was read.
#include "inspect.h"

#include <cstring>

#include "../support/optimistic.h"
#include "chain.h"
#include "pins.h"

namespace gft {
namespace {

bool seal_holds(Core &core, uint64_t slot, StateWord word, const SlotHeader &header) {
  return core.seal_of(slot, header) == std::to_array(header.seal) && header.generation == word.generation &&
         header.hash_bytes > 0 && header.hash_bytes <= kHashBytes && header.payload_bytes == core.geometry().slot_bytes &&
         core.names_its_namespace(header);
}

bool is_held(const Core &core, uint64_t slot, StateWord word, uint64_t epoch) {
  return word.readable() && HoldWord::of(core.hold(slot).load(std::memory_order_relaxed)).counts(epoch, word.generation);
}

MarkWord mark_of(const Core &core, uint64_t slot, StateWord word) {
  MarkWord mark = MarkWord::of(core.mark(slot).load(std::memory_order_relaxed));
  return mark.belongs_to(word.generation) ? mark : MarkWord{};
}

}  // namespace

gft_counts count_slots(const Core &core) {
  core.check_alive();
  gft_counts counts{};
  uint64_t epoch = core.epoch(), now = wall_clock();
  for (uint64_t slot = 0; slot < core.geometry().slots; ++slot) {
    StateWord word = StateWord::of(core.state(slot).load(std::memory_order_relaxed));
    if (word.state == Slot::empty)
      ++counts.empty;
    else if (word.readable())
      ++counts.sealed;
    else
      ++counts.writing;
    counts.held += is_held(core, slot, word, epoch);
    if (!word.readable()) continue;
    MarkWord mark = mark_of(core, slot, word);
    counts.is_protected += mark.is_protected;
    counts.pinned += mark.pinned_until > now;
  }
  return counts;
}

std::vector<gft_slot_info> scan_slots(Core &core) {
  core.check_alive();
  std::vector<gft_slot_info> out;
  uint64_t epoch = core.epoch();
  for (uint64_t slot = 0; slot < core.geometry().slots; ++slot) {
    StateWord word = StateWord::of(core.state(slot).load(std::memory_order_acquire));
    if (word.state == Slot::empty) continue;
    gft_slot_info info{};
    info.slot = slot;
    info.state = word.readable() ? "sealed" : "writing";
    info.name_space = -1;
    info.generation = word.generation;
    info.last_used = core.stamp(slot).load(std::memory_order_relaxed);
    info.held = is_held(core, slot, word, epoch);
    MarkWord mark = mark_of(core, slot, word);
    info.is_protected = word.readable() && mark.is_protected;
    info.pinned_until = word.readable() && mark.pinned_until > wall_clock() ? mark.pinned_until : 0;
    SlotHeader header = core.read_header(slot);
    if (word.readable() && seal_holds(core, slot, word, header)) {
      info.name_space = header.name_space;
      info.shard = header.shard;
      info.position = header.position;
      info.epoch = header.epoch;
      info.payload_bytes = header.payload_bytes;
      info.hash_bytes = header.hash_bytes;
      std::memcpy(info.block_hash, header.hash, header.hash_bytes);
    }
    out.push_back(info);
  }
  return out;
}

std::vector<gft_usage> count_usage(const Core &core) {
  core.check_alive();
  std::vector<gft_usage> out(core.namespace_count());
  for (uint32_t i = 0; i < out.size(); ++i) {
    out[i].quota = Word(core.namespace_record(i)->quota).load(std::memory_order_relaxed);
    out[i].evicted = Word(core.namespace_record(i)->evicted).load(std::memory_order_relaxed);
  }
  for (uint64_t slot = 0; slot < core.geometry().slots; ++slot) {
    StateWord word = StateWord::of(core.state(slot).load(std::memory_order_relaxed));
    if (word.state == Slot::empty) continue;
    uint8_t owner = mark_of(core, slot, word).owner;
    if (owner > 0 && owner <= out.size()) ++out[owner - 1u].used;
  }
  return out;
}

const char *verify_slot(Core &core, uint64_t slot) {
  core.check_alive();
  if (slot >= core.geometry().slots)
    fail(GFT_INVALID, "arena %s has no slot %llu, only %llu", core.path(), (unsigned long long)slot,
         (unsigned long long)core.geometry().slots);
  StateWord word = StateWord::of(core.state(slot).load(std::memory_order_acquire));
  if (!word.readable()) return "empty";
  Sealed sealed{slot, word.packed(), core.read_header(slot)};
  if (!sealed.unchanged(core)) return "changed";
  if (!seal_holds(core, slot, word, sealed.header)) return "seal";
  bool equal = core.payload_digest(slot) == std::to_array(sealed.header.digest);
  if (!sealed.unchanged(core)) return "changed";
  return equal ? "ok" : "digest";
}

SlotHeader read_slot(Core &core, uint64_t slot, uint8_t *to) {
  core.check_alive();
  auto number = (unsigned long long)slot;
  StateWord word{};
  if (slot < core.geometry().slots) word = StateWord::of(core.state(slot).load(std::memory_order_acquire));
  if (!word.readable()) fail(GFT_NOT_FOUND, "no block is sealed in slot %llu of arena %s; scan it again", number, core.path());
  Sealed sealed{slot, word.packed(), core.read_header(slot)};
  auto still_there = [&] {
    if (!sealed.unchanged(core))
      fail(GFT_CHANGED, "slot %llu of arena %s was given away while it was being read; scan it again", number, core.path());
  };
  still_there();
  if (!seal_holds(core, slot, word, sealed.header) ||
      Core::link_of(core.digest(), sealed.header) != std::to_array(sealed.header.link))
    fail(GFT_DAMAGED, "the header in slot %llu of arena %s does not hold; recompute the block", number, core.path());
  if (!to) return sealed.header;
  {
    OptimisticRead slot_may_be_given_away;
    std::memcpy(to, core.payload(slot), core.geometry().slot_bytes);
  }
  // The digest of the copy: what it says holds whatever becomes of the slot.
  if (core.digest().of(to, core.geometry().slot_bytes) == std::to_array(sealed.header.digest)) return sealed.header;
  still_there();
  fail(GFT_DIGEST, "the payload in slot %llu of arena %s is not what was sealed; recompute the block", number, core.path());
}

}  // namespace gft
