// The steps that planning a layer is made of. Each changes the layer by `put` and `take` alone and breaks ties by lowest number.
// plan.cpp says in which order they are taken.
#pragma once

#include <cstdint>
#include <span>

#include "layer.h"

namespace gft::place {

[[noreturn]] void no_room(const Layer &layer);

// An empty layer -> every expert covered, every slot of a live rank used (as far as experts go round). So many eighths of the slots that
// coverage does not need go to the hottest experts, the others to the coldest.
void fill(Layer &layer, std::span<const uint8_t> alive, uint32_t eighths = 8);
// Empty slots of live ranks get one more copy of what has most to do, or least.
void top_up(Layer &layer, std::span<const uint8_t> alive, bool coldest = false);

// One change that lowers the busiest rank's load most per slot changed, of at most `moves` slots; at least `least` units per slot. Every
// covered expert stays covered. Returns the slots changed; 0: there is no such change.
uint32_t improve(Layer &layer, std::span<const uint8_t> alive, uint64_t moves, int64_t least);

// Covers the experts that are not, hottest first, each with as few changed slots as can be, at the price of spare copies of others.
// False when that does not get them all covered, or takes more than `changes` slots; what was done until then stays, and no expert has
// lost its last copy by it.
bool cover(Layer &layer, uint64_t changes = UINT64_MAX);

// Gives each expert without a copy the slot whose loss hurts least, hottest first, as far as there is room. No rank gets more than `most` over all layers (`got` counts), unless
// there is no other.
void adopt(Layer &layer, std::span<const uint8_t> alive, std::span<uint32_t> got, uint32_t most);

}  // namespace gft::place
