// Which blocks leave the arena first: a pure function of what their words say, the same as kv/policy.py's `eviction_order`.
// Room feeds it one scan and takes the slots in the order it gives.
#pragma once

#include <array>
#include <cstddef>
#include <vector>

#include "format.h"

namespace gft {

// A sealed block as the policy sees it. Small, because a scan makes one for every block there is.
struct Resident {
  uint64_t stamp;
  uint32_t slot;
  uint8_t owner;  // namespace + 1, 0: unknown
  bool held : 1, is_protected : 1, pinned : 1;
};
static_assert(sizeof(Resident) == 16 && IndexEntry::kSlotBits <= 26);

struct Usage {
  uint64_t used = 0, quota = 0;  // slots; quota 0: no limit
  bool over() const { return quota > 0 && used > quota; }
};
using UsageTable = std::array<Usage, kNamespaces + 1>;  // by owner; [0] is of nobody

// Indices into `residents`, first to go first, at most `want`. Pinned blocks are left out, up to the cap of pins; protected
// ones come behind the rest, up to their cap; held ones last. Before all of them comes what a namespace has above its quota.
// With `only` nothing but that owner's blocks count, whatever its quota.
std::vector<size_t> eviction_order(const std::vector<Resident> &residents, uint64_t slots, const CapsWord &caps,
                                   const UsageTable &usage, uint8_t only, size_t want);

}  // namespace gft
