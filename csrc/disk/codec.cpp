// zstd level 1 and lz4, each only where its static library was there at build.
// Input is hostile; both libraries bound what they write by the room they are given.
#include "codec.h"

#include <climits>

#ifdef GFT_HAVE_ZSTD
#include <zstd.h>
#endif
#ifdef GFT_HAVE_LZ4
#include <lz4.h>
#endif

namespace gft::disk {

bool have_codec(Codec codec) {
  switch (codec) {
    case Codec::none:
      return true;
    case Codec::zstd:
#ifdef GFT_HAVE_ZSTD
      return true;
#else
      return false;
#endif
    case Codec::lz4:
#ifdef GFT_HAVE_LZ4
      return true;
#else
      return false;
#endif
  }
  return false;
}

const char *codec_version(Codec codec) {
#ifdef GFT_HAVE_ZSTD
  if (codec == Codec::zstd) return ZSTD_versionString();
#endif
#ifdef GFT_HAVE_LZ4
  if (codec == Codec::lz4) return LZ4_versionString();
#endif
  return codec == Codec::none ? "" : "absent";
}

const char *codec_name(Codec codec) {
  return codec == Codec::zstd ? "zstd" : codec == Codec::lz4 ? "lz4" : "none";
}

size_t pack(Codec codec, [[maybe_unused]] const uint8_t *from, [[maybe_unused]] size_t bytes, [[maybe_unused]] uint8_t *to,
            [[maybe_unused]] size_t room) {
#ifdef GFT_HAVE_ZSTD
  if (codec == Codec::zstd) {
    size_t packed = ZSTD_compress(to, room, from, bytes, 1);
    return ZSTD_isError(packed) ? 0 : packed;
  }
#endif
#ifdef GFT_HAVE_LZ4
  if (codec == Codec::lz4 && bytes <= LZ4_MAX_INPUT_SIZE && room <= INT_MAX) {
    int packed = LZ4_compress_default(reinterpret_cast<const char *>(from), reinterpret_cast<char *>(to),
                                      static_cast<int>(bytes), static_cast<int>(room));
    return packed > 0 ? static_cast<size_t>(packed) : 0;
  }
#endif
  (void)codec;
  return 0;
}

bool unpack(Codec codec, [[maybe_unused]] const uint8_t *from, [[maybe_unused]] size_t bytes, [[maybe_unused]] uint8_t *to,
            [[maybe_unused]] size_t room) {
#ifdef GFT_HAVE_ZSTD
  if (codec == Codec::zstd) return ZSTD_decompress(to, room, from, bytes) == room;
#endif
#ifdef GFT_HAVE_LZ4
  if (codec == Codec::lz4 && bytes <= INT_MAX && room <= INT_MAX)
    return LZ4_decompress_safe(reinterpret_cast<const char *>(from), reinterpret_cast<char *>(to), static_cast<int>(bytes),
                               static_cast<int>(room)) == static_cast<int>(room);
#endif
  (void)codec;
  return false;
}

}  // namespace gft::disk
