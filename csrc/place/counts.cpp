// Uneven numbers of copies are found by trial on a simple picture of the ranks: copies of hot experts are laid out, the hottest share first,
// each on the rank that has least to do; all other slots have the same average share of the others. Groups are not looked at: filling does.
#include "counts.h"

#include <algorithm>
#include <functional>
#include <numeric>

namespace gft::place {
namespace {

constexpr int64_t kMean = 1 << 16;     // loads are scaled so that a rank's mean is this
constexpr int64_t kSlack = kMean / 100;  // what a rank may have above it for nothing
constexpr int64_t kHot = kMean / 16;  // share of a copy from which an expert is hot
constexpr int64_t kHeld = 1 << 21;    // more than a rank has slots
constexpr uint32_t kMostHot = 64;    // experts that are looked at
constexpr uint32_t kBase = 8, kSpan = 24;  // how far the two numbers of copies are tried
constexpr size_t kSeeds = 3, kBest = 2;

using Counts = std::vector<uint32_t>;

class Picture {
 public:
  Picture(const Layer &layer, std::span<const uint32_t> order, uint32_t ranks, uint64_t &budget)
      : ranks_(ranks), slots_(layer.slots), floor_(layer.sets.copies), budget_(budget) {
    int64_t whole = std::accumulate(layer.loads.begin(), layer.loads.end(), int64_t{0});
    int64_t mean = std::max<int64_t>(whole / ranks, 1);
    auto scaled = [&](uint32_t expert) { return static_cast<int64_t>(static_cast<__int128>(layer.loads[expert]) * kMean / mean); };
    size_t hot = 0;
    for (; hot < order.size() && hot < kMostHot && scaled(order[hot]) / floor_ >= kHot; ++hot) load_.push_back(scaled(order[hot]));
    for (size_t i = hot; i < order.size(); ++i) cold_ += scaled(order[i]);
    uint64_t others = uint64_t{floor_} * (order.size() - hot), all = uint64_t{ranks} * slots_;
    room_ = all > others ? all - others : 0;
  }

  size_t hot() const { return load_.size(); }
  const std::vector<int64_t> &loads() const { return load_; }

  // The sum of fourth powers of what ranks have too much, so that few ranks with much are no better than many with less; INT64_MAX for
  // what does not fit, or when the budget is spent.
  int64_t cost(const Counts &counts) {
    uint64_t used = std::accumulate(counts.begin(), counts.end(), uint64_t{0});
    if (used > room_ || used + ranks_ > budget_) return INT64_MAX;
    budget_ -= used + ranks_;
    uint64_t rest = uint64_t{ranks_} * slots_ - used;
    int64_t each = rest ? cold_ / static_cast<int64_t>(rest) : 0;
    turns_.resize(hot());
    for (uint32_t i = 0; i < hot(); ++i) turns_[i] = {-load_[i] / counts[i], i};
    std::sort(turns_.begin(), turns_.end());
    heap_.assign(ranks_, int64_t{slots_} * each * kHeld);
    full_.clear();
    for (auto [negative, expert] : turns_) {
      uint32_t copies = counts[expert];
      if (copies > heap_.size()) return INT64_MAX;
      for (auto end = heap_.end(); end != heap_.end() - copies; --end) {  // on as many ranks
        std::pop_heap(heap_.begin(), end, std::greater<>());
        *(end - 1) += (-negative - each) * kHeld + 1;
      }
      for (size_t at = heap_.size() - copies; at < heap_.size();) {
        if (heap_[at] % kHeld < slots_) {
          std::push_heap(heap_.begin(), heap_.begin() + static_cast<long>(++at), std::greater<>());
          continue;
        }
        full_.push_back(heap_[at]);
        heap_[at] = heap_.back();
        heap_.pop_back();
      }
    }
    int64_t sum = 0;
    auto add = [&](int64_t rank) {
      int64_t over = std::clamp<int64_t>(rank / kHeld - kMean - kSlack, 0, 2 * kMean) / (kMean / 512);
      sum += over * over * over * over;
    };
    for (int64_t rank : heap_) add(rank);
    for (int64_t rank : full_) add(rank);
    return sum;
  }

  // The hottest get as many copies as make shares of 1/b of the hottest load, as long as there are slots, the others of 1/a.
  Counts two_kinds(uint32_t a, uint32_t b) const {
    auto copies = [&](size_t i, uint32_t part) {
      int64_t wanted = (load_[i] * part + load_[0] - 1) / load_[0];
      return static_cast<uint32_t>(std::clamp<int64_t>(wanted, floor_, std::max(ranks_, floor_)));
    };
    Counts counts(hot());
    uint64_t used = 0;
    for (size_t i = 0; i < hot(); ++i) used += counts[i] = copies(i, a);
    for (size_t i = 0; i < hot() && used < room_; ++i) {
      uint32_t more = copies(i, b) - counts[i];
      if (used + more > room_) break;
      used += more, counts[i] += more;
    }
    return counts;
  }

