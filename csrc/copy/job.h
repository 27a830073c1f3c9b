// What the copy engine works through: jobs of blocks, and the items its queues hold.
// All fields are guarded by the engine's queue mutex unless a comment says otherwise.
#pragma once

#include <atomic>
#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "../arena/writer.h"
#include "../gft.h"

namespace gft {

struct BlockSpec {
  uint64_t block_id;
  std::string hash;
  std::optional<std::string> parent;
  uint64_t position;

  const std::string *parent_or_null() const { return parent ? &*parent : nullptr; }
};

struct Job {
  using Clock = std::chrono::steady_clock;

  int64_t id;
  bool load;
  std::vector<BlockSpec> blocks;  // of a pin none; never changed once queued: read without the mutex
  std::shared_ptr<void> ready;    // what a device must have done before the first byte is touched; never changed either
  std::vector<gft_status> statuses;
  std::vector<bool> settled;
  // Its result was given without waiting for a wedged device: whatever still arrives must not be sealed.
  std::atomic<bool> given_up{false};
  // Cancelled or dropped: what has not begun need not begin.
  std::atomic<bool> unwanted{false};
  std::string detail;  // text of the first failure
  uint64_t bytes = 0;
  size_t remaining = 0, running = 0;
  std::optional<Clock::time_point> started;
  double seconds = 0;

  // Loads only. `found` is written by the one thread that prepares and read by all once `prepared` is set.
  enum class Preparation { none, running, done } preparation = Preparation::none;
  std::vector<Sealed> found;
  size_t next = 0;  // first block nobody has taken
};

// One entry of the store queue: a block of a job, or marks to set behind the stores before it.
struct StoreItem {
  enum class Kind { block, mark, pin };
  std::shared_ptr<Job> job;  // null for marks
  size_t index = 0;
  Kind kind = Kind::block;
  std::vector<std::string> hashes = {};          // of marks and pins
  Writer::Mark mark = Writer::Mark::hold;
  uint32_t pinned_until = 0;
};

}  // namespace gft
