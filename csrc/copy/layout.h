// Where an engine's blocks lie: regions that each hold one fragment of every block.
// A block's payload is its fragments in region order, without gaps.
#pragma once

#include <vector>

#include "../gft.h"

namespace gft {

struct Layout {
  std::vector<gft_region> regions;
  uint64_t block_bytes = 0;
  uint64_t num_blocks = 0;

  // Throws GFT_INVALID for what no memory can look like.
  static Layout of(const gft_region *regions, size_t count);
};

}  // namespace gft
