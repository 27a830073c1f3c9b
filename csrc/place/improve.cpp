// Lowers the load of the busiest rank by one change: a spare copy elsewhere becomes one of its hot experts, it swaps a copy with an
// idle rank, or two experts swap their groups. What a change would gain is reckoned first, whether it is allowed is asked last.
#include <algorithm>
#include <numeric>

#include "steps.h"

namespace gft::place {
namespace {

constexpr size_t kIdle = 4, kManyIdle = 16;  // ranks with least to do that a swap is tried with; more where it is all that may be done

enum class Kind { none, replace, swap, exchange };

struct Change {
  Kind kind = Kind::none;
  int64_t gain = 0;    // units per changed slot by which the busiest of the ranks concerned has less
  uint32_t slots = 0;  // that change
  uint32_t hot = kNone, here = kNone;   // an expert of the busiest rank, and its slot
  uint32_t there = kNone;               // the slot that it gets
  uint32_t cold = kNone, group = kNone;  // exchange: the expert that comes in return, and its group
};

// An occupied slot, or an empty one (expert kNone).
struct Held {
  uint32_t slot, expert;
  int64_t share;
};

class Search {
 public:
  Search(Layer &layer, std::span<const uint8_t> alive, uint64_t moves, int64_t least, size_t idle)
      : layer_(layer), alive_(alive), moves_(moves), busy_(layer.busiest()), top_(layer.load[busy_]) {
    best_.gain = std::max<int64_t>(least, 1) - 1;
    for (const Held &held : on_rank(busy_))
      if (held.expert != kNone) mine_.push_back(held);
    std::stable_sort(mine_.begin(), mine_.end(), [](const Held &a, const Held &b) { return a.share > b.share; });
    for (uint32_t rank = 0; rank < layer.ranks; ++rank) {
      if (!alive[rank] || rank == busy_) continue;
      auto less_to_do = [&](uint32_t a, uint32_t b) { return layer.load[a] < layer.load[b]; };
      auto at = std::upper_bound(idle_.begin(), idle_.end(), rank, less_to_do);
      if (at == idle_.end() && idle_.size() == idle) continue;
      idle_.insert(at, rank);
      if (idle_.size() > idle) idle_.pop_back();
    }
  }

  const Change &run(bool spare) {
    if (moves_ >= 1 && spare) replacements();
    swaps();
    if (moves_ >= 2 * uint64_t{layer_.sets.copies}) exchanges();
    return best_;
  }

 private:
  std::vector<Held> on_rank(uint32_t rank) const {
    std::vector<Held> found;
    found.reserve(layer_.slots);
    for (uint32_t slot = rank * layer_.slots; slot < (rank + 1) * layer_.slots; ++slot) {
      bool empty = layer_.table[slot] == kEmpty;
      auto expert = static_cast<uint32_t>(layer_.table[slot]);
      found.push_back({slot, empty ? kNone : expert, empty ? 0 : layer_.share(expert)});
    }
    return found;
  }

  // What the busiest of the ranks concerned has to get rid of for a change of so many slots to be better than the best one so far.
  int64_t wanted(uint32_t slots) const { return (best_.gain + 1) * slots; }

  // A slot that may get another expert, as far as copies are counted; `left`: what its rank has to do without the copy in it.
  struct Spare {
    uint32_t slot, rank;
    int64_t left;
  };

  // The spare copies of one expert, or all empty slots (kNone): where in `spares_` they are, the least that is left of them, and what the
  // second busiest holder has to do once there is a copy less.
  struct Giver {
    uint32_t expert;
    size_t begin, end;
    int64_t least, second;
  };

  void offer_spare(uint32_t slot, int64_t gone, Giver &giver) {
    uint32_t rank = layer_.rank(slot);
    int64_t left = layer_.load[rank] - gone;
    if (rank == busy_ || !alive_[rank] || top_ - left < wanted(1)) return;
    spares_.push_back({slot, rank, left});
    giver.least = std::min(giver.least, left);
    giver.end = spares_.size();
  }

