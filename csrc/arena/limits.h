// The settings of the eviction policy as they lie in the arena: for every process that maps it, the last one to set them wins.
// Each is one word; words that no setting of ours makes count as the defaults, or as no limit.
#pragma once

#include <cstdint>

#include "core.h"

namespace gft {

void set_caps(const Core &core, uint32_t protected_part, uint32_t pinned_part);
void set_quota(Core &core, uint32_t name_space, uint64_t slots);

}  // namespace gft
