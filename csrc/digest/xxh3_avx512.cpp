// XXH3-128 with AVX512; only called after the processor said that it has it.
// The target is set for this file alone, so nothing else of the build needs such a processor.
#if defined(GFT_HAVE_XXHASH) && defined(__x86_64__)
#include "xxh3.h"

#include <immintrin.h>

#pragma GCC push_options
// NOTE: g++ 12 takes the deliberately undefined operand inside its own _mm512_* headers for a mistake.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC target("avx512f")
#define XXH_INLINE_ALL
#define XXH_VECTOR XXH_AVX512
#include <xxhash.h>

#define GFT_XXH3_FUNCTION xxh3_avx512
#define GFT_XXH3_VARIANT "avx512"
#include "xxh3_variant.inc"
#pragma GCC pop_options
#endif