  void find_givers() {
    auto begun = [&](uint32_t expert) { return Giver{expert, spares_.size(), spares_.size(), INT64_MAX, 0}; };
    Giver empty = begun(kNone);
    for (uint32_t rank = 0; rank < layer_.ranks; ++rank)
      if (alive_[rank] && layer_.free[rank]) offer_spare(layer_.empty_slot(rank), 0, empty);
    if (empty.begin < empty.end) givers_.push_back(empty);
    for (uint32_t expert = 0; expert < layer_.experts; ++expert) {
      if (layer_.copies(expert) <= layer_.sets.copies) continue;
      Giver giver = begun(expert);
      int64_t first = 0, share = layer_.share(expert);
      for (uint32_t slot = layer_.first(expert); slot != kNone; slot = layer_.next(slot)) {
        offer_spare(slot, share, giver);
        int64_t load = layer_.load[layer_.rank(slot)];
        giver.second = std::max(giver.second, std::min(first, load));
        first = std::max(first, load);
      }
      giver.second += layer_.share(expert, layer_.copies(expert) - 1) - share;
      if (giver.begin < giver.end) givers_.push_back(giver);
    }
    hot_on_.assign(layer_.ranks, kNone);
  }

  // What the other holders of an expert would have at most if it had a copy less and the hot expert one more, each copy of which has `less`
  // to do then; and which of them has that, because it may be the one that gives its copy up.
  struct Others {
    uint32_t most_on = kNone;
    int64_t most = 0, next = 0;
  };

  Others others(uint32_t expert, uint32_t hot, int64_t less) const {
    Others found;
    if (expert == kNone) return found;
    int64_t more = layer_.share(expert, layer_.copies(expert) - 1) - layer_.share(expert);
    for (uint32_t slot = layer_.first(expert); slot != kNone; slot = layer_.next(slot)) {
      uint32_t rank = layer_.rank(slot);
      int64_t then = layer_.load[rank] + more - (hot_on_[rank] == hot ? less : 0);
      if (then > found.most) found.next = found.most, found.most = then, found.most_on = rank;
      else found.next = std::max(found.next, then);
    }
    return found;
  }

  // A spare copy becomes one of an expert of the busiest rank. No rank but those concerned is looked at.
  void replacements() {
    for (const Held &held : mine_) {
      int64_t then = layer_.share(held.expert, layer_.copies(held.expert) + 1), less = held.share - then;
      if (less < wanted(1)) continue;
      if (hot_on_.empty()) find_givers();
      for (uint32_t slot = layer_.first(held.expert); slot != kNone; slot = layer_.next(slot)) hot_on_[layer_.rank(slot)] = held.expert;
      for (const Giver &giver : givers_) {
        if (std::max(giver.least + then, giver.second - less) > top_ - wanted(1)) continue;
        Others all = others(giver.expert, held.expert, less);
        if (all.next <= top_ - wanted(1)) replacement(held, giver, all, then);
      }
    }
  }

  void replacement(const Held &held, const Giver &giver, const Others &all, int64_t then) {
    for (size_t i = giver.begin; i < giver.end; ++i) {
      const Spare &spare = spares_[i];
      if (hot_on_[spare.rank] == held.expert) continue;
      int64_t peak = std::max({top_ - (held.share - then), spare.left + then, all.most_on == spare.rank ? all.next : all.most});
      bool lower = best_.hot == held.expert && top_ - peak == best_.gain && spare.slot < best_.there;  // of equals the lowest number
      if (top_ - peak < wanted(1) && !lower) continue;
      if (giver.expert != kNone && !layer_.covered(giver.expert, spare.slot)) continue;
      best_ = {Kind::replace, top_ - peak, 1, held.expert, held.slot, spare.slot};
    }
  }

  void swaps() {
    for (uint32_t rank : idle_) {
      int64_t room = top_ - layer_.load[rank];
      if (room < 2 * wanted(1)) return;  // the other idle ranks have less
      auto theirs = on_rank(rank);
      for (const Held &hot : mine_) {
        if (hot.share < wanted(1)) break;
        for (const Held &cold : theirs) {
          uint32_t slots = cold.expert == kNone ? 1 : 2;
          int64_t difference = hot.share - cold.share, least = wanted(slots);
          if (difference < least || room - difference < least || slots > moves_) continue;
          if (layer_.on(hot.expert, rank) || !layer_.covered(hot.expert, hot.slot, cold.slot)) break;
          if (cold.expert != kNone && (layer_.on(cold.expert, busy_) || !layer_.covered(cold.expert, cold.slot, hot.slot))) continue;
          best_ = {Kind::swap, std::min(difference, room - difference) / slots, slots, hot.expert, hot.slot, cold.slot};
        }
      }
    }
  }

