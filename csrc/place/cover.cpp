// Gives uncovered experts their copies inside a layer that is in use, by giving up copies that others have to spare.
// This is what a new aim, a lost rank or a returned one asks of an old placement.
#include <algorithm>
#include <numeric>

#include "steps.h"

namespace gft::place {
namespace {

// The slot of a rank that is given up most easily: an empty one, else a copy that its expert is covered without, of the coldest
// expert. kNone: there is none.
uint32_t given_up(const Layer &layer, uint32_t rank) {
  uint32_t best = kNone;
  int64_t least = 0;
  for (uint32_t slot = rank * layer.slots; slot < (rank + 1) * layer.slots; ++slot) {
    if (layer.table[slot] == kEmpty) return slot;
    auto expert = static_cast<uint32_t>(layer.table[slot]);
    if (layer.copies(expert) < 2) continue;
    // A copy is spare as well when its expert is not covered with it: it will get its copies elsewhere.
    if (layer.covered(expert) && !layer.covered(expert, slot)) continue;
    int64_t share = layer.share(expert);
    if (best == kNone || share < least) best = slot, least = share;
  }
  return best;
}

struct Way {
  uint32_t changes = kNone;
  int64_t peak = 0;
  std::vector<uint32_t> slots;
};

Way way_into(const Layer &layer, uint32_t expert, const std::vector<uint32_t> &group) {
  uint32_t held = 0;
  std::vector<std::pair<int64_t, uint32_t>> others;
  for (uint32_t rank : group) {
    if (layer.on(expert, rank)) ++held;
    else if (uint32_t slot = given_up(layer, rank); slot != kNone) others.emplace_back(layer.load[rank], slot);
  }
  uint32_t missing = layer.sets.copies > held ? layer.sets.copies - held : 0;
  if (others.size() < missing) return {};
  std::sort(others.begin(), others.end());
  Way way{missing, 0, {}};
  for (uint32_t i = 0; i < missing; ++i) {
    way.peak = std::max(way.peak, others[i].first);
    way.slots.push_back(others[i].second);
  }
  return way;
}

}  // namespace

bool cover(Layer &layer) {
  std::vector<uint32_t> order(layer.experts);
  std::iota(order.begin(), order.end(), 0u);
  std::stable_sort(order.begin(), order.end(), [&](uint32_t a, uint32_t b) { return layer.loads[a] > layer.loads[b]; });
  for (uint32_t expert : order) {
    if (layer.covered(expert)) continue;
    Way best;
    for (const auto &group : layer.sets.members) {
      Way way = way_into(layer, expert, group);
      if (way.changes < best.changes || (way.changes == best.changes && way.changes != kNone && way.peak < best.peak))
        best = std::move(way);
    }
    if (best.changes == kNone) return false;
    for (uint32_t slot : best.slots) {
      if (layer.table[slot] != kEmpty) layer.take(slot);
      layer.put(expert, slot);
    }
  }
  for (uint32_t expert = 0; expert < layer.experts; ++expert)
    if (!layer.covered(expert)) return false;
  return true;
}

}  // namespace gft::place
