// What is tried for one layer is bounded, and so is what is tried for all of them: planning takes about as long whatever the loads are.
#include "fresh.h"

#include <algorithm>
#include <cstdlib>
#include <numeric>
#include <optional>

namespace gft::place {
namespace {

constexpr int64_t kAlike = 10;  // thousandths of the mean by which a layer may differ from the last that was tried in every way
constexpr int64_t kSame = 1;    // thousandths by which the last layer's placement may be worse on the next one
constexpr uint32_t kTries = 2, kAtLeast = 1;  // further ways tried per layer: so many on average, and so many for any

}  // namespace

Fresh::Fresh(const gft_place_problem &problem, const Copysets &sets)
    : p_(problem),
      sets_(sets),
      alive_(problem.alive, problem.ranks),
      living_(static_cast<uint32_t>(std::count_if(alive_.begin(), alive_.end(), [](uint8_t a) { return a != 0; }))),
      extras_(uint64_t{living_} * problem.slots > uint64_t{problem.experts} * sets.copies),
      uneven_(living_),
      share_(problem.experts),
      load_(problem.ranks) {}

void Fresh::place(uint32_t number, std::span<int32_t> row) {
  order_ = hottest_first(loads(number));
  if (like_the_last(number, row)) return;
  Layer layer = made(number);
  remember(layer);
  std::copy(layer.table.begin(), layer.table.end(), row.begin());
}

// Layers are much alike: where the last one's placement, its experts named by hotness, is as good on this one, it is taken. If that is not
// good, only where its experts are as hot: nothing better is to be expected then.
bool Fresh::like_the_last(uint32_t number, std::span<int32_t> row) {
  if (pattern_.empty()) return false;
  auto load = loads(number);
  for (uint32_t i = 0; i < p_.experts; ++i) share_[i] = copies_[i] ? (load[order_[i]] << 20) / copies_[i] : 0;
  std::fill(load_.begin(), load_.end(), 0);
  for (uint32_t rank = 0, slot = 0; rank < p_.ranks; ++rank)
    for (uint32_t end = slot + p_.slots; slot < end; ++slot)
      if (pattern_[slot] != kEmpty) load_[rank] += share_[static_cast<size_t>(pattern_[slot])];
  int64_t now = excess(load_, living_);
  if (now > excess_ + kSame || (now > 1000 / kGood && !as_hot(load))) return false;
  for (size_t slot = 0; slot < row.size(); ++slot)
    row[slot] = pattern_[slot] == kEmpty ? kEmpty : static_cast<int32_t>(order_[static_cast<size_t>(pattern_[slot])]);
  return true;
}

bool Fresh::as_hot(std::span<const int64_t> load) const {
  auto sum = [](auto loads) { return std::accumulate(loads.begin(), loads.end(), int64_t{0}); };
  int64_t whole = sum(load), last = sum(std::span(loads_));
  for (uint32_t i = 0; i < p_.experts; ++i) {
    __int128 mine = static_cast<__int128>(load[order_[i]]) * last, theirs = static_cast<__int128>(loads_[i]) * whole;
    if ((mine > theirs ? mine - theirs : theirs - mine) > theirs / 64) return false;
  }
  return true;
}

void Fresh::remember(const Layer &layer) {
  std::vector<int32_t> place(p_.experts);
  copies_.resize(p_.experts);
  loads_.resize(p_.experts);
  for (uint32_t i = 0; i < p_.experts; ++i) {
    place[order_[i]] = static_cast<int32_t>(i);
    copies_[i] = layer.copies(order_[i]);
    loads_[i] = layer.loads[order_[i]];
  }
  pattern_ = layer.table;
  for (int32_t &cell : pattern_)
    if (cell != kEmpty) cell = place[static_cast<size_t>(cell)];
  excess_ = excess(layer.load, living_);
}

// Numbers of copies to try, and so many eighths for hot experts (0: they are uneven).
struct Fresh::Way {
  int64_t cost;
  uint32_t eighths;
  std::vector<uint32_t> copies;
};

// What is tried for a layer that is poor, what promises most first. More copies are not always better: three of 2/5 do not fit one rank where
// two of 3/5 do. So hot experts get fewer, or numbers that differ even where loads do not.
std::vector<Fresh::Way> Fresh::ways(uint32_t number) {
  Layer empty(p_.experts, p_.ranks, p_.slots, loads(number), sets_);
  std::vector<Way> found;
  for (uint32_t eighths = 8; eighths > 0; --eighths)
    if (eighths != eighths_) found.push_back({0, eighths, eased(number, eighths)});
  for (const auto &hot : uneven_.of(empty, order_)) {
    found.push_back({0, 0, std::vector<uint32_t>(p_.experts, sets_.copies)});
    for (size_t i = 0; i < hot.size(); ++i) found.back().copies[order_[i]] = hot[i];
  }
  for (Way &way : found) way.cost = uneven_.cost(empty, order_, way.copies);
  std::stable_sort(found.begin(), found.end(), [](const Way &a, const Way &b) { return a.cost < b.cost; });
  return found;
}

// Ways that this layer may be tried in: all layers together may have so many, and each has its part of those that are left.
uint32_t Fresh::allowed() {
  uint32_t all = kTries * p_.layers, left = all > tries_ ? all - tries_ : 0, layers = p_.layers > placed_ ? p_.layers - placed_ : 1;
  return std::max(left / layers, kAtLeast);
}

Layer Fresh::made(uint32_t number) {
  Layer first = attempt(number, eased(number, eighths_), eighths_ < 8 ? Leftover::coldest : Leftover::hottest);
  uint32_t most = allowed();
  ++placed_;
  int64_t found = excess(first.load, living_);
  if (!extras_ || good(first, living_, kPoor) || std::abs(found - reached_) <= kAlike) return first;
  std::optional<Layer> best(std::move(first));
  for (const Way &way : ways(number)) {
    if (most-- == 0 || good(*best, living_, kPoor)) break;
    ++tries_;
    Layer other = attempt(number, way.copies, way.eighths == 8 ? Leftover::hottest : way.eighths ? Leftover::coldest : Leftover::together);
    int64_t now = excess(other.load, living_);
    if (now >= found) continue;
    best.emplace(std::move(other)), found = now;
    if (way.eighths) eighths_ = way.eighths;
  }
  reached_ = found;
  return std::move(*best);
}

Layer Fresh::attempt(uint32_t number, std::span<const uint32_t> copies, Leftover leftover) const {
  Layer layer(p_.experts, p_.ranks, p_.slots, loads(number), sets_);
  fill(layer, alive_, copies, leftover);
  for (uint32_t step = 0; step < kPolish && !good(layer, living_, kGood); ++step)
    if (!improve(layer, alive_, UINT64_MAX, 1)) break;
  return layer;
}

// Copies by share of so many eighths of the slots that coverage does not need.
std::vector<uint32_t> Fresh::eased(uint32_t number, uint32_t eighths) const {
  Layer empty(p_.experts, p_.ranks, p_.slots, loads(number), sets_);
  uint64_t extras = uint64_t{living_} * p_.slots - uint64_t{p_.experts} * sets_.copies;
  return by_share(empty, living_, extras * eighths / 8);
}

}  // namespace gft::place
