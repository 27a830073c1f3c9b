// Whole-record compression with the libraries the build found.
// Unpacking writes into a buffer of exactly the promised size and takes nothing else for an answer.
#pragma once

#include <cstddef>

#include "log.h"

namespace gft::disk {

bool have_codec(Codec codec);
const char *codec_version(Codec codec);  // "1.5.4", or "absent"
const char *codec_name(Codec codec);     // "none", "zstd", "lz4"

// Packed bytes put into `to`, or 0 when they do not fit there.
size_t pack(Codec codec, const uint8_t *from, size_t bytes, uint8_t *to, size_t room);
// Whether `from` unpacks to exactly `room` bytes.
bool unpack(Codec codec, const uint8_t *from, size_t bytes, uint8_t *to, size_t room);

}  // namespace gft::disk
