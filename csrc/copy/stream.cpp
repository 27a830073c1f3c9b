// The inner loop of the CPU copy path. Chunks go through a small buffer of this thread that never leaves the first-level
// cache: the digest is taken there, and from there the chunk is written with stores that do not first read the target.
#include "stream.h"

#include <algorithm>
#include <cstring>

#if defined(__x86_64__)
#include <emmintrin.h>
#endif

#include "../support/optimistic.h"

namespace gft {
namespace {

constexpr uint64_t kChunk = 4096;
constexpr uint64_t kLine = 64;
// Shorter fragments would leave the processor's write-combining buffers half full.
constexpr uint64_t kStreamingMinimum = 1024;

#if defined(__x86_64__)
// `to` is aligned to cache lines and `bytes` a multiple of them.
void write_past_caches(uint8_t *to, const uint8_t *from, uint64_t bytes) {
  for (uint64_t at = 0; at < bytes; at += kLine) {
    auto *line = reinterpret_cast<__m128i *>(to + at);
    auto *source = reinterpret_cast<const __m128i *>(from + at);
    __m128i a = _mm_load_si128(source), b = _mm_load_si128(source + 1);
    __m128i c = _mm_load_si128(source + 2), d = _mm_load_si128(source + 3);
    _mm_stream_si128(line, a);
    _mm_stream_si128(line + 1, b);
    _mm_stream_si128(line + 2, c);
    _mm_stream_si128(line + 3, d);
  }
}
// Streaming stores are not ordered by release-stores.
void finish_writes() { _mm_sfence(); }
#else
void write_past_caches(uint8_t *to, const uint8_t *from, uint64_t bytes) { std::memcpy(to, from, bytes); }
void finish_writes() {}
#endif

class Stream {
 public:
  explicit Stream(const DigestAlgorithm &algorithm) : algorithm_(algorithm) { algorithm_.start(state_); }

  void fragment(uint8_t *to, const uint8_t *from, uint64_t bytes) {
    bool streaming = bytes >= kStreamingMinimum;
    uint64_t head = streaming ? -reinterpret_cast<uint64_t>(to) % kLine : 0;
    if (head) plain(to, from, head);
    uint64_t at = head;
    while (streaming && bytes - at >= kLine) {
      uint64_t chunk = std::min(kChunk, (bytes - at) / kLine * kLine);
      take(from + at, chunk);
      write_past_caches(to + at, chunk_, chunk);
      at += chunk;
    }
    while (at < bytes) {
      uint64_t chunk = std::min(kChunk, bytes - at);
      plain(to + at, from + at, chunk);
      at += chunk;
    }
  }

  Digest finish() {
    finish_writes();
    Digest out;
    algorithm_.finish(state_, out.data());
    return out;
  }

 private:
  void take(const uint8_t *from, uint64_t bytes) {
    std::memcpy(chunk_, from, bytes);
    algorithm_.update(state_, chunk_, bytes);
  }
  void plain(uint8_t *to, const uint8_t *from, uint64_t bytes) {
    take(from, bytes);
    std::memcpy(to, chunk_, bytes);
  }

  const DigestAlgorithm &algorithm_;
  DigestState state_;
  alignas(kLine) uint8_t chunk_[kChunk];
};

uint8_t *place(const gft_region &region, uint64_t block) {
  return reinterpret_cast<uint8_t *>(region.address + block * region.stride);
}

}  // namespace

Digest store_block(const DigestAlgorithm &algorithm, const Layout &layout, uint64_t block, uint8_t *slot) {
  Stream stream(algorithm);
  for (const gft_region &region : layout.regions) {
    stream.fragment(slot, place(region, block), region.fragment_bytes);
    slot += region.fragment_bytes;
  }
  return stream.finish();
}

Digest load_block(const DigestAlgorithm &algorithm, const Layout &layout, uint64_t block, const uint8_t *slot) {
  OptimisticRead slot_may_be_given_away;
  Stream stream(algorithm);
  for (const gft_region &region : layout.regions) {
    stream.fragment(place(region, block), slot, region.fragment_bytes);
    slot += region.fragment_bytes;
  }
  return stream.finish();
}

}  // namespace gft
