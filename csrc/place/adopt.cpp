// Repair after a loss: orphans, hottest first, each into the slot after which the busiest of the ranks concerned has least to do.
// Only orphans move; a donor's expert keeps a copy elsewhere.
#include <algorithm>
#include <numeric>

#include "steps.h"

namespace gft::place {
namespace {

// A slot that may be given away: an empty one, or one whose expert has another copy. `more` is what each other copy gets then.
struct Offer {
  uint32_t slot, rank;
  int64_t gone = 0, more = 0;
};

std::vector<Offer> offers(const Layer &layer, std::span<const uint8_t> alive) {
  std::vector<Offer> found;
  for (uint32_t rank = 0; rank < layer.ranks; ++rank) {
    if (!alive[rank]) continue;
    for (uint32_t slot = rank * layer.slots; slot < (rank + 1) * layer.slots; ++slot) {
      if (layer.table[slot] == kEmpty) {
        found.push_back({slot, rank});
        continue;
      }
      auto expert = static_cast<uint32_t>(layer.table[slot]);
      if (uint32_t copies = layer.copies(expert); copies > 1)
        found.push_back({slot, rank, layer.share(expert), layer.share(expert, copies - 1) - layer.share(expert)});
    }
  }
  return found;
}

// What the busiest of the ranks concerned has to do once the slot is an orphan's; counting stops above `enough`.
int64_t after(const Layer &layer, int64_t orphan, const Offer &offer, int64_t enough) {
  int64_t peak = layer.load[offer.rank] + orphan - offer.gone;
  if (peak > enough || layer.table[offer.slot] == kEmpty) return peak;
  for (uint32_t other = layer.first(static_cast<uint32_t>(layer.table[offer.slot])); other != kNone; other = layer.next(other))
    if (other != offer.slot) peak = std::max(peak, layer.load[layer.rank(other)] + offer.more);
  return peak;
}

// The slot is an orphan's now: it is no offer any more, and the other copies of its former expert have changed.
void given(const Layer &layer, std::vector<Offer> &all, uint32_t slot, int32_t former) {
  std::erase_if(all, [&](const Offer &o) { return o.slot == slot || (former != kEmpty && layer.table[o.slot] == former && layer.copies(static_cast<uint32_t>(former)) < 2); });
  if (former == kEmpty) return;
  auto expert = static_cast<uint32_t>(former);
  for (Offer &o : all)
    if (layer.table[o.slot] == former) o.gone = layer.share(expert), o.more = layer.share(expert, layer.copies(expert) - 1) - o.gone;
}

}  // namespace

void adopt(Layer &layer, std::span<const uint8_t> alive, std::span<uint32_t> got, uint32_t most) {
  std::vector<uint32_t> orphans;
  for (uint32_t e = 0; e < layer.experts; ++e)
    if (layer.copies(e) == 0) orphans.push_back(e);
  if (orphans.empty()) return;
  std::stable_sort(orphans.begin(), orphans.end(), [&](uint32_t a, uint32_t b) { return layer.loads[a] > layer.loads[b]; });
  auto all = offers(layer, alive);
  for (uint32_t orphan : orphans) {
    const Offer *best = nullptr;
    int64_t least = INT64_MAX, share = layer.share(orphan, 1);
    bool over = true;
    for (const Offer &offer : all) {
      bool late = got[offer.rank] >= most;
      if (late && !over) continue;
      bool sooner = over && !late;
      int64_t peak = after(layer, share, offer, best && !sooner ? least : INT64_MAX);
      if (!best || sooner || peak < least || (peak == least && got[offer.rank] < got[best->rank])) best = &offer, least = peak, over = late;
    }
    if (!best) return;  // no room for the coldest
    uint32_t slot = best->slot;
    int32_t former = layer.table[slot];
    if (former != kEmpty) layer.take(slot);
    layer.put(orphan, slot);
    ++got[layer.rank(slot)];
    given(layer, all, slot, former);
  }
}

}  // namespace gft::place
