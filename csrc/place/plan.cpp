// The order of steps: without an old placement fill and polish every layer; with one, cover what is not, then improve the worst
// layer again and again while slots may change. Repair adopts orphans and does nothing else.
#include "plan.h"

#include <algorithm>
#include <optional>
#include <queue>

#include "../support/fail.h"
#include "steps.h"

namespace gft::place {
namespace {

constexpr int64_t kGood = 100;         // a layer is left alone when its busiest rank has at most 1/100 more than the mean
constexpr int64_t kPoor = 33;          // with 1/33 more or worse, a fresh layer is tried with fewer copies of hot experts
constexpr int64_t kWorthwhile = 1000;  // and a change has to gain 1/1000 of the mean per slot, when slots hold something already
constexpr uint32_t kPolish = 64;       // changes of a fresh layer

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
  auto old = view.old(number);
  for (uint32_t slot = 0; slot < old.size(); ++slot) {
    if (old[slot] < 0 || !view.alive[layer.rank(slot)]) continue;
    auto expert = static_cast<uint32_t>(old[slot]);
    if (!layer.on(expert, layer.rank(slot))) layer.put(expert, slot);
  }
  return layer;
}

bool good(const Layer &layer, uint32_t living, int64_t part = kGood) {
  int64_t mean = layer.total() / living;
  return layer.load[layer.busiest()] <= mean + mean / part;
}

Layer fresh(const View &view, const Copysets &sets, uint32_t number) {
  uint32_t living = view.living();
  auto attempt = [&](uint32_t eighths) {
    Layer layer(view.p.experts, view.p.ranks, view.p.slots, view.loads(number), sets);
    fill(layer, view.alive, eighths);
    for (uint32_t step = 0; step < kPolish && !good(layer, living); ++step)
      if (!improve(layer, view.alive, UINT64_MAX, 1)) break;
    return layer;
  };
  std::optional<Layer> best(attempt(8));
  bool extras = uint64_t{living} * view.p.slots > uint64_t{view.p.experts} * sets.copies;
  // More copies are not always better: three of 2/5 do not fit where two of 3/5 do.
  for (uint32_t eighths = 7; extras && eighths > 0 && !good(*best, living, kPoor); --eighths) {
    Layer other = attempt(eighths);
    if (other.load[other.busiest()] < best->load[best->busiest()]) best.emplace(std::move(other));
  }
  return std::move(*best);
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
Layer covered_layer(const View &view, const Copysets &sets, uint32_t number) {
  Layer layer = taken_over(view, sets, number);
  if (cover(layer)) {
    top_up(layer, view.alive);
    return layer;
  }
  std::vector<int32_t> row = fresh(view, sets, number).table;
  settle(row, view.old(number), view.p.slots);
  Layer settled(view.p.experts, view.p.ranks, view.p.slots, view.loads(number), sets);
  for (uint32_t slot = 0; slot < row.size(); ++slot)
    if (row[slot] != kEmpty) settled.put(static_cast<uint32_t>(row[slot]), slot);
  return settled;
}

void renew(const View &view, const Copysets &sets, std::span<int32_t> table) {
  std::vector<Layer> layers;
  layers.reserve(view.p.layers);
  uint32_t living = view.living();
  for (uint32_t number = 0; number < view.p.layers; ++number) layers.push_back(covered_layer(view, sets, number));
  auto excess = [&](const Layer &layer) {  // of the busiest rank over the mean, in thousandths
    int64_t mean = std::max<int64_t>(layer.total() / living, 1);
    return (layer.load[layer.busiest()] - mean) / std::max<int64_t>(mean / 1000, 1);
  };
  std::priority_queue<std::pair<int64_t, int64_t>> worst;
  for (uint32_t number = 0; number < layers.size(); ++number) worst.emplace(excess(layers[number]), -int64_t{number});
  uint64_t left = view.p.max_moves;
  while (!worst.empty() && left > 0) {
    auto number = static_cast<size_t>(-worst.top().second);
    worst.pop();
    Layer &layer = layers[number];
    if (good(layer, living)) continue;
    uint32_t slots = improve(layer, view.alive, left, layer.total() / living / kWorthwhile);
    if (slots == 0) continue;
    left -= slots;
    worst.emplace(excess(layer), -static_cast<int64_t>(number));
  }
  for (uint32_t number = 0; number < layers.size(); ++number)
    std::copy(layers[number].table.begin(), layers[number].table.end(), table.begin() + static_cast<long>(number * view.width));
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

void plan(const gft_place_problem &problem, std::span<int32_t> table) {
  View view{problem};
  if (uint64_t experts = room_of(problem); experts < problem.experts)
    fail(GFT_FULL, "%u experts; the live ranks have room for %llu with %u copies of each; add slots or ask for less", problem.experts,
         static_cast<unsigned long long>(experts), view.copies());
  Copysets sets = view.sets();
  if (problem.old) return renew(view, sets, table);
  for (uint32_t number = 0; number < problem.layers; ++number) {
    Layer layer = fresh(view, sets, number);
    std::copy(layer.table.begin(), layer.table.end(), table.begin() + static_cast<long>(number * view.width));
  }
}

void repair(const gft_place_problem &problem, std::span<int32_t> table) {
  View view{problem};
  Copysets sets = make_copysets({problem.domains, size_t{4} * problem.ranks}, view.alive, 1, 0);
  std::vector<Layer> layers;
  layers.reserve(problem.layers);
  uint64_t orphans = 0;
  for (uint32_t number = 0; number < problem.layers; ++number) {
    layers.push_back(taken_over(view, sets, number));
    for (const auto &slots : layers.back().at) orphans += slots.empty();
  }
  uint64_t living = view.living();
  auto most = static_cast<uint32_t>(std::min<uint64_t>(std::max<uint64_t>(2 * orphans / living, 1), UINT32_MAX));
  std::vector<uint32_t> got(problem.ranks);
  for (uint32_t number = 0; number < problem.layers; ++number) {
    adopt(layers[number], view.alive, got, most);
    std::copy(layers[number].table.begin(), layers[number].table.end(), table.begin() + static_cast<long>(number * view.width));
  }
}

}  // namespace gft::place
