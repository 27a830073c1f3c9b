// XXH3-128 with the instructions every processor of this architecture has.
// Also the place that knows which xxHash it was built from.
#ifdef GFT_HAVE_XXHASH
#include "xxh3.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

#define GFT_XXH3_FUNCTION xxh3_base
#define GFT_XXH3_VARIANT "base"
#include "xxh3_variant.inc"

#define GFT_TEXT2(x) #x
#define GFT_TEXT(x) GFT_TEXT2(x)

const char *gft::xxh3_header_version() {
  return GFT_TEXT(XXH_VERSION_MAJOR) "." GFT_TEXT(XXH_VERSION_MINOR) "." GFT_TEXT(XXH_VERSION_RELEASE);
}
#endif
