// The order of steps: without an old placement fill and polish every layer; with one, cover what is not, then improve the worst
// layer again and again while slots may change. Repair adopts orphans and does nothing else; recovery adopts, then covers and improves
// as far as it may.
#include "plan.h"

#include <algorithm>
#include <cstdlib>
#include <optional>
#include <queue>

#include "../support/fail.h"
#include "fresh.h"
#include "steps.h"

namespace gft::place {
namespace {

constexpr int64_t kWorthwhile = 1000;  // a change has to gain 1/1000 of the mean per slot, when slots hold something already

struct View {
  const gft_place_problem &p;
  std::span<const uint8_t> alive{p.alive, p.ranks};
  size_t width = size_t{p.ranks} * p.slots;

  std::span<const int64_t> loads(uint32_t layer) const { return {p.loads + size_t{layer} * p.experts, p.experts}; }
  std::span<const int32_t> old(uint32_t layer) const { return {p.old + layer * width, width}; }
  uint32_t living() const { return static_cast<uint32_t>(std::count_if(alive.begin(), alive.end(), [](uint8_t a) { return a; })); }
  uint32_t copies() const { return p.instant ? p.losses + 1 : 1; }
  Copysets sets() const { return make_copysets({p.domains, size_t{4} * p.ranks}, alive, copies(), p.instant ? p.level : 0); }
};

// The old layer without its dead ranks and without second copies on one rank.
Layer taken_over(const View &view, const Copysets &sets, uint32_t number) {
  Layer layer(view.p.experts, view.p.ranks, view.p.slots, view.loads(number), sets);
  layer.take_over(view.old(number), view.alive);
  return layer;
}

// The same placement with each rank's experts in the slots where they were, as far as they were there.
void settle(std::span<int32_t> row, std::span<const int32_t> old, uint32_t slots) {
  std::vector<int32_t> mine(slots);
  for (size_t begin = 0; begin < row.size(); begin += slots) {
    auto now = row.subspan(begin, slots);
    auto was = old.subspan(begin, slots);
    std::copy(now.begin(), now.end(), mine.begin());
    std::fill(now.begin(), now.end(), kEmpty);
    for (uint32_t i = 0; i < slots; ++i) {
      if (was[i] == kEmpty) continue;
      auto at = std::find(mine.begin(), mine.end(), was[i]);
      if (at != mine.end()) now[i] = was[i], *at = kEmpty;
    }
    auto next = mine.begin();
    for (uint32_t i = 0; i < slots; ++i) {
      if (now[i] != kEmpty) continue;
      next = std::find_if(next, mine.end(), [](int32_t e) { return e != kEmpty; });
      if (next == mine.end()) break;
      now[i] = *next++;
    }
  }
}

// The old layer with every expert covered; a fresh one in its slots where that cannot be had by giving up spare copies.
Layer covered_layer(const View &view, const Copysets &sets, Fresh &fresh, uint32_t number) {
  Layer layer = taken_over(view, sets, number);
  if (cover(layer)) {
    top_up(layer, view.alive);
    return layer;
  }
  std::vector<int32_t> row(view.width);
  fresh.place(number, row);
  settle(row, view.old(number), view.p.slots);
  Layer settled(view.p.experts, view.p.ranks, view.p.slots, view.loads(number), sets);
  settled.take_over(row, view.alive);
  return settled;
}

using Layers = std::vector<std::optional<Layer>>;

void write(const View &view, const Layers &layers, std::span<int32_t> table) {
  for (size_t number = 0; number < layers.size(); ++number)
    std::copy(layers[number]->table.begin(), layers[number]->table.end(), table.begin() + static_cast<long>(number * view.width));
}

// Changed slots that somebody has to bring an expert for.
uint64_t changes(const View &view, const Layer &layer, uint32_t number) {
  auto old = view.old(number);
  uint64_t count = 0;
  for (uint32_t slot = 0; slot < old.size(); ++slot) count += layer.table[slot] != kEmpty && layer.table[slot] != old[slot];
  return count;
}

// All layers taken over, experts without any copy adopted, as evenly as there is room. Returns how many there were.
uint64_t adopted(const View &view, const Copysets &sets, Layers &layers) {
  uint64_t orphans = 0;
  for (uint32_t number = 0; number < view.p.layers; ++number) {
    layers.emplace_back(taken_over(view, sets, number));
    for (uint32_t e = 0; e < view.p.experts; ++e) orphans += layers.back()->copies(e) == 0;
  }
  auto most = static_cast<uint32_t>(std::min<uint64_t>(std::max<uint64_t>(2 * orphans / view.living(), 1), UINT32_MAX));
  std::vector<uint32_t> got(view.p.ranks);
  for (auto &layer : layers) adopt(*layer, view.alive, got, most);
  return orphans;
}

// Every layer covered, whatever it costs.
Layers covered_layers(const View &view, const Copysets &sets) {
  Layers layers;
  Fresh fresh(view.p, sets);
  for (uint32_t number = 0; number < view.p.layers; ++number) layers.emplace_back(covered_layer(view, sets, fresh, number));
  return layers;
}

// As many layers covered as `left` changes allow, those first in which the busiest rank has most to do; experts without any copy before
// all others. The last layer that is begun may be covered in part. `left` is what remains.
Layers covered_within(const View &view, const Copysets &sets, uint64_t &left) {
  Layers layers;
  left -= std::min(left, adopted(view, sets, layers));
  Fresh fresh(view.p, sets);
  std::vector<std::pair<int64_t, uint32_t>> order;
  for (uint32_t number = 0; number < view.p.layers; ++number) order.emplace_back(-excess(layers[number]->load, view.living()), number);
  std::sort(order.begin(), order.end());
  for (auto [worst, number] : order) {
    uint64_t bare = changes(view, *layers[number], number);
    Layer full = covered_layer(view, sets, fresh, number);
    if (uint64_t more = changes(view, full, number) - bare; more <= left) {
      left -= more;
      layers[number].emplace(std::move(full));
    } else {
      cover(*layers[number], left);
      left -= changes(view, *layers[number], number) - bare;
    }
  }
  return layers;
}

// The worst layer is improved again and again, by one change after the other, as long as `left` slots may change.
void improved(const View &view, Layers &layers, uint64_t &left) {
  uint32_t living = view.living();
  std::priority_queue<std::pair<int64_t, int64_t>> worst;
  for (uint32_t number = 0; number < layers.size(); ++number) worst.emplace(excess(layers[number]->load, living), -int64_t{number});
  while (!worst.empty() && left > 0) {
    auto number = static_cast<size_t>(-worst.top().second);
    worst.pop();
    Layer &layer = *layers[number];
    if (good(layer, living, kGood)) continue;
    uint32_t slots = improve(layer, view.alive, left, layer.total() / living / kWorthwhile);
    if (slots == 0) continue;
    left -= slots;
    worst.emplace(excess(layer.load, living), -static_cast<int64_t>(number));
  }
}

// Layers that are poor still are tried with other numbers of copies; that is taken where what is gained is worth the slots it changes.
void reshaped(const View &view, Layers &layers, uint64_t &left) {
  uint32_t living = view.living();
  Uneven uneven(living);
  for (uint32_t number = 0; number < layers.size() && left > 0; ++number) {
    if (good(*layers[number], living, kPoor)) continue;
    auto order = hottest_first(view.loads(number));
    for (const auto &counts : uneven.of(*layers[number], order)) {
      const Layer &layer = *layers[number];
      Layer other = layer;
      reshape(other, view.alive, order, counts);
      int64_t least = layer.total() / living / kWorthwhile;
      for (uint32_t step = 0; step < kPolish && !good(other, living, kGood); ++step)
        if (!improve(other, view.alive, UINT64_MAX, least)) break;
      uint64_t before = changes(view, layer, number), after = changes(view, other, number), more = after > before ? after - before : 0;
      int64_t gain = excess(layer.load, living) - excess(other.load, living);
      if (gain <= 0 || static_cast<uint64_t>(gain) * kWorthwhile < more * 1000 || more > left) continue;
      left -= more;
      layers[number].emplace(std::move(other));
    }
  }
}

void renew(const View &view, const Copysets &sets, std::span<int32_t> table, bool within) {
  uint64_t left = view.p.max_moves;
  Layers layers = within ? covered_within(view, sets, left) : covered_layers(view, sets);
  improved(view, layers, left);
  reshaped(view, layers, left);
  write(view, layers, table);
}

}  // namespace

void no_room(const Layer &layer) {
  fail(GFT_FULL, "%u experts with %u copies each do not fit the live ranks of %u x %u slots; ask gft_place_room what would", layer.experts,
       layer.sets.copies, layer.ranks, layer.slots);
}

uint64_t room_of(const gft_place_problem &problem) {
  View view{problem};
  Copysets sets = view.sets();
  uint64_t experts = 0;
  for (const auto &group : sets.members) experts += room(std::vector<uint32_t>(group.size(), problem.slots), sets.copies);
  return experts;
}

void plan(const gft_place_problem &problem, std::span<int32_t> table, bool within) {
  View view{problem};
  if (uint64_t experts = room_of(problem); experts < problem.experts)
    fail(GFT_FULL, "%u experts; the live ranks have room for %llu with %u copies of each; add slots or ask for less", problem.experts,
         static_cast<unsigned long long>(experts), view.copies());
  Copysets sets = view.sets();
  if (problem.old) return renew(view, sets, table, within);
  Fresh fresh(view.p, sets);
  for (uint32_t number = 0; number < problem.layers; ++number) {
    fresh.place(number, table.subspan(number * view.width, view.width));
  }
}

void repair(const gft_place_problem &problem, std::span<int32_t> table) {
  View view{problem};
  Copysets sets = make_copysets({problem.domains, size_t{4} * problem.ranks}, view.alive, 1, 0);
  Layers layers;
  adopted(view, sets, layers);
  write(view, layers, table);
}

}  // namespace gft::place
