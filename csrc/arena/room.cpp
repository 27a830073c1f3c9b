// Slot transitions that take room: EMPTY -> WRITING, SEALED -> EVICTING -> WRITING, and WRITING -> EMPTY of the dead.
// Each is one compare-exchange on the state word; a slot whose writer may be alive is never touched.
#include "room.h"

#include <algorithm>

#include "pins.h"

namespace gft {

namespace {

// Each refill without a catch means that others took every candidate meanwhile; so many in a row never happen by chance.
constexpr int kRefills = 200;

}  // namespace

bool Room::Lanes::alive(const Core &core, uint8_t lane) {
  if (lane >= kLanes) return true;  // no writer of ours makes such a word: leave it alone
  // NOTE: "dead" must not be remembered. The answer counts for words that were read before the question; a new writer may
  // take the lane at any time, and what it writes from then on is alive.
  if (!known_alive.test(lane) && core.lane_alive(lane)) known_alive.set(lane);
  return known_alive.test(lane);
}

bool Room::at_quota(uint8_t owner) const {
  NamespaceRecord *record = core_.namespace_record(owner - 1u);
  uint64_t quota = Word(record->quota).load(std::memory_order_relaxed);
  uint64_t used = Word(record->used).load(std::memory_order_relaxed);
  return quota > 0 && static_cast<int64_t>(used) > 0 && used > quota;  // the slot that is wanted is counted already
}

std::pair<uint64_t, StateWord> Room::take(const Taker &taker) {
  std::lock_guard lock(mutex_);
  uint8_t owner = static_cast<uint8_t>(taker.name_space + 1);
  // NOTE: counted first, so that takers side by side cannot all see the last free place of a quota.
  core_.account(owner, 1);
  try {
    bool own = at_quota(owner);
    for (int refills = 0; refills < kRefills;) {
      std::deque<Candidate> &queue = own ? own_[owner] : queue_;
      if (queue.empty()) {
        ++refills;
        bool any = refill(queue, taker, own);
        if (!any && !own) break;
        // Where nothing of its own can go, it takes what others can spare. Or the count was wrong; the scan put it right.
        if (own && (!any || !at_quota(owner))) queue.clear(), own = false;
        continue;
      }
      Candidate candidate = queue.front();
      queue.pop_front();
      if (candidate.slot == taker.spare || !grab(candidate, taker)) continue;
      if (own) Word(core_.namespace_record(taker.name_space)->evicted).fetch_add(1, std::memory_order_relaxed);
      return {candidate.slot, StateWord::of(candidate.word).claimed(taker.lane)};
    }
  } catch (...) {
    core_.account(owner, -1);
    throw;
  }
  core_.account(owner, -1);
  fail(GFT_FULL, "arena %s: all %llu slots are pinned, are being written or are needed by this block; use more slots",
       core_.path(), (unsigned long long)core_.geometry().slots);
}

bool Room::grab(const Candidate &candidate, const Taker &taker) {
  StateWord word = StateWord::of(candidate.word);
  if (word.state == Slot::empty) {
    uint64_t expected = candidate.word;
    if (!core_.state(candidate.slot)
             .compare_exchange_strong(expected, word.claimed(taker.lane).packed(), std::memory_order_acq_rel))
      return false;
  } else if (!evict(candidate, taker)) {
    return false;
  }
  MarkWord mark{word.claimed(taker.lane).generation, 0, static_cast<uint8_t>(taker.name_space + 1), false};
  core_.mark(candidate.slot).store(mark.packed(), std::memory_order_relaxed);
  return true;
}

bool Room::evict(const Candidate &candidate, const Taker &taker) {
  Word state = core_.state(candidate.slot);
  StateWord word = StateWord::of(candidate.word);
  bool held =
      HoldWord::of(core_.hold(candidate.slot).load(std::memory_order_relaxed)).counts(core_.epoch(), word.generation);
  if (core_.stamp(candidate.slot).load(std::memory_order_relaxed) != candidate.stamp || held != candidate.held ||
      core_.mark(candidate.slot).load(std::memory_order_relaxed) != candidate.mark)
    return false;
  uint64_t expected = candidate.word;
  uint64_t evicting = word.with(Slot::evicting, taker.lane).packed();
  if (!state.compare_exchange_strong(expected, evicting, std::memory_order_acq_rel)) return false;
  try {
    taker.check();
  } catch (...) {
    expected = evicting;
    state.compare_exchange_strong(expected, word.with(Slot::sealed).packed(), std::memory_order_acq_rel);
    throw;
  }
  // Fails when the writer of a newer epoch took our half-done eviction back.
  expected = evicting;
  uint8_t owner = core_.owner_of(candidate.slot, word.generation);
  if (!state.compare_exchange_strong(expected, word.claimed(taker.lane).packed(), std::memory_order_acq_rel)) return false;
  core_.account(owner, -1);
  return true;
}

// Takes back what dead or fenced writers left half done; returns the word as it is then, or `writing` for "leave it".
StateWord Room::recovered(uint64_t slot, Lanes &lanes, uint64_t epoch, Scan &scan) {
  Word state = core_.state(slot);
  uint64_t packed = state.load(std::memory_order_acquire);
  StateWord word = StateWord::of(packed);
  StateWord leave{word.generation, 0, Slot::writing};
  if (word.state == Slot::writing) {
    if (lanes.alive(core_, word.lane)) return leave;
    StateWord cleared = word.with(Slot::empty);
    uint8_t owner = core_.owner_of(slot, word.generation);
    if (!state.compare_exchange_strong(packed, cleared.packed(), std::memory_order_acq_rel)) return leave;
    ++scan.cleared[owner];
    return cleared;
  }
  if (word.state == Slot::evicting) {
    bool stale = !lanes.alive(core_, word.lane) ||
                 (word.lane < kLanes && Word(core_.lane(word.lane)->epoch).load(std::memory_order_relaxed) < epoch);
    StateWord restored = word.with(Slot::sealed);
    return stale && state.compare_exchange_strong(packed, restored.packed(), std::memory_order_acq_rel) ? restored : leave;
  }
  return word.state == Slot::empty || word.state == Slot::sealed ? word : leave;
}

void Room::look(uint64_t slot, Lanes &lanes, uint64_t epoch, size_t batch, Scan &scan) {
  StateWord word = recovered(slot, lanes, epoch, scan);
  if (word.state == Slot::empty) {
    if (scan.empty.size() < batch) scan.empty.push_back({slot, word.packed(), 0, 0, false});
    return;
  }
  MarkWord mark = MarkWord::of(core_.mark(slot).load(std::memory_order_relaxed));
  if (!mark.belongs_to(word.generation)) mark = {};
  ++scan.usage[mark.owner].used;
  if (word.state != Slot::sealed || slot == scan.spare || (!scan.own && !scan.empty.empty())) return;
  HoldWord hold = HoldWord::of(core_.hold(slot).load(std::memory_order_relaxed));
  uint64_t stamp = core_.stamp(slot).load(std::memory_order_relaxed);
  bool held = hold.counts(epoch, word.generation);
  scan.residents.push_back(
      {stamp, static_cast<uint32_t>(slot), mark.owner, held, mark.is_protected, mark.pinned_until > scan.now});
}

// The words of a block that the policy lets go, read once more: a word that changed since the scan means that it is in use.
bool Room::still(const Resident &resident, const Scan &scan, uint64_t epoch, Candidate &out) const {
  StateWord word = StateWord::of(core_.state(resident.slot).load(std::memory_order_acquire));
  if (word.state != Slot::sealed) return false;
  HoldWord hold = HoldWord::of(core_.hold(resident.slot).load(std::memory_order_relaxed));
  out = {resident.slot, word.packed(), core_.stamp(resident.slot).load(std::memory_order_relaxed),
         core_.mark(resident.slot).load(std::memory_order_relaxed), hold.counts(epoch, word.generation)};
  MarkWord mark = MarkWord::of(out.mark);
  uint8_t owner = mark.belongs_to(word.generation) ? mark.owner : 0;
  bool is_protected = owner && mark.is_protected, pinned = owner && mark.pinned_until > scan.now;
  return out.stamp == resident.stamp && out.held == resident.held && owner == resident.owner &&
         is_protected == resident.is_protected && pinned == resident.pinned;
}

// Everything there is, or, when empty slots will do, as many of those as are wanted.
Room::Scan Room::scan(const Taker &taker, bool own, size_t batch) {
  const uint64_t slots = core_.geometry().slots, epoch = core_.epoch();
  std::array<uint64_t, kNamespaces> before;
  for (uint32_t i = 0; i < kNamespaces; ++i)
    before[i] = Word(core_.namespace_record(i)->used).load(std::memory_order_relaxed);
  Scan out;
  out.own = own;
  out.spare = taker.spare;
  out.now = wall_clock();
  Lanes lanes;
  uint64_t slot = cursor_ < slots ? cursor_ : 0;
  for (uint64_t seen = 0; seen < slots && out.whole; ++seen, slot = slot + 1 < slots ? slot + 1 : 0) {
    look(slot, lanes, epoch, batch, out);
    out.whole = own || out.empty.size() < batch;
  }
  cursor_ = slot;
  for (uint32_t i = 0; i < kNamespaces; ++i) {
    Usage &usage = out.usage[i + 1];
    usage.quota = Word(core_.namespace_record(i)->quota).load(std::memory_order_relaxed);
    if (out.whole) usage.used += i == taker.name_space;  // the slot that is wanted
    auto wrong = out.whole ? static_cast<int64_t>(usage.used - before[i]) : -out.cleared[i + 1];
    if (wrong != 0) core_.account(static_cast<uint8_t>(i + 1), wrong);
  }
  return out;
}

// Whether there was anything to choose from; what changed hands since the scan is not put into the queue.
bool Room::refill(std::deque<Candidate> &queue, const Taker &taker, bool own) {
  // A queue is as old as its scan: the smaller it is, the nearer its order is to what the policy says now.
  const uint64_t slots = core_.geometry().slots;
  const size_t batch = std::max<size_t>(1, slots / 64);
  uint8_t owner = static_cast<uint8_t>(taker.name_space + 1);
  Scan found = scan(taker, own, batch);
  if (!own && !found.empty.empty()) {
    queue.assign(found.empty.begin(), found.empty.end());
    return true;
  }
  CapsWord caps = CapsWord::of(Word(core_.control()->caps).load(std::memory_order_relaxed));
  auto order = eviction_order(found.residents, slots, caps, found.usage, own ? owner : 0, batch);
  Candidate candidate;
  for (size_t i : order)
    if (still(found.residents[i], found, core_.epoch(), candidate)) queue.push_back(candidate);
  return !order.empty();
}

void clear_lane(Core &core, uint8_t lane) {
  for (uint64_t slot = 0; slot < core.geometry().slots; ++slot) {
    uint64_t packed = core.state(slot).load(std::memory_order_relaxed);
    StateWord word = StateWord::of(packed);
    if (word.lane != lane) continue;
    uint8_t owner = core.owner_of(slot, word.generation);
    if (word.state == Slot::writing) {
      if (core.state(slot).compare_exchange_strong(packed, word.with(Slot::empty).packed(), std::memory_order_acq_rel))
        core.account(owner, -1);
    } else if (word.state == Slot::evicting) {
      core.state(slot).compare_exchange_strong(packed, word.with(Slot::sealed).packed(), std::memory_order_acq_rel);
    }
  }
}

}  // namespace gft
