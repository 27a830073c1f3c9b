// CRC32C (Castagnoli) for small records, and the 16-byte digest made of it for builds without xxHash.
// Uses the processor's own instruction where there is one, else tables; the values are the same.
#pragma once

#include "digest.h"

namespace gft {

// Standard CRC32C; chain calls by passing the former result as `seed`.
uint32_t crc32c(const void *data, size_t bytes, uint32_t seed = 0);

// Three CRC32C streams over the 8-byte words taken in turn, then the length: 4 + 4 + 4 + 4 bytes.
const DigestAlgorithm &crc32c_digest();

}  // namespace gft
