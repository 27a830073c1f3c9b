// Pins: blocks that stay when their request is over, until a wall-clock time, as long as they are few.
// The time is in the slot's mark word, so a pin needs no owner: it survives every process and runs out by itself.
#pragma once

#include <span>

#include "chain.h"
#include "core.h"

namespace gft {

uint64_t wall_clock();  // seconds since 1970

// Sets the pins of `blocks` to `until` (0 ends them; a longer pin is never shortened otherwise). Returns how many blocks are
// pinned now. GFT_FULL, and nothing is changed, when more than the allowed part of the slots would be pinned.
uint64_t pin(const Core &core, std::span<const Sealed> blocks, uint32_t until);

// Sets the protected bit: the block was used a second time.
void protect(const Core &core, const Sealed &sealed);

}  // namespace gft