  // The busiest of the ranks of a group that an expert is on; -1 where it has not just the copies there that it needs.
  int64_t busiest_inside(uint32_t expert, uint32_t group) const {
    int64_t most = 0;
    uint32_t copies = 0;
    for (uint32_t slot = layer_.first(expert); slot != kNone; slot = layer_.next(slot)) {
      uint32_t rank = layer_.rank(slot);
      if (layer_.sets.group_of[rank] == group) most = std::max(most, layer_.load[rank]), ++copies;
    }
    return copies == layer_.sets.copies ? most : -1;
  }
  // Whether an expert is on a rank of a group that another one is on as well.
  bool meets(uint32_t expert, uint32_t other, uint32_t group) const {
    for (uint32_t slot = layer_.first(other); slot != kNone; slot = layer_.next(slot)) {
      uint32_t rank = layer_.rank(slot);
      if (layer_.sets.group_of[rank] == group && layer_.on(expert, rank)) return true;
    }
    return false;
  }

  // Two experts swap all their copies inside their groups.
  void exchanges() {
    uint32_t home = layer_.sets.group_of[busy_];
    if (home == kNone || layer_.sets.copies < 2) return;
    uint32_t slots = 2 * layer_.sets.copies;
    for (uint32_t rank : idle_) {
      uint32_t group = layer_.sets.group_of[rank];
      int64_t room = top_ - layer_.load[rank];
      if (group == kNone || group == home || room < 2 * wanted(slots)) continue;
      auto colds = on_rank(rank);
      for (const Held &hot : mine_) {
        if (hot.share < wanted(slots)) break;
        for (const Held &cold : colds) {
          int64_t difference = hot.share - cold.share, least = wanted(slots);
          if (cold.expert == kNone || difference < least || room - difference < least) continue;
          int64_t busiest = busiest_inside(cold.expert, group);
          if (busiest < 0 || top_ - busiest - difference < least || busiest_inside(hot.expert, home) < 0) continue;
          if (meets(hot.expert, cold.expert, group) || meets(cold.expert, hot.expert, home)) continue;
          best_ = {Kind::exchange, std::min(difference, top_ - busiest - difference) / slots, slots, hot.expert, hot.slot, cold.slot, cold.expert, group};
        }
      }
    }
  }

  Layer &layer_;
  std::span<const uint8_t> alive_;
  uint64_t moves_;
  uint32_t busy_;
  int64_t top_;
  std::vector<Held> mine_;      // what the busiest rank has, hottest first
  std::vector<uint32_t> idle_;  // ranks with least to do, least first
  std::vector<uint32_t> hot_on_;  // of each rank: the last expert looked at that it has a copy of
  std::vector<Giver> givers_;
  std::vector<Spare> spares_;
  Change best_;
};

// Takes an expert out of a group; returns its slots there, lowest first.
std::vector<uint32_t> taken(Layer &layer, uint32_t expert, uint32_t group) {
  std::vector<uint32_t> found;
  for (uint32_t slot = layer.first(expert); slot != kNone; slot = layer.next(slot))
    if (layer.sets.group_of[layer.rank(slot)] == group) found.push_back(slot);
  std::sort(found.begin(), found.end());
  for (uint32_t slot : found) layer.take(slot);
  return found;
}

void make(Layer &layer, const Change &change) {
  if (change.kind == Kind::exchange) {
    auto out = taken(layer, change.hot, layer.sets.group_of[layer.rank(change.here)]);
    auto back = taken(layer, change.cold, change.group);
    for (uint32_t slot : back) layer.put(change.hot, slot);
    for (uint32_t slot : out) layer.put(change.cold, slot);
    return;
  }
  int32_t former = layer.table[change.there];
  if (former != kEmpty) layer.take(change.there);
  if (change.kind == Kind::swap) layer.take(change.here);
  layer.put(change.hot, change.there);
  if (change.kind == Kind::swap && former != kEmpty) layer.put(static_cast<uint32_t>(former), change.here);
}

}  // namespace

int64_t excess(std::span<const int64_t> load, uint32_t living) {
  int64_t mean = std::max<int64_t>(std::accumulate(load.begin(), load.end(), int64_t{0}) / living, 1);
  return (*std::max_element(load.begin(), load.end()) - mean) / std::max<int64_t>(mean / 1000, 1);
}

bool good(const Layer &layer, uint32_t living, int64_t part) {
  int64_t mean = layer.total() / living;
  return layer.load[layer.busiest()] <= mean + mean / part;
}

uint32_t improve(Layer &layer, std::span<const uint8_t> alive, uint64_t moves, int64_t least, bool spare) {
  if (moves == 0) return 0;
  Search search(layer, alive, moves, least, spare ? kIdle : kManyIdle);
  const Change &change = search.run(spare);
  if (change.kind != Kind::none) make(layer, change);
  return change.slots;
}

}  // namespace gft::place
