// Copies and digests in one pass: every byte is read once, digested, and written past the caches.
// In both directions the digest is of exactly the bytes that were delivered, whatever happens to the source meanwhile.
#pragma once

#include "../digest/digest.h"
#include "layout.h"

namespace gft {

// Engine -> slot, and slot -> engine. All stores are visible to whoever sees a later release-store of this thread.
Digest store_block(const DigestAlgorithm &algorithm, const Layout &layout, uint64_t block, uint8_t *slot);
Digest load_block(const DigestAlgorithm &algorithm, const Layout &layout, uint64_t block, const uint8_t *slot);

}  // namespace gft
