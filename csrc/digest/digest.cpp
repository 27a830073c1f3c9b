// Chooses a digest by name and, for XXH3, the widest vector unit this processor has.
// The choice of variant never changes the value, only the speed.
#include "digest.h"

#include "crc32c.h"

#ifdef GFT_HAVE_XXHASH
#include "xxh3.h"
#endif

namespace gft {
namespace {

#ifdef GFT_HAVE_XXHASH
const DigestAlgorithm *choose_xxh3() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f")) return &xxh3_avx512();
  if (__builtin_cpu_supports("avx2")) return &xxh3_avx2();
#endif
  return &xxh3_base();
}
#endif

}  // namespace

const DigestAlgorithm *find_digest(const char *name) {
  if (std::strcmp(name, "crc32c") == 0) return &crc32c_digest();
#ifdef GFT_HAVE_XXHASH
  static const DigestAlgorithm *const xxh3 = choose_xxh3();
  if (std::strcmp(name, xxh3->name) == 0) return xxh3;
#endif
  return nullptr;
}

std::vector<const DigestAlgorithm *> all_digests() {
  std::vector<const DigestAlgorithm *> out{&crc32c_digest()};
#ifdef GFT_HAVE_XXHASH
  out.push_back(&xxh3_base());
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2")) out.push_back(&xxh3_avx2());
  if (__builtin_cpu_supports("avx512f")) out.push_back(&xxh3_avx512());
#endif
#endif
  return out;
}

const DigestAlgorithm &preferred_digest() {
#ifdef GFT_HAVE_XXHASH
  return *find_digest("xxh3_128");
#else
  return crc32c_digest();
#endif
}

const char *xxhash_version() {
#ifdef GFT_HAVE_XXHASH
  return xxh3_header_version();
#else
  return "absent";
#endif
}

}  // namespace gft
