// The order of steps: without an old placement fill and polish every layer; with one, cover what is not, then improve the worst
// layer again and again while slots may change. Repair adopts orphans and does nothing else; recovery adopts, then covers and improves
// as far as it may.
#include "plan.h"

#include <algorithm>
#include <cstdlib>
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
constexpr int64_t kAlike = 10;         // thousandths of the mean by which a layer may differ from the last that was tried in every way

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

bool good(const Layer &layer, uint32_t living, int64_t part = kGood) {
  int64_t mean = layer.total() / living;
  return layer.load[layer.busiest()] <= mean + mean / part;
}

// Of the busiest rank over the mean, in thousandths.
int64_t excess(const Layer &layer, uint32_t living) {
  int64_t mean = std::max<int64_t>(layer.total() / living, 1);
  return (layer.load[layer.busiest()] - mean) / std::max<int64_t>(mean / 1000, 1);
}

// Layers from nothing. More copies are not always better: three of 2/5 do not fit where two of 3/5 do, so every layer that is poor is tried
// with fewer. What was best for one layer is tried first for the next, and taken when it comes out the same there.
class Fresh {
 public:
  Fresh(const View &view, const Copysets &sets)
      : view_(view), sets_(sets), living_(view.living()), extras_(uint64_t{living_} * view.p.slots > uint64_t{view.p.experts} * sets.copies) {}

  Layer layer(uint32_t number) {
    Layer first = attempt(number, eighths_);
    int64_t found = excess(first, living_);
    if (!extras_ || good(first, living_, kPoor) || std::abs(found - reached_) <= kAlike) return first;
    std::optional<Layer> best(std::move(first));
    uint32_t tried = eighths_;
    for (uint32_t eighths = 8; eighths > 0 && !good(*best, living_, kPoor); --eighths) {
      if (eighths == tried) continue;
      Layer other = attempt(number, eighths);
      if (int64_t now = excess(other, living_); now < found) best.emplace(std::move(other)), found = now, eighths_ = eighths;
    }
    reached_ = found;
    return std::move(*best);
  }

 private:
  Layer attempt(uint32_t number, uint32_t eighths) const {
    Layer layer(view_.p.experts, view_.p.ranks, view_.p.slots, view_.loads(number), sets_);
    fill(layer, view_.alive, eighths);
    for (uint32_t step = 0; step < kPolish && !good(layer, living_); ++step)
      if (!improve(layer, view_.alive, UINT64_MAX, 1)) break;
    return layer;
  }

  const View &view_;
  const Copysets &sets_;
  uint32_t living_;
  bool extras_;
  uint32_t eighths_ = 8;     // of the slots beyond coverage, for hot experts: what was best
  int64_t reached_ = -1000;  // the excess of the last layer for which all were tried
};

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
  std::vector<int32_t> row = fresh.layer(number).table;
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
  Fresh fresh(view, sets);
  for (uint32_t number = 0; number < view.p.layers; ++number) layers.emplace_back(covered_layer(view, sets, fresh, number));
  return layers;
}

// As many layers covered as `left` changes allow, those first in which the busiest rank has most to do; experts without any copy before
// all others. The last layer that is begun may be covered in part. `left` is what remains.
Layers covered_within(const View &view, const Copysets &sets, uint64_t &left) {
  Layers layers;
  left -= std::min(left, adopted(view, sets, layers));
  Fresh fresh(view, sets);
  std::vector<std::pair<int64_t, uint32_t>> order;
  for (uint32_t number = 0; number < view.p.layers; ++number) order.emplace_back(-excess(*layers[number], view.living()), number);
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

void renew(const View &view, const Copysets &sets, std::span<int32_t> table, bool within) {
  uint64_t left = view.p.max_moves;
  Layers layers = within ? covered_within(view, sets, left) : covered_layers(view, sets);
  uint32_t living = view.living();
  std::priority_queue<std::pair<int64_t, int64_t>> worst;
  for (uint32_t number = 0; number < layers.size(); ++number) worst.emplace(excess(*layers[number], living), -int64_t{number});
  while (!worst.empty() && left > 0) {
    auto number = static_cast<size_t>(-worst.top().second);
    worst.pop();
    Layer &layer = *layers[number];
    if (good(layer, living)) continue;
    uint32_t slots = improve(layer, view.alive, left, layer.total() / living / kWorthwhile);
    if (slots == 0) continue;
    left -= slots;
    worst.emplace(excess(layer, living), -static_cast<int64_t>(number));
  }
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
  Fresh fresh(view, sets);
  for (uint32_t number = 0; number < problem.layers; ++number) {
    Layer layer = fresh.layer(number);
    std::copy(layer.table.begin(), layer.table.end(), table.begin() + static_cast<long>(number * view.width));
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
