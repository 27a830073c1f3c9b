// Stores in order, copies side by side: blocks enter the line in queue order, are copied by any thread, and leave
// (are sealed) in the same order, so that a parent is always sealed before its child.
#pragma once

#include <deque>
#include <functional>
#include <mutex>
#include <span>
#include <unordered_map>

#include "../arena/writer.h"
#include "job.h"
#include "mover.h"

namespace gft {

class StoreLine {
 public:
  StoreLine(std::shared_ptr<Writer> writer, Mover &mover) : writer_(std::move(writer)), mover_(mover) {}

  struct Flight {
    StoreItem item;
    std::optional<Claimed> claimed;
    std::shared_ptr<Flight> parent;  // still in the line when this one entered
    bool again = false;              // its name, or its parent's, is in the line: decided when its turn comes
    bool arrived = false;
    bool held = false;  // a device may still write to its slot
    gft_status status = GFT_OK;
    std::string detail;
    Digest digest{};
    Id link{};
  };
  using Done = std::function<void(const Flight &)>;

  // Held by whoever lets an item enter; taken before the engine's queue mutex.
  std::unique_lock<std::mutex> lock() { return std::unique_lock(mutex_); }
  // With the lock: finds a slot for the item, or its final status.
  std::shared_ptr<Flight> enter(StoreItem item);
  // Without the lock: copies, if there is anything to copy.
  void copy(std::span<const std::shared_ptr<Flight>> flights) const;
  // With the lock: seals everything at the head of the line that has arrived, and reports it.
  void leave(Flight &flight, const Done &done);
  // Whether a slot was left as it is, because a device may still write to it.
  bool holds_slots() const { return holds_slots_.load(); }

 private:
  void finish(Flight &flight);

  const std::shared_ptr<Writer> writer_;
  Mover &mover_;
  std::atomic<bool> holds_slots_{false};
  std::mutex mutex_;
  std::deque<std::shared_ptr<Flight>> flights_;
  std::unordered_map<std::string, std::shared_ptr<Flight>> by_hash_;
};

}  // namespace gft
