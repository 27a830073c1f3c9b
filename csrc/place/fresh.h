// Layers from nothing: filled and polished, in as many ways as it takes. What was learnt on one layer is tried first on the next.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "../gft_place.h"
#include "counts.h"
#include "layer.h"
#include "steps.h"

namespace gft::place {

constexpr int64_t kGood = 100;  // a layer is left alone when its busiest rank has at most 1/100 more than the mean
constexpr int64_t kPoor = 33;   // with 1/33 more or worse, a layer is tried in other ways
constexpr uint32_t kPolish = 64;  // changes that a layer is polished with at most

class Fresh {
 public:
  Fresh(const gft_place_problem &problem, const Copysets &sets);
  // Writes one layer, placed without regard to what there was.
  void place(uint32_t number, std::span<int32_t> row);

 private:
  Layer made(uint32_t number);
  Layer attempt(uint32_t number, std::span<const uint32_t> copies, Leftover leftover) const;
  std::vector<uint32_t> eased(uint32_t number, uint32_t eighths) const;
  struct Way;
  std::vector<Way> ways(uint32_t number);
  uint32_t allowed();
  bool like_the_last(uint32_t number, std::span<int32_t> row);
  bool as_hot(std::span<const int64_t> load) const;
  void remember(const Layer &layer);
  std::span<const int64_t> loads(uint32_t number) const { return {p_.loads + size_t{number} * p_.experts, p_.experts}; }

  const gft_place_problem &p_;
  const Copysets &sets_;
  std::span<const uint8_t> alive_;
  uint32_t living_;
  bool extras_;
  uint32_t eighths_ = 8;     // of the slots beyond coverage, for hot experts: what was best
  int64_t reached_ = -1000;  // the excess of the last layer for which all ways were tried
  Uneven uneven_;
  uint32_t placed_ = 0, tries_ = 0;  // layers, and further ways tried for them
  // The last layer made: what each slot holds, an expert named by its place in the order of hotness; copies by that place.
  std::vector<int32_t> pattern_;
  std::vector<uint32_t> copies_, order_;
  std::vector<int64_t> loads_, share_, load_;  // loads of that layer, the hottest first; of the one that is looked at
  int64_t excess_ = 0;
};

}  // namespace gft::place
