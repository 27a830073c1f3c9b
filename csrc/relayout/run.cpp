// Walks a plan's copies: outer loops here, whole rows (rows.h) and transposed planes (transpose.h) inside.
// Copies that share their outer loops, K and V of one source say, take turns in them, so that a source is read once.
#include <algorithm>
#include <vector>

#include "plan.h"
#include "rows.h"
#include "transpose.h"

namespace gft {
namespace {

// Targets that fill a good part of the second-level cache are written past the caches.
constexpr uint64_t kStreamingTarget = uint64_t{256} << 10;

// A run this long is worth a call of its own.
constexpr uint64_t kLongRun = 4096;
// So many copies take turns at most: more would only push each other's lines out of the caches.
constexpr size_t kTurns = 64;

// One copy with its kernel: `loops` of its dimensions are loops around it.
struct Walk {
  StridedCopy copy;
  const uint8_t *from;
  uint8_t *to;
  uint32_t loops;
  bool past_caches;
  Row row;
  RowKernel rows;  // null: the plane
  Plane plane;
};

void move_dim(StridedCopy &copy, uint32_t which, uint32_t to) {
  auto move = [&](uint64_t *of) { std::rotate(of + which, of + which + 1, of + to + 1); };
  move(copy.count), move(copy.from_stride), move(copy.to_stride);
}

Walk prepare(const StridedCopy &copy, const uint8_t *source, uint8_t *target, uint64_t target_bytes) {
  Walk walk{copy, source + copy.from, target + copy.to, 0, target_bytes >= kStreamingTarget, {1, 0, 0, copy.bytes}, nullptr, {}};
  if (uint32_t last = copy.dims - 1; copy.dims >= 2 && can_transpose(copy.bytes) && copy.to_stride[last] == copy.bytes)
    for (uint32_t d = 0; d < last; ++d)
      if (copy.from_stride[d] == copy.bytes) {
        walk.plane = {copy.count[last], copy.count[d], copy.from_stride[last], copy.to_stride[d], copy.bytes};
        move_dim(walk.copy, d, last - 1);
        walk.loops = copy.dims - 2;
        return walk;
      }
  uint64_t places = reinterpret_cast<uintptr_t>(walk.to) | copy.bytes;
  for (uint32_t d = 0; d < copy.dims; ++d) places |= copy.to_stride[d];
  walk.past_caches = walk.past_caches && places % kLine == 0;
  walk.loops = copy.dims;
  if (copy.dims && copy.bytes < kLongRun) {
    walk.loops = copy.dims - 1;
    walk.row = {copy.count[walk.loops], copy.from_stride[walk.loops], copy.to_stride[walk.loops], copy.bytes};
  }
  walk.rows = row_kernel(walk.row, walk.past_caches);
  return walk;
}

// Counts `at` on over the loops [first, end), the innermost quickest; false after the last step.
bool next_step(const StridedCopy &copy, uint32_t first, uint32_t end, uint64_t *at) {
  for (uint32_t d = std::min<uint32_t>(end, GFT_COPY_DIMS); d-- > first;) {
    if (++at[d] < copy.count[d]) return true;
    at[d] = 0;
  }
  return false;
}

void kernel(const Walk &walk, const uint64_t *at) {
  const uint8_t *from = walk.from;
  uint8_t *to = walk.to;
  for (uint32_t d = 0; d < walk.loops; ++d) {
    from += at[d] * walk.copy.from_stride[d];
    to += at[d] * walk.copy.to_stride[d];
  }
  if (walk.rows)
    walk.rows(walk.row, from, to);
  else
    transpose(walk.plane, from, to, walk.past_caches, walk.loops ? walk.copy.from_stride[walk.loops - 1] : 0);
}

// `walks` take turns in their first `common` loops, which are as long.
void go(std::span<const Walk> walks, uint32_t common) {
  uint64_t outer[GFT_COPY_DIMS] = {};
  do {
    for (const Walk &walk : walks) {
      uint64_t at[GFT_COPY_DIMS];
      std::copy(outer, outer + GFT_COPY_DIMS, at);
      do kernel(walk, at);
      while (next_step(walk.copy, common, walk.loops, at));
    }
  } while (next_step(walks[0].copy, 0, common, outer));
}

uint32_t common_loops(const Walk &a, const Walk &b, uint32_t most) {
  uint32_t d = 0;
  while (d < std::min({a.loops, b.loops, most}) && a.copy.count[d] == b.copy.count[d]) ++d;
  return d;
}

}  // namespace

void RelayoutPlan::run(const uint8_t *const *sources, uint8_t *target) const {
  std::vector<Walk> walks;
  for (size_t i = 0; i < copies_.size();) {
    walks.assign(1, prepare(copies_[i], sources[copies_[i].source], target, target_bytes));
    uint32_t common = walks[0].loops;
    for (++i; i < copies_.size() && common > 0 && walks.size() < kTurns; ++i) {
      Walk next = prepare(copies_[i], sources[copies_[i].source], target, target_bytes);
      uint32_t with_next = common_loops(walks[0], next, common);
      if (with_next == 0) break;
      common = with_next;
      walks.push_back(next);
    }
    go(walks, common);
  }
  finish_rows();
}

}  // namespace gft
