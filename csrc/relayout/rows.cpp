// Runs are short, so the loop is chosen by the run's length at compile time, or writes past the caches.
// What decides the speed is how the source is read: see `streaming`.
#include "rows.h"

#include <algorithm>
#include <cstring>

#if defined(__x86_64__)
#include <emmintrin.h>
#endif

namespace gft {
namespace {

// Runs that are far apart are asked for this many bytes before; longer ones the processor finds by itself.
constexpr uint64_t kAheadBytes = 2048, kAskedFor = 4096;

template <uint64_t kBytes>
void fixed(Row row, const uint8_t *from, uint8_t *to) {
  for (uint64_t i = 0; i < row.count; ++i, from += row.from_stride, to += row.to_stride) std::memcpy(to, from, kBytes);
}

void any(Row row, const uint8_t *from, uint8_t *to) {
  for (uint64_t i = 0; i < row.count; ++i, from += row.from_stride, to += row.to_stride) std::memcpy(to, from, row.bytes);
}

RowKernel fixed_for(uint64_t bytes) {
  switch (bytes) {
    case 1: return fixed<1>;
    case 2: return fixed<2>;
    case 4: return fixed<4>;
    case 8: return fixed<8>;
    case 16: return fixed<16>;
    case 32: return fixed<32>;
    case 64: return fixed<64>;
    case 128: return fixed<128>;
    case 256: return fixed<256>;
    case 512: return fixed<512>;
    default: return any;
  }
}

#if defined(__x86_64__)
void line_past_caches(const uint8_t *from, uint8_t *to) {
  auto *source = reinterpret_cast<const __m128i *>(from);
  auto *target = reinterpret_cast<__m128i *>(to);
  __m128i a = _mm_loadu_si128(source), b = _mm_loadu_si128(source + 1);
  __m128i c = _mm_loadu_si128(source + 2), d = _mm_loadu_si128(source + 3);
  _mm_stream_si128(target, a);
  _mm_stream_si128(target + 1, b);
  _mm_stream_si128(target + 2, c);
  _mm_stream_si128(target + 3, d);
}

void streaming(Row row, const uint8_t *from, uint8_t *to) {
  uint64_t rows_ahead = row.bytes < kAheadBytes ? kAheadBytes / row.bytes : 1;
  bool ask = row.bytes <= kAskedFor;
  for (uint64_t i = 0; i < row.count; ++i, from += row.from_stride, to += row.to_stride) {
    const uint8_t *ahead = beyond(from, rows_ahead * row.from_stride);
    for (uint64_t at = 0; at < row.bytes; at += kLine) {
      if (ask) _mm_prefetch(reinterpret_cast<const char *>(beyond(ahead, at)), _MM_HINT_NTA);
      line_past_caches(from + at, to + at);
    }
  }
}

// A gap in a stream of lines ends what the processor reads ahead by itself, and every run starts at the memory's latency.
// Asking for the lines of short gaps too keeps the stream going, and is quicker although more is read. The order matters:
// every line in turn, a piece ahead, then this piece's rows; asking for run and gap lines alternately was half as fast.
void streaming_over_gaps(Row row, const uint8_t *from, uint8_t *to) {
  const uint64_t rows = std::max<uint64_t>(1, kAheadBytes / row.from_stride), piece = rows * row.from_stride;
  for (uint64_t at = 0; at < piece; at += kLine) ask_for(beyond(from, at));
  for (uint64_t left = row.count; left > 0;) {
    for (uint64_t at = 0; at < piece; at += kLine) ask_for(beyond(from, piece + at));
    uint64_t here = std::min(rows, left);
    left -= here;
    for (; here > 0; --here, from += row.from_stride, to += row.to_stride)
      for (uint64_t at = 0; at < row.bytes; at += kLine) line_past_caches(from + at, to + at);
  }
}
#endif

}  // namespace

#if defined(__x86_64__)
RowKernel row_kernel(const Row &row, bool past_caches) {
  if (!past_caches) return fixed_for(row.bytes);
  bool short_gaps = row.count > 1 && row.from_stride > row.bytes && row.from_stride - row.bytes <= row.bytes;
  return short_gaps && row.bytes <= kAskedFor ? streaming_over_gaps : streaming;
}

void write_out(const uint8_t *from, uint8_t *to, uint64_t bytes, bool past_caches) {
  if (!past_caches || (reinterpret_cast<uintptr_t>(to) | bytes) % kLine != 0) {
    std::memcpy(to, from, bytes);
    return;
  }
  for (uint64_t at = 0; at < bytes; at += kLine) line_past_caches(from + at, to + at);
}

void finish_rows() { _mm_sfence(); }
#else
RowKernel row_kernel(const Row &row, bool) { return fixed_for(row.bytes); }
void write_out(const uint8_t *from, uint8_t *to, uint64_t bytes, bool) { std::memcpy(to, from, bytes); }
void finish_rows() {}
#endif

}  // namespace gft
