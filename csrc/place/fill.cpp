// A layer from nothing, where it is known how many copies each expert gets: the busiest first, each to the group that it burdens least.
// Slots beyond the copies that coverage needs go to the hottest experts, wherever there is least to do.
#include <algorithm>
#include <numeric>

#include "steps.h"

namespace gft::place {
namespace {

constexpr int64_t kNoRoom = INT64_MAX;
constexpr int64_t kAbout = 32;  // ranks have as much to do when they differ by this part of a copy

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

  // One copy more, unless every rank that has room holds one or is needed whole by `waiting` experts still to come. Between ranks that have
  // about as much to do (`together`), one where no room of a group is lost: a group whose members have as many copies has room for most.
  bool further(uint32_t expert, uint64_t waiting, bool together) {
    uint32_t best = kNone, beside = kNone;
    int64_t least = INT64_MAX, lost = INT64_MAX;
    for (uint32_t rank = 0; rank < layer_.ranks; ++rank) {
      int64_t load = layer_.load[rank];
      if (load >= (together ? lost : least) || !alive_[rank] || !layer_.free[rank] || seen_[rank] == expert) continue;
      uint64_t left = spare(rank);
      if (left < waiting) continue;
      if (load < least) best = rank, least = load;
      if (left == whole_ && load < lost) beside = rank, lost = load;
    }
    if (together && beside != kNone && lost - least <= layer_.share(expert, layer_.copies(expert) + 1) / kAbout) best = beside;
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

void fill(Layer &layer, std::span<const uint8_t> alive, std::span<const uint32_t> copies, Leftover leftover) {
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
    while (layer.copies(expert) < copies[expert] && filling.further(expert, waiting, leftover == Leftover::together)) {
    }
  }
  top_up(layer, alive, leftover != Leftover::hottest);
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
