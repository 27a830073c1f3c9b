// A layer from nothing: how many copies each expert gets, then the busiest experts first, each to the group that it burdens least.
// Slots beyond the copies that coverage needs go to the hottest experts, wherever there is least to do.
#include <algorithm>
#include <numeric>

#include "steps.h"

namespace gft::place {
namespace {

constexpr int64_t kNoRoom = INT64_MAX;

// Copies of each expert: what coverage needs, and each of `extras` further slots to the expert whose copies have most to do.
std::vector<uint32_t> wanted(const Layer &layer, uint32_t ranks, uint64_t extras) {
  std::vector<uint32_t> copies(layer.experts, layer.sets.copies);
  auto colder = [&](uint32_t a, uint32_t b) {
    int64_t left = layer.loads[a] * copies[b], right = layer.loads[b] * copies[a];
    return left != right ? left < right : a > b;
  };
  std::vector<uint32_t> heap(layer.experts);
  std::iota(heap.begin(), heap.end(), 0u);
  if (layer.sets.copies >= ranks || extras == 0) return copies;
  std::make_heap(heap.begin(), heap.end(), colder);
  for (; extras > 0 && !heap.empty(); --extras) {
    std::pop_heap(heap.begin(), heap.end(), colder);
    if (++copies[heap.back()] < ranks) std::push_heap(heap.begin(), heap.end(), colder);
    else heap.pop_back();
  }
  return copies;
}

class Filling {
 public:
  Filling(Layer &layer, std::span<const uint8_t> alive) : layer_(layer), alive_(alive), seen_(layer.ranks, kNone) {
    for (uint32_t g = 0; g < groups(); ++g) {
      rooms_.push_back(room_of(g));
      whole_ += rooms_[g];
      peaks_.push_back(peak_of(g));
    }
  }

  // The copies that coverage needs, on the group whose busiest chosen member has least to do.
  void needed(uint32_t expert) {
    auto least = std::min_element(peaks_.begin(), peaks_.end());
    if (least == peaks_.end() || *least == kNoRoom) no_room(layer_);
    auto group = static_cast<uint32_t>(least - peaks_.begin());
    for (uint32_t rank : choose(group)) put(expert, rank);
    peaks_[group] = peak_of(group);
  }

  // One copy more, unless every rank that has room holds one or is needed whole by `waiting` experts still to come.
  bool further(uint32_t expert, uint64_t waiting) {
    uint32_t best = kNone;
    int64_t least = INT64_MAX;
    for (uint32_t rank = 0; rank < layer_.ranks; ++rank)
      if (layer_.load[rank] < least && alive_[rank] && layer_.free[rank] && seen_[rank] != expert && spare(rank) >= waiting)
        best = rank, least = layer_.load[rank];
    if (best == kNone) return false;
    put(expert, best);
    // Every holder has less to do now.
    for (uint32_t slot = layer_.first(expert); slot != kNone; slot = layer_.next(slot))
      if (uint32_t group = layer_.sets.group_of[layer_.rank(slot)]; group != kNone) peaks_[group] = peak_of(group);
    return true;
  }

 private:
  uint32_t groups() const { return static_cast<uint32_t>(layer_.sets.members.size()); }

  uint64_t room_of(uint32_t group) {
    const auto &members = layer_.sets.members[group];
    if (members.size() == layer_.sets.copies) {  // as `room` says, without a copy of what is free
      uint32_t least = layer_.free[members[0]];
      for (uint32_t rank : members) least = std::min(least, layer_.free[rank]);
      return least;
    }
    frees_.clear();
    for (uint32_t rank : members) frees_.push_back(layer_.free[rank]);
    return room(frees_, layer_.sets.copies);
  }

  // What the busiest member that would be chosen has to do; kNoRoom where no expert fits any more.
  int64_t peak_of(uint32_t group) {
    if (rooms_[group] == 0) return kNoRoom;
    int64_t peak = 0;
    for (uint32_t rank : choose(group)) peak = std::max(peak, layer_.load[rank]);
    return peak;
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
    // Slots of an empty layer are used in order.
    layer_.put(expert, (rank + 1) * layer_.slots - layer_.free[rank]);
    seen_[rank] = expert;
    if (uint32_t group = layer_.sets.group_of[rank]; group != kNone) {
      whole_ -= rooms_[group];
      whole_ += rooms_[group] = room_of(group);
    }
  }

  Layer &layer_;
  std::span<const uint8_t> alive_;
  std::vector<uint32_t> seen_;  // of each rank: the last expert that it got
  std::vector<uint64_t> rooms_;
  std::vector<int64_t> peaks_;  // of each group
  uint64_t whole_ = 0;
  std::vector<uint32_t> chosen_, frees_;
};

}  // namespace

void fill(Layer &layer, std::span<const uint8_t> alive, uint32_t eighths) {
  uint32_t ranks = 0;
  for (uint8_t lives : alive) ranks += lives != 0;
  uint64_t extras = uint64_t{ranks} * layer.slots - uint64_t{layer.experts} * layer.sets.copies;
  auto copies = wanted(layer, ranks, extras * eighths / 8);
  struct Turn {
    int64_t share;
    uint32_t expert;
  };
  std::vector<Turn> order(layer.experts);
  for (uint32_t e = 0; e < layer.experts; ++e) order[e] = {layer.share(e, copies[e]), e};
  std::sort(order.begin(), order.end(), [](const Turn &a, const Turn &b) { return a.share != b.share ? a.share > b.share : a.expert < b.expert; });
  Filling filling(layer, alive);
  uint64_t waiting = layer.experts;
  for (auto [share, expert] : order) {
    filling.needed(expert);
    --waiting;
    while (layer.copies(expert) < copies[expert] && filling.further(expert, waiting)) {
    }
  }
  top_up(layer, alive, eighths < 8);
}

void top_up(Layer &layer, std::span<const uint8_t> alive, bool coldest) {
  for (uint32_t rank = 0; rank < layer.ranks; ++rank) {
    while (alive[rank] && layer.free[rank]) {
      uint32_t best = kNone;
      for (uint32_t e = 0; e < layer.experts; ++e) {
        bool better = best == kNone || (coldest ? layer.share(e) < layer.share(best) : layer.share(e) > layer.share(best));
        if (better && !layer.on(e, rank)) best = e;
      }
      if (best == kNone) break;
      layer.put(best, layer.empty_slot(rank));
    }
  }
}

}  // namespace gft::place
