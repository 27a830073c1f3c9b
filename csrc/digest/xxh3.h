// XXH3-128 from the system's header-only xxHash, compiled once per vector unit (xxh3_*.cpp).
// Only present when the build found <xxhash.h>.
#pragma once

#include "digest.h"

namespace gft {

const DigestAlgorithm &xxh3_base();
const char *xxh3_header_version();
#if defined(__x86_64__)
const DigestAlgorithm &xxh3_avx2();
const DigestAlgorithm &xxh3_avx512();
#endif

}  // namespace gft
