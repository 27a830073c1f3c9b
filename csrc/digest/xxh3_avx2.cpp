// XXH3-128 with AVX2; only called after the processor said that it has it.
// The target is set for this file alone, so nothing else of the build needs such a processor.
#if defined(GFT_HAVE_XXHASH) && defined(__x86_64__)
#include "xxh3.h"

#include <immintrin.h>

#pragma GCC push_options
#pragma GCC target("avx2")
#define XXH_INLINE_ALL
#define XXH_VECTOR XXH_AVX2
#include <xxhash.h>

#define GFT_XXH3_FUNCTION xxh3_avx2
#define GFT_XXH3_VARIANT "avx2"
#include "xxh3_variant.inc"
#pragma GCC pop_options
#endif
