// Slot transitions that take room: EMPTY -> WRITING, SEALED -> EVICTING -> WRITING, and WRITING -> EMPTY of the dead.
// Each is one compare-exchange on the state word; a slot whose writer may be alive is never touched.
#include "room.h"

#include <algorithm>

namespace gft {

bool Room::Lanes::alive(const Core &core, uint8_t lane) {
  if (lane >= kLanes) return true;  // no writer of ours makes such a word: leave it alone
  // NOTE: "dead" must not be remembered. The answer counts for words that were read before the question; a new writer may
  // take the lane at any time, and what it writes from then on is alive.
  if (!known_alive.test(lane) && core.lane_alive(lane)) known_alive.set(lane);
  return known_alive.test(lane);
}

std::pair<uint64_t, StateWord> Room::take(uint8_t lane, const std::vector<uint64_t> &spare,
                                          const std::function<void()> &check) {
  std::lock_guard lock(mutex_);
  for (int refills = 0;;) {
    if (queue_.empty()) {
      if (++refills > 2) break;
      refill();
      continue;
    }
    Candidate candidate = queue_.front();
    queue_.pop_front();
    if (std::find(spare.begin(), spare.end(), candidate.slot) != spare.end()) continue;
    StateWord word = StateWord::of(candidate.word);
    StateWord next = word.claimed(lane);
    if (word.state == Slot::empty) {
      uint64_t expected = candidate.word;
      if (core_.state(candidate.slot).compare_exchange_strong(expected, next.packed(), std::memory_order_acq_rel))
        return {candidate.slot, next};
    } else if (evict(candidate, lane, check)) {
      return {candidate.slot, next};
    }
  }
  fail(GFT_FULL, "arena %s: all %llu slots are being written or are needed by this block; use more slots", core_.path(),
       (unsigned long long)core_.geometry().slots);
}

bool Room::evict(const Candidate &candidate, uint8_t lane, const std::function<void()> &check) {
  Word state = core_.state(candidate.slot);
  StateWord word = StateWord::of(candidate.word);
  bool held =
      HoldWord::of(core_.hold(candidate.slot).load(std::memory_order_relaxed)).counts(core_.epoch(), word.generation);
  if (core_.stamp(candidate.slot).load(std::memory_order_relaxed) != candidate.stamp || held != candidate.held) return false;
  uint64_t expected = candidate.word;
  uint64_t evicting = word.with(Slot::evicting, lane).packed();
  if (!state.compare_exchange_strong(expected, evicting, std::memory_order_acq_rel)) return false;
  try {
    check();
  } catch (...) {
    expected = evicting;
    state.compare_exchange_strong(expected, word.with(Slot::sealed).packed(), std::memory_order_acq_rel);
    throw;
  }
  // Fails when the writer of a newer epoch took our half-done eviction back.
  expected = evicting;
  return state.compare_exchange_strong(expected, word.claimed(lane).packed(), std::memory_order_acq_rel);
}

// Takes back what dead or fenced writers left half done; returns the word as it is then, or `writing` for "leave it".
StateWord Room::recovered(uint64_t slot, Lanes &lanes, uint64_t epoch) {
  Word state = core_.state(slot);
  uint64_t packed = state.load(std::memory_order_acquire);
  StateWord word = StateWord::of(packed);
  constexpr StateWord kLeave{0, 0, Slot::writing};
  if (word.state == Slot::writing) {
    if (lanes.alive(core_, word.lane)) return kLeave;
    StateWord cleared = word.with(Slot::empty);
    return state.compare_exchange_strong(packed, cleared.packed(), std::memory_order_acq_rel) ? cleared : kLeave;
  }
  if (word.state == Slot::evicting) {
    bool stale = !lanes.alive(core_, word.lane) ||
                 (word.lane < kLanes && Word(core_.lane(word.lane)->epoch).load(std::memory_order_relaxed) < epoch);
    StateWord restored = word.with(Slot::sealed);
    return stale && state.compare_exchange_strong(packed, restored.packed(), std::memory_order_acq_rel) ? restored : kLeave;
  }
  return word.state == Slot::empty || word.state == Slot::sealed ? word : kLeave;
}

void Room::refill() {
  const uint64_t slots = core_.geometry().slots, epoch = core_.epoch();
  const size_t batch = std::max<size_t>(64, slots / 64);
  auto older = [](const Candidate &a, const Candidate &b) { return a.held != b.held ? b.held : a.stamp < b.stamp; };
  auto keep_oldest = [&](std::vector<Candidate> &all) {
    if (all.size() <= batch) return;
    std::nth_element(all.begin(), all.begin() + static_cast<ptrdiff_t>(batch), all.end(), older);
    all.resize(batch);
  };
  Lanes lanes;
  std::vector<Candidate> empty, sealed;
  uint64_t slot = cursor_ < slots ? cursor_ : 0;
  for (uint64_t seen = 0; seen < slots && empty.size() < batch; ++seen, slot = slot + 1 < slots ? slot + 1 : 0) {
    StateWord word = recovered(slot, lanes, epoch);
    if (word.state == Slot::empty) {
      empty.push_back({slot, word.packed(), 0, false});
    } else if (word.state == Slot::sealed && empty.empty()) {
      HoldWord hold = HoldWord::of(core_.hold(slot).load(std::memory_order_relaxed));
      uint64_t stamp = core_.stamp(slot).load(std::memory_order_relaxed);
      sealed.push_back({slot, word.packed(), stamp, hold.counts(epoch, word.generation)});
      if (sealed.size() >= 4 * batch) keep_oldest(sealed);
    }
  }
  cursor_ = slot;
  if (!empty.empty()) {
    queue_.assign(empty.begin(), empty.end());
    return;
  }
  keep_oldest(sealed);
  std::sort(sealed.begin(), sealed.end(), older);
  queue_.assign(sealed.begin(), sealed.end());
}

void clear_lane(Core &core, uint8_t lane) {
  for (uint64_t slot = 0; slot < core.geometry().slots; ++slot) {
    uint64_t packed = core.state(slot).load(std::memory_order_relaxed);
    StateWord word = StateWord::of(packed);
    if (word.lane != lane) continue;
    if (word.state == Slot::writing)
      core.state(slot).compare_exchange_strong(packed, word.with(Slot::empty).packed(), std::memory_order_acq_rel);
    else if (word.state == Slot::evicting)
      core.state(slot).compare_exchange_strong(packed, word.with(Slot::sealed).packed(), std::memory_order_acq_rel);
  }
}

}  // namespace gft
