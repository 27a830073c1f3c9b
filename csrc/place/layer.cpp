// Bookkeeping of one layer: a copy more or less changes the share of every other copy of the same expert.
#include "layer.h"

#include <algorithm>
#include <numeric>

namespace gft::place {

Layer::Layer(uint32_t experts_, uint32_t ranks_, uint32_t slots_, std::span<const int64_t> loads_, const Copysets &sets_)
    : experts(experts_),
      ranks(ranks_),
      slots(slots_),
      loads(loads_),
      sets(sets_),
      table(size_t{ranks_} * slots_, kEmpty),
      at(experts_),
      load(ranks_),
      free(ranks_, slots_),
      each_(experts_) {}

void Layer::add_share(uint32_t expert, int sign) {
  int64_t each = sign * share(expert);
  for (uint32_t slot : at[expert]) load[rank(slot)] += each;
}

void Layer::put(uint32_t expert, uint32_t slot) {
  add_share(expert, -1);
  at[expert].push_back(slot);
  table[slot] = static_cast<int32_t>(expert);
  --free[rank(slot)];
  each_[expert] = share(expert, copies(expert));
  add_share(expert, 1);
}

void Layer::take(uint32_t slot) {
  auto expert = static_cast<uint32_t>(table[slot]);
  add_share(expert, -1);
  std::erase(at[expert], slot);
  table[slot] = kEmpty;
  ++free[rank(slot)];
  each_[expert] = share(expert, copies(expert));
  add_share(expert, 1);
}

bool Layer::on(uint32_t expert, uint32_t which) const {
  for (uint32_t slot : at[expert])
    if (rank(slot) == which) return true;
  return false;
}

uint32_t Layer::empty_slot(uint32_t which) const {
  for (uint32_t slot = which * slots; slot < (which + 1) * slots; ++slot)
    if (table[slot] == kEmpty) return slot;
  return kNone;
}

bool Layer::covered(uint32_t expert, uint32_t but, uint32_t instead) const {
  auto seen = [&](uint32_t slot) { return slot == but ? instead : slot; };
  for (uint32_t first : at[expert]) {
    uint32_t slot = seen(first), inside = 0;
    if (slot == kNone) continue;
    uint32_t group = sets.group_of[rank(slot)];
    if (group == kNone) continue;
    for (uint32_t other : at[expert])
      if (uint32_t s = seen(other); s != kNone && sets.group_of[rank(s)] == group) ++inside;
    if (inside >= sets.copies) return true;
  }
  return false;
}

uint32_t Layer::busiest() const {
  return static_cast<uint32_t>(std::max_element(load.begin(), load.end()) - load.begin());
}

int64_t Layer::total() const { return std::accumulate(load.begin(), load.end(), int64_t{0}); }

}  // namespace gft::place
