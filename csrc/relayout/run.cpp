// The loops that move bytes. Runs are short (one row of one head is 64 to 512 bytes), so the inner loop is chosen by the
// run's length at compile time, and the next run's source lines are asked for while this one is copied.
#include <cstring>

#include "plan.h"

#if defined(__x86_64__)
#include <emmintrin.h>
#endif

namespace gft {
namespace {

constexpr uint64_t kLine = 64;
// Targets that fill a good part of the second-level cache are written past the caches.
constexpr uint64_t kStreamingTarget = uint64_t{256} << 10;
// The processor itself looks ahead within a page at most; runs that are far apart are asked for this many bytes before.
constexpr uint64_t kAheadBytes = 2048, kAskedFor = 4096;

struct Row {  // the innermost dimension
  uint64_t count, from_stride, to_stride, bytes;
};
using Inner = void (*)(const Row &, const uint8_t *, uint8_t *);

template <uint64_t kBytes>
void fixed(const Row &row, const uint8_t *from, uint8_t *to) {
  for (uint64_t i = 0; i < row.count; ++i, from += row.from_stride, to += row.to_stride) std::memcpy(to, from, kBytes);
}

void any(const Row &row, const uint8_t *from, uint8_t *to) {
  for (uint64_t i = 0; i < row.count; ++i, from += row.from_stride, to += row.to_stride) std::memcpy(to, from, row.bytes);
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

// Whole lines at addresses of whole lines.
void streaming(const Row &row, const uint8_t *from, uint8_t *to) {
  uint64_t rows_ahead = row.bytes < kAheadBytes ? kAheadBytes / row.bytes : 1;
  bool ask = row.bytes <= kAskedFor;
  for (uint64_t i = 0; i < row.count; ++i, from += row.from_stride, to += row.to_stride) {
    // A hint: an address behind the end does no harm.
    auto ahead = reinterpret_cast<const char *>(reinterpret_cast<uintptr_t>(from) + rows_ahead * row.from_stride);
    for (uint64_t at = 0; at < row.bytes; at += kLine) {
      if (ask) _mm_prefetch(ahead + at, _MM_HINT_NTA);
      line_past_caches(from + at, to + at);
    }
  }
}

bool can_stream(const StridedCopy &copy, const uint8_t *target, uint64_t target_bytes) {
  uint64_t all = reinterpret_cast<uintptr_t>(target) | copy.to | copy.bytes;
  for (uint32_t d = 0; d < copy.dims; ++d) all |= copy.to_stride[d];
  return target_bytes >= kStreamingTarget && all % kLine == 0;
}
void finish_streaming() { _mm_sfence(); }
#else
void streaming(const Row &row, const uint8_t *from, uint8_t *to) { any(row, from, to); }
bool can_stream(const StridedCopy &, const uint8_t *, uint64_t) { return false; }
void finish_streaming() {}
#endif

Inner inner_for(uint64_t bytes) {
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

void walk(const StridedCopy &copy, const uint8_t *from, uint8_t *to, Inner inner) {
  uint32_t outer = copy.dims ? copy.dims - 1 : 0;
  Row row = {1, 0, 0, copy.bytes};
  if (copy.dims) row = {copy.count[outer], copy.from_stride[outer], copy.to_stride[outer], copy.bytes};
  uint64_t at[GFT_COPY_DIMS] = {};
  for (;;) {
    inner(row, from, to);
    uint32_t d = outer;
    for (;;) {
      if (d == 0) return;
      --d;
      from += copy.from_stride[d];
      to += copy.to_stride[d];
      if (++at[d] < copy.count[d]) break;
      from -= copy.from_stride[d] * copy.count[d];
      to -= copy.to_stride[d] * copy.count[d];
      at[d] = 0;
    }
  }
}

}  // namespace

void RelayoutPlan::run(const uint8_t *const *sources, uint8_t *target) const {
  for (const StridedCopy &copy : copies_)
    walk(copy, sources[copy.source] + copy.from, target + copy.to,
         can_stream(copy, target, target_bytes) ? streaming : inner_for(copy.bytes));
  finish_streaming();
}

}  // namespace gft
