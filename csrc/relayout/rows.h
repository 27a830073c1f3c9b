// The loops that move whole runs: one row of one head is 64 to 512 bytes, a layer of a block 64 KiB.
// run.cpp picks one for each copy and calls it once per row.
#pragma once

#include <cstdint>

namespace gft {

constexpr uint64_t kLine = 64;

struct Row {  // the innermost dimension: `count` runs of `bytes`
  uint64_t count, from_stride, to_stride, bytes;
};
// By value, so that lengths and strides stay in registers: behind a reference, any store could have changed them.
using RowKernel = void (*)(Row, const uint8_t *from, uint8_t *to);

// `past_caches`: target, strides and run are whole cache lines, and what is written is not read soon.
RowKernel row_kernel(const Row &row, bool past_caches);

// Copies `bytes` in order; past the caches when told so and both ends are at whole lines.
void write_out(const uint8_t *from, uint8_t *to, uint64_t bytes, bool past_caches);
// After the last kernel: what was written past the caches is in order with what comes after.
void finish_rows();
// The line will be read soon. A hint: any address does no harm.
inline void ask_for(const uint8_t *address) { __builtin_prefetch(address, 0, 3); }
// The same, a little later: into the second-level cache.
inline void ask_for_later(const uint8_t *address) { __builtin_prefetch(address, 0, 2); }
inline const uint8_t *beyond(const uint8_t *address, uint64_t bytes) {
  return reinterpret_cast<const uint8_t *>(reinterpret_cast<uintptr_t>(address) + bytes);
}

}  // namespace gft
