// Repair after a loss: orphans, hottest first, each into the slot after which the busiest of the ranks concerned has least to do.
// Only orphans move; a donor's expert keeps a copy elsewhere.
#include <algorithm>
#include <numeric>

#include "steps.h"

namespace gft::place {
namespace {

int64_t after(const Layer &layer, uint32_t orphan, uint32_t slot) {
  uint32_t there = layer.rank(slot);
  int64_t peak = layer.load[there] + layer.share(orphan, 1);
  if (layer.table[slot] == kEmpty) return peak;
  auto donor = static_cast<uint32_t>(layer.table[slot]);
  int64_t each = layer.share(donor), more = layer.share(donor, layer.copies(donor) - 1) - each;
  peak -= each;
  for (uint32_t other : layer.at[donor])
    if (layer.rank(other) != there) peak = std::max(peak, layer.load[layer.rank(other)] + more);
  return peak;
}

}  // namespace

void adopt(Layer &layer, std::span<const uint8_t> alive, std::span<uint32_t> got, uint32_t most) {
  std::vector<uint32_t> orphans;
  for (uint32_t e = 0; e < layer.experts; ++e)
    if (layer.at[e].empty()) orphans.push_back(e);
  std::stable_sort(orphans.begin(), orphans.end(), [&](uint32_t a, uint32_t b) { return layer.loads[a] > layer.loads[b]; });
  for (uint32_t orphan : orphans) {
    uint32_t best = kNone;
    int64_t least = 0;
    bool over = false;
    for (uint32_t slot = 0; slot < layer.table.size(); ++slot) {
      uint32_t rank = layer.rank(slot);
      if (!alive[rank]) continue;
      if (layer.table[slot] != kEmpty && layer.copies(static_cast<uint32_t>(layer.table[slot])) < 2) continue;
      bool late = got[rank] >= most;
      int64_t peak = after(layer, orphan, slot);
      if (best == kNone || (over && !late) || (over == late && (peak < least || (peak == least && got[rank] < got[layer.rank(best)]))))
        best = slot, least = peak, over = late;
    }
    if (best == kNone) return;  // no room for the coldest
    if (layer.table[best] != kEmpty) layer.take(best);
    layer.put(orphan, best);
    ++got[layer.rank(best)];
  }
}

}  // namespace gft::place
