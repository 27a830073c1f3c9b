// Finds a slot to write to: an empty one, else one left by a dead writer, else the block that the policy lets go first.
// One scan fills a queue in this process; each candidate is checked again when its turn comes.
#pragma once

#include <bitset>
#include <deque>
#include <functional>
#include <mutex>

#include "core.h"
#include "policy.h"

namespace gft {

class Room {
 public:
  explicit Room(Core &core) : core_(core) {}

  // Who asks: the lane that will own the slot, the namespace it will count for, and a slot that must not be taken.
  // `check` throws when the caller has been fenced: it is asked between taking a sealed block off its readers and
  // overwriting it, which can be undone.
  struct Taker {
    uint8_t lane;
    uint32_t name_space;
    uint64_t spare;
    std::function<void()> check;
  };
  // A slot in WRITING; returns its slot and state. Throws GFT_FULL when every slot is pinned, or is being written by
  // somebody alive.
  std::pair<uint64_t, StateWord> take(const Taker &taker);

 private:
  struct Candidate {
    uint64_t slot, word, stamp, mark;
    bool held;
  };
  // Spares the kernel repeated questions about lanes that are alive.
  struct Lanes {
    std::bitset<kLanes> known_alive;
    bool alive(const Core &core, uint8_t lane);
  };
  struct Scan {
    std::vector<Candidate> empty;
    std::vector<Resident> residents;
    UsageTable usage;
    std::array<int64_t, kNamespaces + 1> cleared{};  // slots of the dead that became empty
    bool whole = true, own = false;
    uint64_t spare = 0, now = 0;
  };
  StateWord recovered(uint64_t slot, Lanes &lanes, uint64_t epoch, Scan &scan);
  void look(uint64_t slot, Lanes &lanes, uint64_t epoch, size_t batch, Scan &scan);
  Scan scan(const Taker &taker, bool own, size_t batch);
  bool still(const Resident &resident, const Scan &scan, uint64_t epoch, Candidate &out) const;
  bool refill(std::deque<Candidate> &queue, const Taker &taker, bool own);
  bool grab(const Candidate &candidate, const Taker &taker);
  bool evict(const Candidate &candidate, const Taker &taker);
  bool at_quota(uint8_t owner) const;

  Core &core_;
  std::mutex mutex_;
  std::deque<Candidate> queue_;
  std::array<std::deque<Candidate>, kNamespaces + 1> own_;  // of namespaces that have to evict their own blocks
  uint64_t cursor_ = 0;                                     // where the next scan starts
};

// Gives up what the dead owner of `lane` left half done; the caller holds the lane's lock.
void clear_lane(Core &core, uint8_t lane);

}  // namespace gft
