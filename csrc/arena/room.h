// Finds a slot to write to: an empty one, else one left by a dead writer, else the block that was used longest ago.
// One scan fills a queue in this process; each candidate is checked again when its turn comes.
#pragma once

#include <bitset>
#include <deque>
#include <functional>
#include <mutex>

#include "core.h"

namespace gft {

class Room {
 public:
  explicit Room(Core &core) : core_(core) {}

  // A slot in WRITING owned by `lane`, never one of `spare`; returns its slot and state. `check` throws when the caller
  // has been fenced: it is asked between taking a sealed block off its readers and overwriting it, which can be undone.
  // Throws GFT_FULL when every slot is being written by somebody alive.
  std::pair<uint64_t, StateWord> take(uint8_t lane, const std::vector<uint64_t> &spare, const std::function<void()> &check);

 private:
  struct Candidate {
    uint64_t slot, word, stamp;
    bool held;
  };
  // Spares the kernel repeated questions about lanes that are alive.
  struct Lanes {
    std::bitset<kLanes> known_alive;
    bool alive(const Core &core, uint8_t lane);
  };
  StateWord recovered(uint64_t slot, Lanes &lanes, uint64_t epoch);
  void refill();
  bool evict(const Candidate &candidate, uint8_t lane, const std::function<void()> &check);

  Core &core_;
  std::mutex mutex_;
  std::deque<Candidate> queue_;
  uint64_t cursor_ = 0;  // where the next scan starts
};

// Gives up what the dead owner of `lane` left half done; the caller holds the lane's lock.
void clear_lane(Core &core, uint8_t lane);

}  // namespace gft
