// Checks a layout once, so that the copy loop can compute addresses without asking again.
// The addresses themselves are the caller's word: nobody can check them here.
#include "layout.h"

#include <algorithm>

#include "../support/fail.h"

namespace gft {

Layout Layout::of(const gft_region *regions, size_t count) {
  if (count == 0) fail(GFT_INVALID, "a layout needs at least one region");
  Layout layout;
  layout.num_blocks = UINT64_MAX;
  for (size_t i = 0; i < count; ++i) {
    const gft_region &r = regions[i];
    if (r.address == 0 || r.fragment_bytes == 0 || r.blocks == 0 || r.stride < r.fragment_bytes)
      fail(GFT_INVALID,
           "layout region %zu (address %#llx, stride %llu, fragment %llu, blocks %llu): address, fragment and "
           "blocks must not be zero, and the stride not shorter than the fragment",
           i, (unsigned long long)r.address, (unsigned long long)r.stride, (unsigned long long)r.fragment_bytes,
           (unsigned long long)r.blocks);
    uint64_t span, end;
    if (__builtin_mul_overflow(r.stride, r.blocks, &span) || __builtin_add_overflow(r.address, span, &end) ||
        __builtin_add_overflow(layout.block_bytes, r.fragment_bytes, &layout.block_bytes))
      fail(GFT_INVALID, "layout region %zu reaches behind the end of the address space", i);
    layout.num_blocks = std::min(layout.num_blocks, r.blocks);
    layout.regions.push_back(r);
  }
  return layout;
}

}  // namespace gft
