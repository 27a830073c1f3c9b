// Making an arena file, one process at a time and whole or not at all.
// Called by ArenaFile::create; the result is published under its real name only when every byte is allocated.
#pragma once

#include <string>

#include "geometry.h"

namespace gft {

// True: published. False: somebody else's file is there under `path` (found at the start, or after waiting).
bool create_arena_file(const std::string &path, const Geometry &geometry);

}  // namespace gft
