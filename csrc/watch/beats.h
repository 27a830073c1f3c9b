// The heartbeat file: one slot per rank in shared memory, written by that rank, read by whoever judges it.
// It outlives every process; a slot belongs to the process whose pid and start time it carries.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>

#include "history.h"
#include "judge.h"
#include "looker.h"

namespace gft::watch {

constexpr uint32_t kMaxRanks = 1024;

struct alignas(64) Slot {
  std::atomic<uint32_t> phase, kind;
  std::atomic<uint32_t> pid, thread;  // of the writer; `thread` makes the steps
  std::atomic<uint64_t> started;      // the writer's start in clock ticks since boot: with the pid, one process for ever
  std::atomic<uint64_t> step;         // steps begun
  std::atomic<int64_t> began_ns, limit_ns;
  std::atomic<int64_t> tick_ns;
  alignas(64) std::atomic<uint64_t> device_step;  // the device writes here: steps it has finished
  alignas(64) History history;
};

class Beats {
 public:
  // Opens `path`, or makes it for `ranks` slots. Whoever comes first makes it; it is visible only when complete.
  static std::shared_ptr<Beats> open(const std::string &path, uint32_t ranks);
  ~Beats();
  Beats(const Beats &) = delete;
  Beats &operator=(const Beats &) = delete;

  Slot &slot(uint32_t rank);  // GFT_INVALID beyond the file
  uint32_t ranks() const noexcept { return ranks_; }
  const std::string &path() const noexcept { return path_; }

 private:
  Beats(std::string path, void *memory, size_t bytes, uint32_t ranks);

  std::string path_;
  void *memory_;
  size_t bytes_;
  uint32_t ranks_;
};

// The writing side of one rank. begin/end/busy/idle are a few stores each; one thread at a time may call them.
class Beat {
 public:
  // Takes the slot for this process, whoever had it: a former writer sees that it lost it and stops.
  Beat(std::shared_ptr<Beats> beats, uint32_t rank, double tick_seconds);
  ~Beat();
  Beat(const Beat &) = delete;
  Beat &operator=(const Beat &) = delete;

  // A step of this class starts on the calling thread. `step`: its number among all ranks, growing; 0: one more than the last. Ranks
  // that are replaced one by one need the number: who has begun fewer than another says whom a collective waits for.
  void begin(uint32_t kind, uint64_t step = 0) noexcept;
  void end() noexcept;                  // ... and is over: learnt, idle again
  void busy(double limit_seconds) noexcept;  // other work that may take so long: compiling, loading, capturing
  void idle() noexcept;                 // that is over
  void leave() noexcept;                // on purpose: not a death
  uint64_t steps() const noexcept;
  std::atomic<uint64_t> &device_step() noexcept { return slot_.device_step; }
  bool ours() const noexcept;

 private:
  void tick();

  std::shared_ptr<Beats> beats_;
  Slot &slot_;
  const uint32_t pid_;
  const double tick_seconds_;
  Looker ticker_{"the heartbeat's thread"};
};

}  // namespace gft::watch
