// Copies and digests in one pass, chunk by chunk while the chunk is in the cache.
// The two directions differ in which side the digest is taken from; see each function.
#pragma once

#include "../digest/digest.h"
#include "layout.h"

namespace gft {

// Engine -> slot. The digest is of the bytes read from the engine.
Digest store_block(const DigestAlgorithm &algorithm, const Layout &layout, uint64_t block, uint8_t *slot);
// Slot -> engine. The digest is of the bytes that arrived in the engine, so what was checked is what was delivered.
Digest load_block(const DigestAlgorithm &algorithm, const Layout &layout, uint64_t block, const uint8_t *slot);

}  // namespace gft
