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
      load(ranks_),
      free(ranks_, slots_),
      reciprocal_((uint64_t{1} << 42) / slots_ + 1),
      first_(experts_, kNone),
      count_(experts_),
      next_(table.size(), kNone),
      each_(experts_) {}

void Layer::add_share(uint32_t expert, int sign) {
  int64_t each = sign * each_[expert];
  for (uint32_t slot = first_[expert]; slot != kNone; slot = next_[slot]) load[rank(slot)] += each;
}

void Layer::put(uint32_t expert, uint32_t slot) {
  add_share(expert, -1);
  next_[slot] = first_[expert];
  first_[expert] = slot;
  table[slot] = static_cast<int32_t>(expert);
  --free[rank(slot)];
  each_[expert] = share(expert, ++count_[expert]);
  add_share(expert, 1);
}

void Layer::take(uint32_t slot) {
  auto expert = static_cast<uint32_t>(table[slot]);
  add_share(expert, -1);
  uint32_t *link = &first_[expert];
  while (*link != slot) link = &next_[*link];
  *link = next_[slot];
  table[slot] = kEmpty;
  ++free[rank(slot)];
  each_[expert] = share(expert, --count_[expert]);
  add_share(expert, 1);
}

void Layer::take_over(std::span<const int32_t> row, std::span<const uint8_t> alive) {
  for (uint32_t r = 0, slot = 0; r < ranks; ++r) {
    for (uint32_t end = slot + slots; slot < end; ++slot) {
      if (row[slot] == kEmpty || !alive[r]) continue;
      auto expert = static_cast<uint32_t>(row[slot]);
      // Ranks ascend, so a copy on this one is the newest.
      if (first_[expert] != kNone && rank(first_[expert]) == r) continue;
      next_[slot] = first_[expert];
      first_[expert] = slot;
      table[slot] = row[slot];
      ++count_[expert];
      --free[r];
    }
  }
  for (uint32_t e = 0; e < experts; ++e) {
    each_[e] = share(e, count_[e]);
    add_share(e, 1);
  }
}

bool Layer::on(uint32_t expert, uint32_t which) const {
  for (uint32_t slot = first_[expert]; slot != kNone; slot = next_[slot])
    if (rank(slot) == which) return true;
  return false;
}

uint32_t Layer::empty_slot(uint32_t which) const {
  for (uint32_t slot = which * slots; slot < (which + 1) * slots; ++slot)
    if (table[slot] == kEmpty) return slot;
  return kNone;
}

bool Layer::covered(uint32_t expert, uint32_t but, uint32_t instead) const {
  auto group = [&](uint32_t slot) {
    if (slot == but) slot = instead;
    return slot == kNone ? kNone : sets.group_of[rank(slot)];
  };
  for (uint32_t slot = first_[expert]; slot != kNone; slot = next_[slot]) {
    uint32_t home = group(slot), inside = 1;
    if (home == kNone) continue;
    // Whether this is the first of its group does not matter: the first one counts most.
    for (uint32_t other = next_[slot]; other != kNone && inside < sets.copies; other = next_[other]) inside += group(other) == home;
    if (inside >= sets.copies) return true;
  }
  return false;
}

uint32_t Layer::busiest() const {
  return static_cast<uint32_t>(std::max_element(load.begin(), load.end()) - load.begin());
}

int64_t Layer::total() const { return std::accumulate(load.begin(), load.end(), int64_t{0}); }

}  // namespace gft::place
