// Segmented LRU with caps that are applied when somebody looks, not when somebody marks: words that were forged, or left by
// a writer that died in between, can only change the order and never keep the whole arena.
#include "policy.h"

#include <algorithm>

namespace gft {
namespace {

enum Class : uint8_t { probation = 0, guarded = 1, open = 2, firm = 3 };

}  // namespace

std::vector<size_t> eviction_order(const std::vector<Resident> &residents, uint64_t slots, const CapsWord &caps,
                                   const UsageTable &usage, uint8_t only, size_t want) {
  auto newer = [&](size_t a, size_t b) {
    const Resident &x = residents[a], &y = residents[b];
    return x.stamp != y.stamp ? x.stamp > y.stamp : x.slot > y.slot;
  };
  // The newest of `of`, as many as the cap allows.
  auto capped = [&](std::vector<size_t> &of, uint64_t cap) {
    if (of.size() <= cap) return;
    std::nth_element(of.begin(), of.begin() + static_cast<ptrdiff_t>(cap), of.end(), newer);
    of.resize(cap);
  };
  std::vector<uint8_t> classes(residents.size(), probation);
  std::vector<size_t> chosen;
  for (size_t i = 0; i < residents.size(); ++i) {
    if (residents[i].pinned) chosen.push_back(i);
    if (residents[i].held) classes[i] = open;
  }
  capped(chosen, slots * caps.pinned_part / 1000);
  for (size_t i : chosen) classes[i] = firm;
  uint64_t rest = slots - chosen.size();
  chosen.clear();
  for (size_t i = 0; i < residents.size(); ++i)
    if (residents[i].is_protected && classes[i] == probation) chosen.push_back(i);
  capped(chosen, rest * caps.protected_part / 1000);
  for (size_t i : chosen) classes[i] = guarded;

  auto sooner = [&](size_t a, size_t b) {
    return classes[a] != classes[b] ? classes[a] < classes[b] : newer(b, a);
  };
  std::vector<size_t> order;
  std::array<std::vector<size_t>, kNamespaces + 1> above;  // candidates of namespaces that have too much
  for (size_t i = 0; i < residents.size(); ++i) {
    uint8_t owner = residents[i].owner;
    if (classes[i] == firm || (only && owner != only)) continue;
    (!only && usage[owner].over() ? above[owner] : order).push_back(i);
  }
  std::vector<size_t> first;
  for (size_t owner = 1; owner <= kNamespaces; ++owner) {
    auto &of = above[owner];
    size_t excess = std::min<uint64_t>(of.size(), usage[owner].over() ? usage[owner].used - usage[owner].quota : 0);
    std::nth_element(of.begin(), of.begin() + static_cast<ptrdiff_t>(excess), of.end(), sooner);
    first.insert(first.end(), of.begin(), of.begin() + static_cast<ptrdiff_t>(excess));
    order.insert(order.end(), of.begin() + static_cast<ptrdiff_t>(excess), of.end());
  }
  std::sort(first.begin(), first.end(), sooner);
  if (first.size() > want) first.resize(want);
  size_t more = std::min(order.size(), want - first.size());
  std::partial_sort(order.begin(), order.begin() + static_cast<ptrdiff_t>(more), order.end(), sooner);
  first.insert(first.end(), order.begin(), order.begin() + static_cast<ptrdiff_t>(more));
  return first;
}

}  // namespace gft
