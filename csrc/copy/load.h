// The way back: finds a job's blocks as one consistent chain, then copies them out with every check there is.
// Both functions run without the engine's mutexes.
#pragma once

#include "../arena/writer.h"
#include "job.h"
#include "mover.h"

namespace gft {

struct Outcome {
  gft_status status = GFT_OK;
  std::string detail;
};

// Headers only. Returns the leading blocks that can be loaded, as one chain; `end` says why there are no more.
std::vector<Sealed> find_chain(Writer &writer, const std::vector<BlockSpec> &blocks, Outcome &end);
// Copies found blocks [from, from + count) to where the engine wants them. Anything but GFT_OK: the bytes there are worthless.
std::vector<Outcome> load_some(Writer &writer, Mover &mover, const Job &job, size_t from, size_t count);

}  // namespace gft
