// The steps that planning a layer is made of. Each changes the layer by `put` and `take` alone and breaks ties by lowest number.
// plan.cpp says in which order they are taken.
#pragma once

#include <cstdint>
#include <span>

#include "layer.h"

namespace gft::place {

[[noreturn]] void no_room(const Layer &layer);

// What the busiest of `living` ranks has over the mean, in thousandths; whether that is at most 1/`part` of the mean.
int64_t excess(std::span<const int64_t> load, uint32_t living);
bool good(const Layer &layer, uint32_t living, int64_t part);

// Who gets the slots that are left once each expert has its copies: what has most to do, or least. `together`: least, and copies beyond
// coverage go, where there is as much to do, to groups that have one already.
enum class Leftover { hottest, coldest, together };

// An empty layer -> every expert covered, every slot of a live rank used (as far as experts go round): `copies` of each expert, as far as
// there is room.
void fill(Layer &layer, std::span<const uint8_t> alive, std::span<const uint32_t> copies, Leftover leftover);
// Empty slots of live ranks get one more copy of what has most to do, or least.
void top_up(Layer &layer, std::span<const uint8_t> alive, bool coldest = false);

// One change that lowers the busiest rank's load most per slot changed, of at most `moves` slots; at least `least` units per slot. Every
// covered expert stays covered. Without `spare`, no expert has another number of copies afterwards. Returns the slots changed; 0: there is
// no such change.
uint32_t improve(Layer &layer, std::span<const uint8_t> alive, uint64_t moves, int64_t least, bool spare = true);

// Covers the experts that are not, hottest first, each with as few changed slots as can be, at the price of spare copies of others.
// False when that does not get them all covered, or takes more than `changes` slots; what was done until then stays, and no expert has
// lost its last copy by it.
bool cover(Layer &layer, uint64_t changes = UINT64_MAX);

// The experts that are hottest (`order` says which) get so many copies (`counts`), of experts that are as hot any of them: spare copies of all of
// them are given up, what is left is evened out, then more are made where there is least to do. Slots that are left get more of what has
// least to do. Covered experts stay covered.
void reshape(Layer &layer, std::span<const uint8_t> alive, std::span<const uint32_t> order, std::span<const uint32_t> counts);

// Gives each expert without a copy the slot whose loss hurts least, hottest first, as far as there is room. No rank gets more than `most` over all layers (`got` counts), unless
// there is no other.
void adopt(Layer &layer, std::span<const uint8_t> alive, std::span<uint32_t> got, uint32_t most);

}  // namespace gft::place
