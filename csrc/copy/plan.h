// Which way each piece of a batch takes: straight by DMA, or packed by a kernel through staging memory on the device.
// Pure: fragments and rules in, a plan out; the device mover carries it out, in both directions.
#pragma once

#include <cstdint>
#include <vector>

namespace gft {

// `bytes` of block number `owner` of the batch, beginning at byte `position` of its payload: at `device` in the engine and
// at `host` in the arena (or a bounce buffer).
struct Fragment {
  uint64_t device, host, bytes;
  uint32_t owner;
  uint64_t position;
};

struct Threshold {
  uint64_t count, below;
};

struct PlanRules {
  bool kernels = false;
  bool pack_all = false;            // pack whatever can be packed: the device digest is wanted
  std::vector<Threshold> pack;      // ascending counts; the last row whose count is reached decides
  uint64_t staging_bytes = 0;       // of one round
  uint64_t max_pieces = 0;          // that kernels can be told of, over all rounds
  uint64_t host_base = 0, host_chunk = 0;  // registrations end at host_base + n * host_chunk: no copy crosses one; 0: none
};

struct Direct {
  uint64_t device, host, bytes;
};
struct Packed {
  uint64_t device, offset, bytes, position;
  uint32_t owner;
};
struct Run {
  uint64_t offset, host, bytes;
};
// One filling of the staging memory: kernel and DMA in the order of the direction.
struct Round {
  std::vector<Packed> pieces;
  std::vector<Run> runs;
};
struct Plan {
  std::vector<Direct> direct;
  std::vector<Round> rounds;
};

// Every byte of every fragment is copied by exactly one Direct or Packed; targets of the fragments must not overlap.
Plan make_plan(std::vector<Fragment> fragments, const PlanRules &rules);

}  // namespace gft
