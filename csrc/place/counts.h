// How many copies each expert gets, before it is asked where they go.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "layer.h"

namespace gft::place {

// Experts by load, the hottest first, of equals the lowest number.
std::vector<uint32_t> hottest_first(std::span<const int64_t> loads);

// What coverage needs, and each of `extras` further slots to the expert whose copies have most to do.
std::vector<uint32_t> by_share(const Layer &layer, uint32_t ranks, uint64_t extras);

// Numbers of copies that lie better on the ranks than those by share. Seven copies of one expert and three of another that is as hot can fill
// ranks that five of each do not.
class Uneven {
 public:
  explicit Uneven(uint32_t ranks) : ranks_(ranks) {}
  // Copies of the hottest experts in this order, the best numbers first; none where no expert is hot enough to matter. What was found for
  // one layer is the answer for the next one where its hot experts are as hot; what is looked at over all layers is bounded.
  const std::vector<std::vector<uint32_t>> &of(const Layer &layer, std::span<const uint32_t> order);
  // How much too much busy ranks have when experts have so many copies: to compare with, no more. 0 where no expert is hot.
  int64_t cost(const Layer &layer, std::span<const uint32_t> order, std::span<const uint32_t> copies) const;

 private:
  uint32_t ranks_;
  uint64_t budget_ = 160000;  // copies and ranks that may still be looked at, trial by trial
  std::vector<int64_t> hot_;  // scaled loads of the hot experts that `found_` is for
  std::vector<std::vector<uint32_t>> found_;
};

// Whether two loads are so near each other that experts may change roles.
inline bool alike(int64_t a, int64_t b) { return (a > b ? a - b : b - a) <= a / 64; }

}  // namespace gft::place
