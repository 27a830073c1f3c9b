// Transposed planes: elements that lie side by side in the source and apart in the target, and the reverse.
// run.cpp finds the plane among a copy's dimensions; everything else about the copy stays a loop around this.
#pragma once

#include <cstdint>

namespace gft {

// Element (row, column) lies at row * from_stride + column * bytes in the source, and in the target at
// column * to_stride + row * bytes.
struct Plane {
  uint64_t rows, columns, from_stride, to_stride;
  uint64_t bytes;  // of one element: see can_transpose
};

inline bool can_transpose(uint64_t bytes) { return bytes == 1 || bytes == 2 || bytes == 4 || bytes == 8; }
// Any addresses. Asks for the source lines `ahead` bytes behind those it reads.
void transpose(const Plane &plane, const uint8_t *from, uint8_t *to, bool past_caches, uint64_t ahead);

}  // namespace gft
