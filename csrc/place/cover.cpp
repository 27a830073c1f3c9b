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

// How an expert is covered: `slots` become copies of it; before that, in a wide group, what is in `from` makes room by going to `to`.
// `peak`: what the busiest of the ranks concerned has to do then, those included that have the other copies of what is given up.
struct Way {
  uint32_t changes = kNone;
  int64_t peak = 0;
  std::vector<uint32_t> slots;
  uint32_t from = kNone, to = kNone;

  bool better_than(const Way &other) const { return changes < other.changes || (changes == other.changes && changes != kNone && peak < other.peak); }
};

// The busiest of a slot's rank and of those that have the other copies of what is in it, once it gets something of this share.
int64_t after(const Layer &layer, uint32_t slot, int64_t share) {
  uint32_t there = layer.rank(slot);
  if (layer.table[slot] == kEmpty) return layer.load[there] + share;
  auto expert = static_cast<uint32_t>(layer.table[slot]);
  int64_t peak = layer.load[there] + share - layer.share(expert);
  int64_t more = layer.share(expert, layer.copies(expert) - 1) - layer.share(expert);
  for (uint32_t other = layer.first(expert); other != kNone; other = layer.next(other))
    if (other != slot) peak = std::max(peak, layer.load[layer.rank(other)] + more);
  return peak;
}

Way way_into(const Layer &layer, uint32_t expert, const std::vector<uint32_t> &group) {
  uint32_t held = 0;
  std::vector<std::pair<int64_t, uint32_t>> others;
  for (uint32_t rank : group) {
    if (layer.on(expert, rank)) ++held;
    else if (uint32_t slot = given_up(layer, rank); slot != kNone) others.emplace_back(0, slot);
  }
  uint32_t missing = layer.sets.copies > held ? layer.sets.copies - held : 0;
  if (others.size() < missing) return {};
  int64_t share = layer.share(expert, layer.copies(expert) + missing);
  for (auto &[peak, slot] : others) peak = after(layer, slot, share);
  std::sort(others.begin(), others.end());
  Way way{missing, 0, {}};
  for (uint32_t i = 0; i < missing; ++i) {
    way.peak = std::max(way.peak, others[i].first);
    way.slots.push_back(others[i].second);
  }
  return way;
}

// A member of a group with more members than copies makes room for the one copy that is missing: a copy of another expert goes to a member
// that has something to spare. That leaves the spare copies of other groups where they are.
Way way_by_moving(const Layer &layer, uint32_t expert, const std::vector<uint32_t> &group) {
  Way best;
  uint32_t held = 0;
  for (uint32_t rank : group) held += layer.on(expert, rank);
  if (group.size() <= layer.sets.copies || held + 1 != layer.sets.copies) return best;
  int64_t share = layer.share(expert, layer.copies(expert) + 1);
  for (uint32_t roomy : group) {
    uint32_t to = given_up(layer, roomy);
    if (to == kNone || layer.table[to] == static_cast<int32_t>(expert)) continue;
    for (uint32_t full : group) {
      if (full == roomy || layer.on(expert, full)) continue;
      for (uint32_t from = full * layer.slots; from < (full + 1) * layer.slots; ++from) {
        auto moved = static_cast<uint32_t>(layer.table[from]);
        if (layer.table[from] == kEmpty || layer.on(moved, roomy) || !layer.covered(moved, from, to)) continue;
        Way way{2, std::max(after(layer, to, layer.share(moved)), layer.load[full] - layer.share(moved) + share), {from}, from, to};
        if (way.better_than(best)) best = std::move(way);
      }
    }
  }
  return best;
}

void go(Layer &layer, uint32_t expert, const Way &way) {
  if (way.to != kNone) {
    auto moved = static_cast<uint32_t>(layer.table[way.from]);
    if (layer.table[way.to] != kEmpty) layer.take(way.to);
    layer.take(way.from);
    layer.put(moved, way.to);
  }
  for (uint32_t slot : way.slots) {
    if (layer.table[slot] != kEmpty) layer.take(slot);
    layer.put(expert, slot);
  }
}

}  // namespace

bool cover(Layer &layer, uint64_t changes) {
  std::vector<uint32_t> order(layer.experts);
  std::iota(order.begin(), order.end(), 0u);
  std::stable_sort(order.begin(), order.end(), [&](uint32_t a, uint32_t b) { return layer.loads[a] > layer.loads[b]; });
  for (uint32_t expert : order) {
    if (layer.covered(expert)) continue;
    Way best;
    for (const auto &group : layer.sets.members)
      if (Way way = way_into(layer, expert, group); way.better_than(best)) best = std::move(way);
    for (const auto &group : layer.sets.members)
      if (Way way = best.changes > 1 ? way_by_moving(layer, expert, group) : Way{}; way.better_than(best)) best = std::move(way);
    if (best.changes == kNone || best.changes > changes) return false;
    changes -= best.changes;
    go(layer, expert, best);
  }
  for (uint32_t expert = 0; expert < layer.experts; ++expert)
    if (!layer.covered(expert)) return false;
  return true;
}

}  // namespace gft::place
