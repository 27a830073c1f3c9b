// Which ranks hold the copies of one expert together: groups of ranks in distinct failure domains, the same in every layer.
// Few groups means that few sets of ranks are fatal when they die together; fill and polish keep every expert inside one.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace gft::place {

constexpr uint32_t kNone = UINT32_MAX;

struct Copysets {
  uint32_t copies = 1;                         // of each expert inside its group
  std::vector<std::vector<uint32_t>> members;  // live ranks of each group, at least `copies`, all in distinct domains
  std::vector<uint32_t> group_of;              // of each rank; kNone: dead, or without a group (takes further copies only)
};

// `domains` is [4, ranks]. Groups are made of all ranks, in the coarsest domains that leave nobody out but at least of `level`;
// then the dead are taken out and those who have lost their group join another, so that one death changes little.
Copysets make_copysets(std::span<const int32_t> domains, std::span<const uint8_t> alive, uint32_t copies, uint32_t level);

// Experts that a group whose members have `free` slots can take, each on `copies` different members.
uint64_t room(std::span<const uint32_t> free, uint32_t copies);

}  // namespace gft::place
