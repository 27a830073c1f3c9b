// Lowers the load of the busiest rank by one change: a spare copy elsewhere becomes one of its hot experts, it swaps a copy with an
// idle rank, or two experts swap their groups.
#include <algorithm>
#include <numeric>
#include <optional>

#include "steps.h"

namespace gft::place {
namespace {

constexpr size_t kIdle = 4;  // ranks with least to do that a swap is tried with

struct Change {
  int64_t gain = 0;  // units per changed slot by which the busiest of the ranks concerned has less
  uint32_t slots = 0;
  std::vector<uint32_t> out;                            // slots that are emptied
  std::vector<std::pair<uint32_t, uint32_t>> in;        // then (expert, slot)
};

class Search {
 public:
  Search(Layer &layer, std::span<const uint8_t> alive, uint64_t moves, int64_t least)
      : layer_(layer), alive_(alive), moves_(moves), busy_(layer.busiest()), top_(layer.load[busy_]) {
    best_.gain = std::max<int64_t>(least, 1) - 1;
    std::vector<uint32_t> order;
    for (uint32_t rank = 0; rank < layer.ranks; ++rank)
      if (alive[rank] && rank != busy_) order.push_back(rank);
    size_t count = std::min(kIdle, order.size());
    std::partial_sort(order.begin(), order.begin() + static_cast<long>(count), order.end(), [&](uint32_t a, uint32_t b) {
      return layer.load[a] != layer.load[b] ? layer.load[a] < layer.load[b] : a < b;
    });
    idle_.assign(order.begin(), order.begin() + static_cast<long>(count));
  }

  const Change *run() {
    if (moves_ >= 1) replacements();
    if (moves_ >= 2) swaps();
    if (moves_ >= 2 * layer_.sets.copies) exchanges();
    return best_.slots ? &best_ : nullptr;
  }

 private:
  void offer(int64_t peak, uint32_t slots, std::vector<uint32_t> out, std::vector<std::pair<uint32_t, uint32_t>> in) {
    int64_t gain = (top_ - peak) / slots;
    if (gain > best_.gain) best_ = {gain, slots, std::move(out), std::move(in)};
  }

  // A slot that may get another expert: what its rank loses with the copy in it, and what the other copies of that get each.
  struct Spare {
    uint32_t slot, rank;
    int64_t gone = 0, more = 0;
  };

  std::vector<Spare> spares() const {
    std::vector<Spare> found;
    for (uint32_t slot = 0; slot < layer_.table.size(); ++slot) {
      uint32_t rank = layer_.rank(slot);
      if (!alive_[rank] || rank == busy_ || layer_.load[rank] >= top_) continue;
      if (layer_.table[slot] == kEmpty) {
        found.push_back({slot, rank});
        continue;
      }
      auto expert = static_cast<uint32_t>(layer_.table[slot]);
      uint32_t copies = layer_.copies(expert);
      if (copies <= layer_.sets.copies || !layer_.covered(expert, slot)) continue;
      int64_t gone = layer_.share(expert);
      found.push_back({slot, rank, gone, layer_.share(expert, copies - 1) - gone});
    }
    return found;
  }

  // What the busy rank and the other holders of the spare copy's expert would have at most, if it became a copy of a hot expert; each
  // copy of that has `less` to do then. No rank but those concerned is looked at.
  int64_t after_replacing(const Spare &spare, int64_t less) const {
    int64_t here = top_ - less, peak = 0;
    if (layer_.table[spare.slot] == kEmpty) return here;
    for (uint32_t other : layer_.at[static_cast<uint32_t>(layer_.table[spare.slot])]) {
      uint32_t rank = layer_.rank(other);
      if (rank == busy_) here += spare.more;
      else if (rank != spare.rank) peak = std::max(peak, layer_.load[rank] + spare.more - (hot_on_[rank] ? less : 0));
    }
    return std::max(here, peak);
  }

  void replacements() {
    auto found = spares();
    for (uint32_t here = busy_ * layer_.slots; here < (busy_ + 1) * layer_.slots; ++here) {
      if (layer_.table[here] == kEmpty) continue;
      auto hot = static_cast<uint32_t>(layer_.table[here]);
      int64_t then = layer_.share(hot, layer_.copies(hot) + 1), less = layer_.share(hot) - then;
      if (less <= best_.gain) continue;
      hot_on_.assign(layer_.ranks, 0);
      for (uint32_t slot : layer_.at[hot]) hot_on_[layer_.rank(slot)] = 1;
      for (const Spare &spare : found) {
        int64_t there = layer_.load[spare.rank] - spare.gone + then;
        if (hot_on_[spare.rank] || top_ - there <= best_.gain) continue;
        int64_t peak = std::max(there, after_replacing(spare, less));
        if (top_ - peak <= best_.gain) continue;
        offer(peak, 1, layer_.table[spare.slot] == kEmpty ? std::vector<uint32_t>{} : std::vector{spare.slot}, {{hot, spare.slot}});
      }
    }
  }

