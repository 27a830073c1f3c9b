// A layer from nothing: how many copies each expert gets, then the busiest experts first, each to the group that it burdens least.
// Slots beyond the copies that coverage needs go to the hottest experts, wherever there is least to do.
#include <algorithm>
#include <numeric>
#include <queue>

#include "steps.h"

namespace gft::place {
namespace {

// Copies of each expert: what coverage needs, and each of `extras` further slots to the expert whose copies have most to do.
std::vector<uint32_t> wanted(const Layer &layer, uint32_t ranks, uint64_t extras) {
  std::vector<uint32_t> copies(layer.experts, layer.sets.copies);
  auto colder = [&](uint32_t a, uint32_t b) {
    int64_t left = layer.loads[a] * copies[b], right = layer.loads[b] * copies[a];
    return left != right ? left < right : a > b;
  };
  std::priority_queue<uint32_t, std::vector<uint32_t>, decltype(colder)> hottest(colder);
  for (uint32_t e = 0; e < layer.experts; ++e)
    if (copies[e] < ranks) hottest.push(e);
  for (; extras > 0 && !hottest.empty(); --extras) {
    uint32_t e = hottest.top();
    hottest.pop();
    if (++copies[e] < ranks) hottest.push(e);
  }
  return copies;
}

class Filling {
 public:
  Filling(Layer &layer, std::span<const uint8_t> alive) : layer_(layer), alive_(alive) {
    for (uint32_t g = 0; g < groups(); ++g) rooms_.push_back(room_of(g)), whole_ += rooms_[g];
  }

  // The copies that coverage needs, on the group whose busiest chosen member has least to do.
  void needed(uint32_t expert) {
    uint32_t best = kNone;
    int64_t least = 0;
    for (uint32_t g = 0; g < groups(); ++g) {
      if (rooms_[g] == 0) continue;
      int64_t peak = 0;
      for (uint32_t rank : choose(g)) peak = std::max(peak, layer_.load[rank]);
      if (best == kNone || peak < least) best = g, least = peak;
    }
    if (best == kNone) no_room(layer_);
    for (uint32_t rank : choose(best)) put(expert, rank);
  }

  // One copy more, unless every rank that has room holds one or is needed whole by `waiting` experts still to come.
  void further(uint32_t expert, uint64_t waiting) {
    uint32_t best = kNone;
    for (uint32_t rank = 0; rank < layer_.ranks; ++rank)
      if (alive_[rank] && layer_.free[rank] && (best == kNone || layer_.load[rank] < layer_.load[best]) &&
          !layer_.on(expert, rank) && spare(rank) >= waiting)
        best = rank;
    if (best != kNone) put(expert, best);
  }

 private:
  uint32_t groups() const { return static_cast<uint32_t>(layer_.sets.members.size()); }

  uint64_t room_of(uint32_t group) {
    frees_.clear();
    for (uint32_t rank : layer_.sets.members[group]) frees_.push_back(layer_.free[rank]);
    return room(frees_, layer_.sets.copies);
  }

  // Experts that there is still room for once `rank` has one slot less.
  uint64_t spare(uint32_t rank) {
    uint32_t group = layer_.sets.group_of[rank];
    if (group == kNone) return whole_;
    if (layer_.sets.members[group].size() == layer_.sets.copies) return whole_ - (layer_.free[rank] == rooms_[group]);
    --layer_.free[rank];
    uint64_t after = whole_ - rooms_[group] + room_of(group);
    ++layer_.free[rank];
    return after;
  }

  // The members with most room, so that no room is lost; of equals those with least to do.
  const std::vector<uint32_t> &choose(uint32_t group) {
    if (layer_.sets.members[group].size() == layer_.sets.copies) return layer_.sets.members[group];
    chosen_ = layer_.sets.members[group];
    std::stable_sort(chosen_.begin(), chosen_.end(), [&](uint32_t a, uint32_t b) {
      return layer_.free[a] != layer_.free[b] ? layer_.free[a] > layer_.free[b] : layer_.load[a] < layer_.load[b];
    });
    chosen_.resize(layer_.sets.copies);
    return chosen_;
  }

  void put(uint32_t expert, uint32_t rank) {
    layer_.put(expert, layer_.empty_slot(rank));
    if (uint32_t group = layer_.sets.group_of[rank]; group != kNone) {
      whole_ -= rooms_[group];
      whole_ += rooms_[group] = room_of(group);
    }
  }

  Layer &layer_;
  std::span<const uint8_t> alive_;
  std::vector<uint64_t> rooms_;
  uint64_t whole_ = 0;
  std::vector<uint32_t> chosen_, frees_;
};

}  // namespace

void fill(Layer &layer, std::span<const uint8_t> alive, uint32_t eighths) {
  uint32_t ranks = 0;
  for (uint8_t lives : alive) ranks += lives != 0;
  uint64_t extras = uint64_t{ranks} * layer.slots - uint64_t{layer.experts} * layer.sets.copies;
  auto copies = wanted(layer, ranks, extras * eighths / 8);
  std::vector<uint32_t> order(layer.experts);
  std::iota(order.begin(), order.end(), 0u);
  std::stable_sort(order.begin(), order.end(), [&](uint32_t a, uint32_t b) {
    return layer.loads[a] * copies[b] > layer.loads[b] * copies[a];
  });
  Filling filling(layer, alive);
  uint64_t waiting = layer.experts;
  for (uint32_t e : order) {
    filling.needed(e);
    --waiting;
    while (layer.copies(e) < copies[e]) {
      uint32_t before = layer.copies(e);
      filling.further(e, waiting);
      if (layer.copies(e) == before) break;
    }
  }
  top_up(layer, alive, eighths < 8);
}

void top_up(Layer &layer, std::span<const uint8_t> alive, bool coldest) {
  for (uint32_t rank = 0; rank < layer.ranks; ++rank) {
    while (alive[rank] && layer.free[rank]) {
      uint32_t best = kNone;
      for (uint32_t e = 0; e < layer.experts; ++e)
        if (!layer.on(e, rank) && (best == kNone || (coldest ? layer.share(e) < layer.share(best) : layer.share(e) > layer.share(best))))
          best = e;
      if (best == kNone) break;
      layer.put(best, layer.empty_slot(rank));
    }
  }
}

}  // namespace gft::place
