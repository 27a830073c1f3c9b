// The checks of a problem, and what a placement survives. A loss is fatal when some expert of some layer has all its live copies in it.
// Fatal sets of one or two ranks and of whole domains are marked layer by layer in one table each.
#include <algorithm>
#include <numeric>

#include "../support/fail.h"
#include "layer.h"
#include "plan.h"

namespace gft::place {
namespace {

constexpr uint64_t kMost = uint64_t{1} << 20, kCells = uint64_t{1} << 28;
constexpr int64_t kLoads = int64_t{1} << 42;

void check_rows(std::span<const int32_t> table, uint32_t experts, const char *what) {
  for (size_t i = 0; i < table.size(); ++i)
    if (table[i] < kEmpty || table[i] >= static_cast<int64_t>(experts))
      fail(GFT_INVALID, "%s has expert %d at %zu; experts are -1 (empty) to %u; check the byte order", what, table[i], i, experts - 1);
}

class Losses {
 public:
  Losses(const gft_place_problem &problem) : p_(problem), one_(p_.ranks), two_(size_t{p_.ranks} * p_.ranks) {
    for (uint32_t level = 1; level < 4; ++level) domain_[level - 1].resize(p_.ranks);
  }

  // The live ranks that hold one expert, ascending.
  void holders(std::span<const uint32_t> ranks) {
    if (ranks.empty()) nothing_ = true;
    if (ranks.size() == 1) one_[ranks[0]] = 1;
    if (ranks.size() == 2) two_[size_t{ranks[0]} * p_.ranks + ranks[1]] = 1;
    for (uint32_t level = 1; level < 4 && !ranks.empty(); ++level) {
      bool together = std::all_of(ranks.begin(), ranks.end(), [&](uint32_t r) { return name(level, r) == name(level, ranks[0]); });
      if (together) domain_[level - 1][ranks[0]] = 1;
    }
  }

  void count(gft_place_facts &facts) const {
    facts = {};
    for (uint32_t a = 0; a < p_.ranks; ++a) {
      if (!p_.alive[a]) continue;
      ++facts.one[1];
      facts.one[0] += !nothing_ && !one_[a];
      for (uint32_t b = a + 1; b < p_.ranks; ++b) {
        if (!p_.alive[b]) continue;
        ++facts.two[1];
        facts.two[0] += !nothing_ && !one_[a] && !one_[b] && !two_[size_t{a} * p_.ranks + b];
      }
    }
    for (uint32_t level = 1; level < 4; ++level) {
      std::vector<std::pair<int32_t, uint8_t>> seen;  // (domain, fatal)
      for (uint32_t r = 0; r < p_.ranks; ++r)
        if (p_.alive[r]) seen.emplace_back(name(level, r), domain_[level - 1][r]);
      std::sort(seen.begin(), seen.end());
      for (size_t i = 0; i < seen.size(); ++i) {
        if (i + 1 < seen.size() && seen[i + 1].first == seen[i].first) continue;  // the last of a domain says if any was fatal
        ++facts.domains[level - 1][1];
        facts.domains[level - 1][0] += !nothing_ && !seen[i].second;
      }
    }
  }

 private:
  int32_t name(uint32_t level, uint32_t rank) const { return p_.domains[size_t{level} * p_.ranks + rank]; }

  const gft_place_problem &p_;
  std::vector<uint8_t> one_, two_, domain_[3];
  bool nothing_ = false;
};

}  // namespace

void check(const gft_place_problem &p) {
  uint64_t width = uint64_t{p.ranks} * p.slots;
  if (!p.layers || !p.experts || !width || p.experts > kMost || width > kMost || p.layers > kCells / width)
    fail(GFT_INVALID, "a placement of %u layers, %u experts, %u ranks x %u slots; each is at least 1, experts and ranks x slots at most 2^20, "
         "all slots at most 2^28; plan fewer layers at a time", p.layers, p.experts, p.ranks, p.slots);
  if (p.level > 3 || p.losses > p.ranks)
    fail(GFT_INVALID, "losses of %u ranks and a domain of level %u; at most %u ranks and levels 0 to 3", p.losses, p.level, p.ranks);
  if (std::none_of(p.alive, p.alive + p.ranks, [](uint8_t a) { return a != 0; }))
    fail(GFT_INVALID, "no rank of %u is alive; there is nothing to place experts on", p.ranks);
  for (uint32_t layer = 0; layer < p.layers; ++layer) {
    int64_t sum = 0;
    for (uint32_t e = 0; e < p.experts; ++e) {
      int64_t load = p.loads[size_t{layer} * p.experts + e];
      if (load < 0 || load >= kLoads || (sum += load) >= kLoads)
        fail(GFT_INVALID, "load %lld of expert %u in layer %u; loads are not negative and a layer's sum is below 2^42; scale them down",
             static_cast<long long>(load), e, layer);
    }
  }
  if (p.old) check_rows({p.old, p.layers * width}, p.experts, "the old placement");
}

void examine(const gft_place_problem &p, std::span<const int32_t> table, gft_place_facts &facts, std::span<uint32_t> copies,
             std::span<uint32_t> balance) {
  check_rows(table, p.experts, "the placement");
  size_t width = size_t{p.ranks} * p.slots;
  Losses losses(p);
  std::vector<std::vector<uint32_t>> holders(p.experts);
  auto living = static_cast<uint64_t>(std::count_if(p.alive, p.alive + p.ranks, [](uint8_t a) { return a != 0; }));
  for (uint32_t layer = 0; layer < p.layers; ++layer) {
    for (auto &ranks : holders) ranks.clear();
    std::vector<uint32_t> count(p.experts);
    std::vector<int64_t> load(p.ranks);
    auto row = table.subspan(layer * width, width);
    for (uint32_t slot = 0; slot < width; ++slot) {
      uint32_t rank = slot / p.slots;
      if (row[slot] == kEmpty || !p.alive[rank]) continue;
      auto &ranks = holders[static_cast<uint32_t>(row[slot])];
      ++count[static_cast<uint32_t>(row[slot])];
      if (ranks.empty() || ranks.back() != rank) ranks.push_back(rank);
    }
    for (uint32_t slot = 0; slot < width; ++slot) {
      if (row[slot] == kEmpty || !p.alive[slot / p.slots]) continue;
      auto e = static_cast<uint32_t>(row[slot]);
      load[slot / p.slots] += (p.loads[size_t{layer} * p.experts + e] << 20) / count[e];
    }
    for (const auto &ranks : holders) losses.holders(ranks);
    copies[layer] = *std::min_element(count.begin(), count.end());
    auto most = static_cast<unsigned __int128>(*std::max_element(load.begin(), load.end()));
    auto sum = static_cast<unsigned __int128>(std::accumulate(load.begin(), load.end(), int64_t{0}));
    balance[layer] = most == 0 ? 1000000u : static_cast<uint32_t>(sum * 1000000u / (most * living));
  }
  losses.count(facts);
}

}  // namespace gft::place
