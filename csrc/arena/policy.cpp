// Segmented LRU with caps that are applied when somebody looks, not when somebody marks: words that were forged, or left by
// a writer that died in between, can only change the order and never keep the whole arena.
#include "policy.h"

#include <algorithm>

namespace gft {
namespace {

enum Class : uint8_t { probation = 0, guarded = 1, open = 2, firm = 3 };

// class (2 bits) | stamp (64) | slot (26) | index (26): comparing two keys is comparing what goes sooner.
struct Key {
  uint64_t high, low;
  static Key of(uint8_t kind, const Resident &r, size_t index) {
    return {uint64_t{kind} << 62 | r.stamp >> 2, r.stamp << 62 | uint64_t{r.slot} << 26 | index};
  }
  size_t index() const { return low & ((uint64_t{1} << 26) - 1); }
  bool operator<(const Key &other) const { return high != other.high ? high < other.high : low < other.low; }
};

// The `count` that go first, in order, at the front.
void put_first(std::vector<Key> &keys, size_t count, bool sorted) {
  count = std::min(count, keys.size());
  auto end = keys.begin() + static_cast<ptrdiff_t>(count);
  std::nth_element(keys.begin(), end, keys.end());
  if (sorted) std::sort(keys.begin(), end);
}

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

  std::vector<Key> order;
  order.reserve(residents.size());
  std::array<std::vector<Key>, kNamespaces + 1> above;  // candidates of namespaces that have too much
  for (size_t i = 0; i < residents.size(); ++i) {
    uint8_t owner = residents[i].owner;
    if (classes[i] == firm || (only && owner != only)) continue;
    (!only && usage[owner].over() ? above[owner] : order).push_back(Key::of(classes[i], residents[i], i));
  }
  std::vector<Key> first;
  for (size_t owner = 1; owner <= kNamespaces; ++owner) {
    auto &of = above[owner];
    if (of.empty()) continue;
    size_t excess = std::min<uint64_t>(of.size(), usage[owner].used - usage[owner].quota);
    put_first(of, excess, false);
    first.insert(first.end(), of.begin(), of.begin() + static_cast<ptrdiff_t>(excess));
    order.insert(order.end(), of.begin() + static_cast<ptrdiff_t>(excess), of.end());
  }
  std::vector<size_t> out;
  for (auto *keys : {&first, &order}) {
    size_t more = std::min(keys->size(), want - out.size());
    put_first(*keys, more, true);
    for (size_t i = 0; i < more; ++i) out.push_back((*keys)[i].index());
  }
  return out;
}

}  // namespace gft
