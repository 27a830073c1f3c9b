// The way back: finds a job's blocks as one consistent chain, then copies them out with every check there is.
// Both functions run without the engine's mutexes.
#pragma once

#include "../arena/writer.h"
#include "job.h"
#include "layout.h"

namespace gft {

struct Outcome {
  gft_status status = GFT_OK;
  std::string detail;
};

// Headers only. Returns the leading blocks that can be loaded, as one chain; `end` says why there are no more.
std::vector<Sealed> find_chain(Writer &writer, const std::vector<BlockSpec> &blocks, Outcome &end);
// Copies one block to where the engine wants it. Anything but GFT_OK: the bytes there are worthless.
Outcome load_one(Writer &writer, const Layout &layout, const BlockSpec &block, const Sealed &sealed);

}  // namespace gft
