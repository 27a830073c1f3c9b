// A plane is cut into tiles of one cache line by one cache line. A tile is turned in squares of 16 by 16 bytes in registers,
// put together in a scratch tile in the first-level cache, and leaves it in the order of the target.
// NOTE: rows of a block lie a page or a multiple of it apart, in one set of that cache, so a line is read once and at once.
#include "transpose.h"

#include <algorithm>
#include <cstring>

#include "rows.h"

#if defined(__x86_64__)
#include <emmintrin.h>
#endif

namespace gft {
namespace {

template <uint64_t kBytes>
void scalar(uint64_t rows, uint64_t columns, const uint8_t *from, uint64_t from_stride, uint8_t *to, uint64_t to_stride) {
  for (uint64_t row = 0; row < rows; ++row)
    for (uint64_t column = 0; column < columns; ++column)
      std::memcpy(to + column * to_stride + row * kBytes, from + row * from_stride + column * kBytes, kBytes);
}

#if defined(__x86_64__)
template <uint64_t kBytes>
__m128i low(__m128i a, __m128i b) {
  if constexpr (kBytes == 1) return _mm_unpacklo_epi8(a, b);
  if constexpr (kBytes == 2) return _mm_unpacklo_epi16(a, b);
  if constexpr (kBytes == 4) return _mm_unpacklo_epi32(a, b);
  if constexpr (kBytes == 8) return _mm_unpacklo_epi64(a, b);
}

template <uint64_t kBytes>
__m128i high(__m128i a, __m128i b) {
  if constexpr (kBytes == 1) return _mm_unpackhi_epi8(a, b);
  if constexpr (kBytes == 2) return _mm_unpackhi_epi16(a, b);
  if constexpr (kBytes == 4) return _mm_unpackhi_epi32(a, b);
  if constexpr (kBytes == 8) return _mm_unpackhi_epi64(a, b);
}

// Shuffling the first half of the rows with the second half, element by element, rotates the bits of an element's number
// by one; after as many rounds as a row's number has bits, rows and columns have changed places.
template <uint64_t kBytes>
void square(const uint8_t *from, uint64_t from_stride, uint8_t *to, uint64_t to_stride) {
  constexpr uint64_t kSide = 16 / kBytes;
  __m128i rows[kSide], shuffled[kSide];
#pragma GCC unroll 16
  for (uint64_t i = 0; i < kSide; ++i) rows[i] = _mm_loadu_si128(reinterpret_cast<const __m128i *>(from + i * from_stride));
#pragma GCC unroll 4
  for (uint64_t round = 1; round < kSide; round *= 2) {
#pragma GCC unroll 8
    for (uint64_t i = 0; i < kSide / 2; ++i) {
      shuffled[2 * i] = low<kBytes>(rows[i], rows[i + kSide / 2]);
      shuffled[2 * i + 1] = high<kBytes>(rows[i], rows[i + kSide / 2]);
    }
#pragma GCC unroll 16
    for (uint64_t i = 0; i < kSide; ++i) rows[i] = shuffled[i];
  }
#pragma GCC unroll 16
  for (uint64_t i = 0; i < kSide; ++i) _mm_storeu_si128(reinterpret_cast<__m128i *>(to + i * to_stride), rows[i]);
}
#else
template <uint64_t kBytes>
void square(const uint8_t *from, uint64_t from_stride, uint8_t *to, uint64_t to_stride) {
  scalar<kBytes>(16 / kBytes, 16 / kBytes, from, from_stride, to, to_stride);
}
#endif

template <uint64_t kBytes>
void tile(uint64_t rows, uint64_t columns, const uint8_t *from, uint64_t from_stride, uint8_t *to, uint64_t to_stride) {
  constexpr uint64_t kSide = 16 / kBytes;
  uint64_t whole = columns / kSide * kSide, row = 0;
  for (; row + kSide <= rows; row += kSide) {
    const uint8_t *left = from + row * from_stride;
    for (uint64_t column = 0; column < whole; column += kSide)
      square<kBytes>(left + column * kBytes, from_stride, to + column * to_stride + row * kBytes, to_stride);
    scalar<kBytes>(kSide, columns - whole, left + whole * kBytes, from_stride, to + whole * to_stride + row * kBytes, to_stride);
  }
  scalar<kBytes>(rows - row, columns, from + row * from_stride, from_stride, to + row * kBytes, to_stride);
}

template <uint64_t kBytes>
void in_tiles(const Plane &plane, const uint8_t *from, uint8_t *to, bool past_caches, uint64_t ahead) {
  constexpr uint64_t kSide = kLine / kBytes;
  alignas(kLine) uint8_t scratch[kSide * kLine];
  for (uint64_t row = 0; row < plane.rows; row += kSide) {
    uint64_t rows = std::min(kSide, plane.rows - row), width = rows * kBytes;
    for (uint64_t column = 0; column < plane.columns; column += kSide) {
      uint64_t columns = std::min(kSide, plane.columns - column);
      const uint8_t *source = from + row * plane.from_stride + column * kBytes;
      uint8_t *target = to + column * plane.to_stride + row * kBytes;
      for (uint64_t i = 0; i < rows; ++i) ask_for_later(beyond(source, i * plane.from_stride + ahead));
      tile<kBytes>(rows, columns, source, plane.from_stride, scratch, width);
      if (width == plane.to_stride)
        write_out(scratch, target, columns * width, past_caches);
      else
        for (uint64_t i = 0; i < columns; ++i) write_out(scratch + i * width, target + i * plane.to_stride, width, past_caches);
    }
  }
}

}  // namespace

void transpose(const Plane &plane, const uint8_t *from, uint8_t *to, bool past_caches, uint64_t ahead) {
  switch (plane.bytes) {
    case 1: return in_tiles<1>(plane, from, to, past_caches, ahead);
    case 2: return in_tiles<2>(plane, from, to, past_caches, ahead);
    case 4: return in_tiles<4>(plane, from, to, past_caches, ahead);
    case 8: return in_tiles<8>(plane, from, to, past_caches, ahead);
  }
}

}  // namespace gft
