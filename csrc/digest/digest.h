// The 16-byte digests that seal payloads, headers and links; which one an arena uses is written in its header.
// Not a signature: they detect damage, staleness and misplacement, not a forger with write access.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

namespace gft {

using Digest = std::array<uint8_t, 16>;

struct DigestState {
  alignas(64) unsigned char bytes[768];
};

// One algorithm on one instruction set. `update` may be called with any split of the input.
struct DigestAlgorithm {
  const char *name;     // what the arena header says
  const char *variant;  // which instructions do it
  void (*start)(DigestState &);
  void (*update)(DigestState &, const void *, size_t);
  void (*finish)(const DigestState &, uint8_t *out);

  Digest of(const void *data, size_t bytes) const {
    DigestState state;
    Digest out;
    start(state);
    update(state, data, bytes);
    finish(state, out.data());
    return out;
  }
};

// By the name in a header; null when this build does not have it.
const DigestAlgorithm *find_digest(const char *name);
// Every algorithm on every instruction set that this build and this processor have.
std::vector<const DigestAlgorithm *> all_digests();
// What new arenas are made with: XXH3-128 when built with it, else CRC32C.
const DigestAlgorithm &preferred_digest();
const char *xxhash_version();

}  // namespace gft
