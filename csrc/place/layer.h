// One layer while it is planned: which slot holds what, where each expert's copies are, and what every rank has to do.
// All planning is a sequence of `put` and `take`; loads are kept exact as it goes.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "copysets.h"

namespace gft::place {

constexpr int32_t kEmpty = -1;

class Layer {
 public:
  Layer(uint32_t experts, uint32_t ranks, uint32_t slots, std::span<const int64_t> loads, const Copysets &sets);

  void put(uint32_t expert, uint32_t slot);  // into an empty slot of a rank that does not hold it
  void take(uint32_t slot);                  // out of a slot that is not empty
  // An empty layer gets what `row` has on live ranks, without second copies on one rank: all puts at once.
  void take_over(std::span<const int32_t> row, std::span<const uint8_t> alive);

  uint32_t rank(uint32_t slot) const { return static_cast<uint32_t>(slot * reciprocal_ >> 42); }
  uint32_t copies(uint32_t expert) const { return count_[expert]; }
  // What one of `copies` copies does, in units of 2^-20.
  int64_t share(uint32_t expert, uint32_t copies) const { return copies ? (loads[expert] << 20) / copies : 0; }
  int64_t share(uint32_t expert) const { return each_[expert]; }
  // The slots of an expert, in no order that anything may depend on: for (slot = first(e); slot != kNone; slot = next(slot)).
  uint32_t first(uint32_t expert) const { return first_[expert]; }
  uint32_t next(uint32_t slot) const { return next_[slot]; }
  bool on(uint32_t expert, uint32_t rank) const;
  uint32_t empty_slot(uint32_t rank) const;  // the first; kNone when it has none
  // Whether the expert has the copies it needs inside one group, when its copy in slot `but` were in slot `instead` (kNone: nowhere).
  bool covered(uint32_t expert, uint32_t but = kNone, uint32_t instead = kNone) const;
  // Rank with the greatest load, lowest number first; and over live ranks, the sum of all loads.
  uint32_t busiest() const;
  int64_t total() const;

  uint32_t experts, ranks, slots;
  std::span<const int64_t> loads;
  const Copysets &sets;
  std::vector<int32_t> table;  // [ranks * slots]
  std::vector<int64_t> load;   // of each rank
  std::vector<uint32_t> free;  // empty slots of each rank

 private:
  void add_share(uint32_t expert, int sign);

  uint64_t reciprocal_;            // 2^42 / slots, rounded up: exact for slots below 2^20, and planning asks for a slot's rank all the time
  std::vector<uint32_t> first_, count_;  // of each expert
  std::vector<uint32_t> next_;     // of each slot: another one of the same expert
  std::vector<int64_t> each_;      // share of each expert with the copies it has: dividing is what planning would spend its time on
};

}  // namespace gft::place
