// A checked list of strided copies: what turns source payloads of one layout into one target payload of another.
// Made once per pair of layouts; after the constructor every byte it touches is known to lie inside the payloads.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "../gft_relayout.h"

namespace gft {

using StridedCopy = gft_strided_copy;

struct ByteRange {
  uint64_t begin, bytes;
};

class RelayoutPlan {
 public:
  // Throws GFT_INVALID with the copy and the rule it breaks.
  RelayoutPlan(std::span<const StridedCopy> copies, std::span<const uint64_t> source_bytes, uint64_t target_bytes);

  const std::vector<uint64_t> source_bytes;
  const uint64_t target_bytes;

  // Writes every byte of the target exactly once. The caller answers for the buffers' sizes.
  void run(const uint8_t *const *sources, uint8_t *target) const;
  // What `run` reads of a source, merged, in order; gaps shorter than a page are read along.
  const std::vector<ByteRange> &ranges(size_t source) const { return ranges_[source]; }

 private:
  void check(const StridedCopy &copy, size_t number) const;
  void check_coverage() const;
  void collect_ranges();

  std::vector<StridedCopy> copies_;
  std::vector<std::vector<ByteRange>> ranges_;
};

}  // namespace gft