  void swaps() {
    for (uint32_t here = busy_ * layer_.slots; here < (busy_ + 1) * layer_.slots; ++here) {
      if (layer_.table[here] == kEmpty) continue;
      auto hot = static_cast<uint32_t>(layer_.table[here]);
      for (uint32_t rank : idle_) {
        if (layer_.on(hot, rank)) continue;
        for (uint32_t there = rank * layer_.slots; there < (rank + 1) * layer_.slots; ++there) swap(hot, here, there);
      }
    }
  }

  void swap(uint32_t hot, uint32_t here, uint32_t there) {
    int32_t cold = layer_.table[there];
    int64_t difference = layer_.share(hot) - (cold == kEmpty ? 0 : layer_.share(static_cast<uint32_t>(cold)));
    int64_t peak = std::max(top_ - difference, layer_.load[layer_.rank(there)] + difference);
    if (difference <= 0 || (top_ - peak) / 2 <= best_.gain || !layer_.covered(hot, here, there)) return;
    if (cold == kEmpty) return offer(peak, 1, {here}, {{hot, there}});
    auto c = static_cast<uint32_t>(cold);
    if (layer_.on(c, busy_) || !layer_.covered(c, there, here)) return;
    offer(peak, 2, {here, there}, {{hot, there}, {c, here}});
  }

  // The slots of an expert on all members of a group of just as many as it needs; empty when it is not on each of them.
  std::vector<uint32_t> column(uint32_t expert, const std::vector<uint32_t> &group) const {
    std::vector<uint32_t> found;
    for (uint32_t rank : group)
      for (uint32_t slot : layer_.at[expert])
        if (layer_.rank(slot) == rank) found.push_back(slot);
    return found.size() == group.size() ? found : std::vector<uint32_t>{};
  }

  void exchanges() {
    uint32_t home = layer_.sets.group_of[busy_];
    if (home == kNone) return;
    const auto &mine = layer_.sets.members[home];
    if (mine.size() != layer_.sets.copies || mine.size() < 2) return;
    for (uint32_t here = busy_ * layer_.slots; here < (busy_ + 1) * layer_.slots; ++here) {
      if (layer_.table[here] == kEmpty) continue;
      auto hot = static_cast<uint32_t>(layer_.table[here]);
      auto out = column(hot, mine);
      if (out.empty()) continue;
      for (uint32_t rank : idle_) {
        uint32_t group = layer_.sets.group_of[rank];
        if (group == kNone || group == home || layer_.sets.members[group].size() != mine.size()) continue;
        exchange(hot, out, mine, rank, layer_.sets.members[group]);
      }
    }
  }

  void exchange(uint32_t hot, const std::vector<uint32_t> &out, const std::vector<uint32_t> &mine, uint32_t idle,
                const std::vector<uint32_t> &theirs) {
    for (uint32_t rank : theirs)
      if (layer_.on(hot, rank)) return;
    for (uint32_t there = idle * layer_.slots; there < (idle + 1) * layer_.slots; ++there) {
      if (layer_.table[there] == kEmpty) continue;
      auto cold = static_cast<uint32_t>(layer_.table[there]);
      int64_t difference = layer_.share(hot) - layer_.share(cold), peak = 0;
      if (difference <= 0) continue;
      for (uint32_t rank : mine) peak = std::max(peak, layer_.load[rank] - difference);
      for (uint32_t rank : theirs) peak = std::max(peak, layer_.load[rank] + difference);
      uint32_t slots = 2 * layer_.sets.copies;
      if ((top_ - peak) / slots <= best_.gain) continue;
      auto back = column(cold, theirs);
      if (back.empty() || std::any_of(mine.begin(), mine.end(), [&](uint32_t rank) { return layer_.on(cold, rank); })) continue;
      std::vector<uint32_t> emptied = out;
      emptied.insert(emptied.end(), back.begin(), back.end());
      std::vector<std::pair<uint32_t, uint32_t>> filled;
      for (uint32_t slot : back) filled.emplace_back(hot, slot);
      for (uint32_t slot : out) filled.emplace_back(cold, slot);
      offer(peak, slots, std::move(emptied), std::move(filled));
    }
  }

  Layer &layer_;
  std::span<const uint8_t> alive_;
  uint64_t moves_;
  uint32_t busy_;
  int64_t top_;
  std::vector<uint32_t> idle_;
  std::vector<uint8_t> hot_on_;  // of each rank: whether it has a copy of the expert that `replacements` looks at
  Change best_;
};

}  // namespace

uint32_t improve(Layer &layer, std::span<const uint8_t> alive, uint64_t moves, int64_t least) {
  if (moves == 0) return 0;
  const Change *change;
  Search search(layer, alive, moves, least);
  if (!(change = search.run())) return 0;
  for (uint32_t slot : change->out) layer.take(slot);
  for (auto [expert, slot] : change->in) layer.put(expert, slot);
  return change->slots;
}

}  // namespace gft::place
