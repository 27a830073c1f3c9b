// Range checks first, so that no sum below can overflow; then the regions one after the other, each on a page.
#include "geometry.h"

#include <bit>

#include "../support/fail.h"
#include "format.h"

namespace gft {
namespace {

constexpr uint64_t kMaxSlotBytes = uint64_t{1} << 36;
constexpr uint64_t kMaxLedgerBytes = uint64_t{1} << 36;
constexpr uint64_t kMaxFileBytes = uint64_t{1} << 46;

uint64_t pages(uint64_t bytes) { return (bytes + kPage - 1) / kPage * kPage; }

void within(const char *name, uint64_t value, uint64_t low, uint64_t high) {
  if (value < low || value > high)
    fail(GFT_INVALID, "arena geometry: %s is %llu; it must lie between %llu and %llu", name, (unsigned long long)value,
         (unsigned long long)low, (unsigned long long)high);
}

}  // namespace

Geometry Geometry::of(uint64_t slot_bytes, uint64_t slots, uint64_t ledger_bytes) {
  within("slot_bytes", slot_bytes, 1, kMaxSlotBytes);
  within("slots", slots, 1, IndexEntry::kMaxSlots);
  within("ledger_bytes", ledger_bytes, 1, kMaxLedgerBytes);

  Geometry g;
  g.slot_bytes = slot_bytes;
  g.slots = slots;
  g.ledger_bytes = ledger_bytes;
  g.stride = pages(slot_bytes);
  g.half_bytes = pages((ledger_bytes + 1) / 2);
  g.index_entries = std::bit_ceil(slots < 64 ? uint64_t{128} : 2 * slots);
  if (g.stride > kMaxFileBytes / slots)
    fail(GFT_INVALID, "arena geometry: %llu slots of %llu bytes are more than 64 TiB; ask for fewer slots",
         (unsigned long long)slots, (unsigned long long)slot_bytes);

  uint64_t end = kPage;  // the file header has the first page
  auto place = [&end](uint64_t bytes) {
    uint64_t at = end;
    end += pages(bytes);
    return at;
  };
  g.control = place(2 * kPage);
  g.lanes = place(kLanes * sizeof(LaneRecord));
  g.namespaces = place(kNamespaces * sizeof(NamespaceRecord));
  g.index = place(g.index_entries * 8);
  g.states = place(slots * 8);
  g.stamps = place(slots * 8);
  g.holds = place(slots * 8);
  g.marks = place(slots * 8);
  g.headers = place(slots * sizeof(SlotHeader));
  g.ledger = place(2 * g.half_bytes);
  g.payload = place(slots * g.stride);
  g.file_bytes = end;
  return g;
}

}  // namespace gft
