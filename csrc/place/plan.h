// Whole problems: what the door calls. A problem has been checked when a function here sees it.
#pragma once

#include <cstdint>
#include <span>

#include "../gft_place.h"

namespace gft::place {

void check(const gft_place_problem &problem);  // throws Fail{GFT_INVALID}
uint64_t room_of(const gft_place_problem &problem);
// `within`: with an old placement, all changes together are at most `max_moves`, but for experts without any copy.
void plan(const gft_place_problem &problem, std::span<int32_t> table, bool within);
void repair(const gft_place_problem &problem, std::span<int32_t> table);
void examine(const gft_place_problem &problem, std::span<const int32_t> table, gft_place_facts &facts,
             std::span<uint32_t> copies, std::span<uint32_t> balance);

}  // namespace gft::place
