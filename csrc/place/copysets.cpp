// Groups by taking one rank from each of the domains that have most ranks left, which makes as many groups as there can be.
#include "copysets.h"

#include <algorithm>
#include <numeric>

namespace gft::place {
namespace {

using Groups = std::vector<std::vector<uint32_t>>;

// Ranks by domain; each list is used up from its front.
struct Heaps {
  std::vector<std::vector<uint32_t>> ranks;
  std::vector<size_t> used;

  Heaps(std::span<const int32_t> domain, std::span<const uint32_t> which) {
    std::vector<int32_t> names;
    for (uint32_t rank : which) names.push_back(domain[rank]);
    std::sort(names.begin(), names.end());
    names.erase(std::unique(names.begin(), names.end()), names.end());
    ranks.resize(names.size());
    used.resize(names.size());
    for (uint32_t rank : which)
      ranks[static_cast<size_t>(std::lower_bound(names.begin(), names.end(), domain[rank]) - names.begin())].push_back(rank);
  }

  size_t left(size_t d) const { return ranks[d].size() - used[d]; }

  // One rank of each of the `size` fullest domains; empty when fewer have any.
  std::vector<uint32_t> take(uint32_t size) {
    std::vector<size_t> order(ranks.size());
    std::iota(order.begin(), order.end(), size_t{0});
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return left(a) > left(b); });
    if (size > order.size() || left(order[size - 1]) == 0) return {};
    std::vector<uint32_t> group;
    for (uint32_t i = 0; i < size; ++i) group.push_back(ranks[order[i]][used[order[i]]++]);
    std::sort(group.begin(), group.end());
    return group;
  }
};

Groups form(std::span<const int32_t> domain, std::span<const uint32_t> which, uint32_t copies, uint32_t first) {
  Heaps heaps(domain, which);
  Groups groups;
  for (uint32_t size = first;; size = copies) {
    auto group = heaps.take(size);
    if (group.empty()) break;
    groups.push_back(std::move(group));
  }
  return groups;
}

size_t covered(const Groups &groups) {
  size_t ranks = 0;
  for (const auto &group : groups) ranks += group.size();
  return ranks;
}

// The better of two ways: a first group that takes the ranks that no group of `copies` would get, or groups of `copies` only.
Groups best(std::span<const int32_t> domain, std::span<const uint32_t> which, uint32_t copies) {
  uint32_t over = static_cast<uint32_t>(which.size() % copies);
  Groups plain = form(domain, which, copies, copies);
  if (over == 0) return plain;
  Groups wide = form(domain, which, copies, copies + over);
  return covered(wide) > covered(plain) ? wide : plain;
}

bool fits(std::span<const int32_t> domain, const std::vector<uint32_t> &group, uint32_t rank) {
  return std::none_of(group.begin(), group.end(), [&](uint32_t member) { return domain[member] == domain[rank]; });
}

}  // namespace

Copysets make_copysets(std::span<const int32_t> domains, std::span<const uint8_t> alive, uint32_t copies, uint32_t level) {
  size_t ranks = alive.size();
  auto of = [&](uint32_t l) { return domains.subspan(l * ranks, ranks); };
  std::vector<uint32_t> all(ranks);
  std::iota(all.begin(), all.end(), 0u);
  Groups groups;
  for (uint32_t l = 3;; --l) {
    groups = best(of(l), all, copies);
    if (l <= level || covered(groups) == ranks) break;
  }
  std::vector<uint8_t> seated(ranks);
  Groups living;
  for (auto &group : groups) {
    std::erase_if(group, [&](uint32_t rank) { return !alive[rank]; });
    if (group.size() < copies) continue;
    for (uint32_t rank : group) seated[rank] = 1;
    living.push_back(std::move(group));
  }
  std::vector<uint32_t> strays;
  for (uint32_t rank : all)
    if (alive[rank] && !seated[rank]) strays.push_back(rank);
  for (auto &group : form(of(level), strays, copies, copies)) {
    for (uint32_t rank : group) seated[rank] = 1;
    living.push_back(std::move(group));
  }
  for (uint32_t rank : strays) {
    if (seated[rank]) continue;
    std::vector<uint32_t> *smallest = nullptr;
    for (auto &group : living)
      if (fits(of(level), group, rank) && (!smallest || group.size() < smallest->size())) smallest = &group;
    if (smallest) smallest->insert(std::upper_bound(smallest->begin(), smallest->end(), rank), rank);
  }
  Copysets found{copies, std::move(living), std::vector<uint32_t>(ranks, kNone)};
  for (uint32_t g = 0; g < found.members.size(); ++g)
    for (uint32_t rank : found.members[g]) found.group_of[rank] = g;
  return found;
}

uint64_t room(std::span<const uint32_t> free, uint32_t copies) {
  uint64_t sum = std::accumulate(free.begin(), free.end(), uint64_t{0});
  if (free.size() == copies) return *std::min_element(free.begin(), free.end());
  // The most experts t for which the members' slots, no more than one of each expert, make copies x t.
  for (uint64_t t = sum / copies; t > 0; --t) {
    uint64_t usable = 0;
    for (uint32_t slots : free) usable += std::min<uint64_t>(slots, t);
    if (usable >= copies * t) return t;
  }
  return 0;
}

}  // namespace gft::place