  // One copy less of one expert, one more of another, or one of both, as long as that costs less.
  int64_t descend(Counts &counts, int64_t now) {
    for (bool better = true; better && now > 0 && budget_ > 0;) {
      better = false;
      auto kinds = distinct(counts);
      kinds.push_back(kNone);
      for (size_t i = 0; i < kinds.size() && !better; ++i)
        for (size_t j = 0; j < kinds.size() && !better; ++j) {
          uint32_t less = kinds[i], more = kinds[j];
          if (less == more || (less != kNone && counts[less] <= floor_) || (more != kNone && counts[more] >= ranks_)) continue;
          if (less != kNone) --counts[less];
          if (more != kNone) ++counts[more];
          if (int64_t then = cost(counts); then < now) {
            now = then, better = true;
            continue;
          }
          if (less != kNone) ++counts[less];
          if (more != kNone) --counts[more];
        }
    }
    return now;
  }

 private:
  // One expert of each kind: those of nearly the same load with as many copies.
  std::vector<uint32_t> distinct(const Counts &counts) const {
    std::vector<uint32_t> found;
    for (uint32_t i = 0; i < hot(); ++i) {
      bool seen = std::any_of(found.begin(), found.end(), [&](uint32_t f) { return counts[f] == counts[i] && alike(load_[f], load_[i]); });
      if (!seen) found.push_back(i);
    }
    return found;
  }

  uint32_t ranks_, slots_, floor_;
  uint64_t &budget_;
  std::vector<int64_t> load_;  // of each hot expert
  int64_t cold_ = 0;           // of all others
  uint64_t room_ = 0;          // slots that hot experts may have
  std::vector<std::pair<int64_t, uint32_t>> turns_;
  std::vector<int64_t> heap_, full_;  // ranks: load x kHeld + copies held, so that equal ones are the same whichever comes first
};

}  // namespace

std::vector<uint32_t> hottest_first(std::span<const int64_t> loads) {
  std::vector<std::pair<int64_t, uint32_t>> turns(loads.size());
  for (uint32_t e = 0; e < loads.size(); ++e) turns[e] = {-loads[e], e};
  std::sort(turns.begin(), turns.end());
  std::vector<uint32_t> order(loads.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = turns[i].second;
  return order;
}

std::vector<uint32_t> by_share(const Layer &layer, uint32_t ranks, uint64_t extras) {
  std::vector<uint32_t> copies(layer.experts, layer.sets.copies);
  auto colder = [&](uint32_t a, uint32_t b) {
    int64_t left = layer.loads[a] * copies[b], right = layer.loads[b] * copies[a];
    return left != right ? left < right : a > b;
  };
  std::vector<uint32_t> heap(layer.experts);
  std::iota(heap.begin(), heap.end(), 0u);
  if (layer.sets.copies >= ranks || extras == 0) return copies;
  std::make_heap(heap.begin(), heap.end(), colder);
  for (; extras > 0 && !heap.empty(); --extras) {
    std::pop_heap(heap.begin(), heap.end(), colder);
    if (++copies[heap.back()] < ranks) std::push_heap(heap.begin(), heap.end(), colder);
    else heap.pop_back();
  }
  return copies;
}

int64_t Uneven::cost(const Layer &layer, std::span<const uint32_t> order, std::span<const uint32_t> copies) const {
  uint64_t budget = UINT64_MAX;
  Picture picture(layer, order, ranks_, budget);
  Counts hot(picture.hot());
  for (size_t i = 0; i < hot.size(); ++i) hot[i] = copies[order[i]];
  return picture.cost(hot);
}

const std::vector<Counts> &Uneven::of(const Layer &layer, std::span<const uint32_t> order) {
  Picture picture(layer, order, ranks_, budget_);
  const auto &hot = picture.loads();
  if (!hot.empty() && std::equal(hot.begin(), hot.end(), hot_.begin(), hot_.end(), alike)) return found_;
  hot_ = hot;
  found_.clear();
  uint32_t least = layer.sets.copies;
  if (least >= ranks_ || hot.empty()) return found_;
  std::vector<std::pair<int64_t, Counts>> seeds;
  auto best_first = [&](size_t most) {
    std::sort(seeds.begin(), seeds.end());
    seeds.erase(std::unique(seeds.begin(), seeds.end()), seeds.end());
    if (seeds.size() > most) seeds.resize(most);
  };
  for (uint32_t a = least; a < least + kBase; ++a)
    for (uint32_t b = a; b < a + kSpan; ++b) {
      Counts counts = picture.two_kinds(a, b);
      if (int64_t cost = picture.cost(counts); cost < INT64_MAX) seeds.emplace_back(cost, std::move(counts));
    }
  best_first(kSeeds);
  for (auto &[cost, counts] : seeds) cost = picture.descend(counts, cost);
  best_first(kBest);
  for (auto &seed : seeds) found_.push_back(std::move(seed.second));
  return found_;
}

}  // namespace gft::place
