// The inner loop of the CPU copy path.
// Chunks are small enough to stay in the second-level cache between the copy and the digest.
#include "stream.h"

#include <algorithm>
#include <cstring>

namespace gft {
namespace {

constexpr uint64_t kChunk = 32 * 1024;

uint8_t *fragment(const gft_region &region, uint64_t block) {
  return reinterpret_cast<uint8_t *>(region.address + block * region.stride);
}

}  // namespace

Digest store_block(const DigestAlgorithm &algorithm, const Layout &layout, uint64_t block, uint8_t *slot) {
  DigestState state;
  algorithm.start(state);
  for (const gft_region &region : layout.regions) {
    const uint8_t *from = fragment(region, block);
    for (uint64_t at = 0; at < region.fragment_bytes; at += kChunk) {
      uint64_t bytes = std::min(kChunk, region.fragment_bytes - at);
      algorithm.update(state, from + at, bytes);
      std::memcpy(slot + at, from + at, bytes);
    }
    slot += region.fragment_bytes;
  }
  Digest out;
  algorithm.finish(state, out.data());
  return out;
}

Digest load_block(const DigestAlgorithm &algorithm, const Layout &layout, uint64_t block, const uint8_t *slot) {
  DigestState state;
  algorithm.start(state);
  for (const gft_region &region : layout.regions) {
    uint8_t *to = fragment(region, block);
    for (uint64_t at = 0; at < region.fragment_bytes; at += kChunk) {
      uint64_t bytes = std::min(kChunk, region.fragment_bytes - at);
      std::memcpy(to + at, slot + at, bytes);
      algorithm.update(state, to + at, bytes);
    }
    slot += region.fragment_bytes;
  }
  Digest out;
  algorithm.finish(state, out.data());
  return out;
}

}  // namespace gft
