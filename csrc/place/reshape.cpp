// From one set of numbers of copies to another inside a layer that is in use: what no single change leads to, because it gets worse before
// it gets better.
#include <algorithm>

#include "counts.h"
#include "steps.h"

namespace gft::place {
namespace {

constexpr uint32_t kEven = 32;  // changes before there are more copies again, each worth 1/kWorth of the mean per slot
constexpr int64_t kWorth = 50;

int64_t busiest_holder(const Layer &layer, uint32_t expert) {
  int64_t most = -1;
  for (uint32_t slot = layer.first(expert); slot != kNone; slot = layer.next(slot)) most = std::max(most, layer.load[layer.rank(slot)]);
  return most;
}

// Every copy that an expert is covered without, those of the busiest ranks first.
void to_the_least(Layer &layer, uint32_t expert) {
  while (layer.copies(expert) > layer.sets.copies) {
    uint32_t worst = kNone;
    for (uint32_t slot = layer.first(expert); slot != kNone; slot = layer.next(slot)) {
      if (!layer.covered(expert, slot)) continue;
      int64_t more = worst == kNone ? 1 : layer.load[layer.rank(slot)] - layer.load[layer.rank(worst)];
      if (more > 0 || (more == 0 && slot < worst)) worst = slot;
    }
    if (worst == kNone) return;
    layer.take(worst);
  }
}

// The coldest expert that has just its copies there and is on no rank of the group `to`; kNone: there is none.
uint32_t movable(const Layer &layer, const std::vector<uint32_t> &from, const std::vector<uint32_t> &to) {
  auto on_all = [&](uint32_t e) { return std::all_of(from.begin(), from.end(), [&](uint32_t rank) { return layer.on(e, rank); }); };
  auto on_any = [&](uint32_t e) { return std::any_of(to.begin(), to.end(), [&](uint32_t rank) { return layer.on(e, rank); }); };
  uint32_t best = kNone;
  for (uint32_t slot = from[0] * layer.slots; slot < (from[0] + 1) * layer.slots; ++slot) {
    if (layer.table[slot] == kEmpty) continue;
    auto e = static_cast<uint32_t>(layer.table[slot]);
    if (layer.copies(e) == from.size() && (best == kNone || layer.share(e) < layer.share(best)) && on_all(e) && !on_any(e)) best = e;
  }
  return best;
}

// All ranks that have room hold the expert: a cold expert goes from a group that has none, of those without it the one with least to do, to
// one that has, so that further copies find room on other ranks.
bool make_room(Layer &layer, uint32_t expert) {
  const auto &groups = layer.sets.members;
  auto roomy = [&](const std::vector<uint32_t> &group) {
    return group.size() == layer.sets.copies && std::all_of(group.begin(), group.end(), [&](uint32_t rank) { return layer.free[rank] > 0; });
  };
  auto to = std::find_if(groups.begin(), groups.end(), roomy);
  if (to == groups.end()) return false;
  auto from = groups.end();
  int64_t least = INT64_MAX;
  uint32_t moved = kNone;
  for (auto group = groups.begin(); group != groups.end(); ++group) {
    if (group->size() != layer.sets.copies || group == to) continue;
    int64_t most = 0;
    bool usable = true;
    for (uint32_t rank : *group) most = std::max(most, layer.load[rank]), usable = usable && !layer.free[rank] && !layer.on(expert, rank);
    if (!usable || most >= least) continue;
    if (uint32_t found = movable(layer, *group, *to); found != kNone) from = group, least = most, moved = found;
  }
  if (from == groups.end()) return false;
  std::vector<uint32_t> slots;
  for (uint32_t slot = layer.first(moved); slot != kNone; slot = layer.next(slot)) slots.push_back(slot);
  for (uint32_t slot : slots) layer.take(slot);
  for (uint32_t rank : *to) layer.put(moved, layer.empty_slot(rank));
  return true;
}

bool one_more(Layer &layer, std::span<const uint8_t> alive, uint32_t expert) {
  uint32_t best = kNone;
  for (uint32_t rank = 0; rank < layer.ranks; ++rank)
    if (alive[rank] && layer.free[rank] && (best == kNone || layer.load[rank] < layer.load[best]) && !layer.on(expert, rank)) best = rank;
  if (best == kNone) return make_room(layer, expert) && one_more(layer, alive, expert);
  layer.put(expert, layer.empty_slot(best));
  return true;
}

}  // namespace

void reshape(Layer &layer, std::span<const uint8_t> alive, std::span<const uint32_t> order, std::span<const uint32_t> counts) {
  for (size_t i = 0; i < counts.size(); ++i) to_the_least(layer, order[i]);
  auto living = static_cast<int64_t>(std::count_if(alive.begin(), alive.end(), [](uint8_t a) { return a != 0; }));
  for (uint32_t step = 0; step < kEven; ++step)
    if (!improve(layer, alive, UINT64_MAX, layer.total() / living / kWorth, false)) break;
  std::vector<uint32_t> turns(counts.size());
  for (uint32_t i = 0; i < turns.size(); ++i) turns[i] = i;
  std::stable_sort(turns.begin(), turns.end(), [&](uint32_t a, uint32_t b) { return counts[a] > counts[b]; });
  std::vector<uint8_t> raised(counts.size());
  for (uint32_t turn : turns) {
    if (counts[turn] <= layer.sets.copies) break;
    // Of experts that are as hot, the one whose busiest rank has most to do becomes the one with so many copies.
    size_t which = counts.size();
    int64_t most = -1;
    for (size_t i = 0; i < counts.size(); ++i) {
      if (raised[i] || !alike(layer.loads[order[turn]], layer.loads[order[i]])) continue;
      if (int64_t load = busiest_holder(layer, order[i]); load > most) which = i, most = load;
    }
    if (which == counts.size()) continue;
    raised[which] = 1;
    while (layer.copies(order[which]) < counts[turn] && one_more(layer, alive, order[which])) {
    }
  }
  top_up(layer, alive, true);
}

}  // namespace gft::place
