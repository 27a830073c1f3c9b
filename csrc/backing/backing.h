// The arena's disk backing: sealed blocks are spilled to the log behind the engine's back, and fetched into slots on request.
// One thread each way. Nothing here touches engine memory: what a fetch sealed is loaded by the copy engine like any block.
#pragma once

#include <chrono>
#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "../arena/writer.h"
#include "../disk/log.h"
#include "walk.h"

namespace gft {

struct BlockName {
  std::string hash;
  std::optional<std::string> parent;
  uint64_t position;

  const std::string *parent_or_null() const { return parent ? &*parent : nullptr; }
};

// What became of a fetch. Statuses: GFT_OK (now sealed in the arena, held once), GFT_PRESENT (was there already), else why not;
// everything behind the first failure is GFT_CHAIN.
struct Fetched {
  int64_t job_id;
  std::vector<gft_status> statuses;
  std::string detail;  // of the first failure
  uint64_t bytes = 0;  // read from disk
  double seconds = 0;
};

struct BackingStats {
  uint64_t spilled_blocks = 0, spilled_bytes = 0;   // committed to the log
  uint64_t spill_queue = 0;                         // blocks that wait
  uint64_t dropped_queue = 0, dropped_evicted = 0;  // left out: too far behind; gone from the arena before their turn
  uint64_t dropped_log = 0;                         // refused by the log
  uint64_t fetched_blocks = 0, fetched_bytes = 0;
  std::string trouble;  // the log's latest reason for not taking a block, "" when it takes them
};

class Backing : public std::enable_shared_from_this<Backing> {
 public:
  using Clock = std::chrono::steady_clock;

  // `queue_blocks`: how many blocks may wait to be spilled before the oldest is left out.
  static std::shared_ptr<Backing> start(std::shared_ptr<Writer> writer, std::shared_ptr<disk::Log> log, size_t queue_blocks);
  Backing(std::shared_ptr<Writer> writer, std::shared_ptr<disk::Log> log, size_t queue_blocks);
  ~Backing();

  // Both queue and return. Parents come before their children.
  void spill(std::vector<BlockName> blocks);
  // A job is over at `seconds` from now at the latest, counted from its turn at the disk.
  void fetch(int64_t job_id, std::vector<BlockName> blocks, double seconds);
  // What has not started is dropped; what is being read is given up at the next batch. Returns at once.
  void cancel(const std::vector<int64_t> &job_ids);
  std::vector<Fetched> poll();
  // Until nothing waits or runs, on both roads, and the log has committed; false when the time is over.
  bool wait(double seconds);
  BackingStats stats();
  // Spills what it can within `seconds`, ends both threads; false: one is still inside a read or write.
  bool close(double seconds);

 private:
  using Lock = std::unique_lock<std::mutex>;
  struct Job {
    int64_t id;
    std::vector<BlockName> blocks;
    Clock::time_point deadline;
    bool cancelled = false;
  };

  void check() const;
  void run(void (Backing::*work)(Lock &));
  void spill_next(Lock &lock);
  void fetch_next(Lock &lock);
  void take_commits(Lock &lock);
  Fetched fetch_job(const Job &job);
  std::optional<Claimed> reserve(const disk::Key &key);  // nothing when there is no room
  size_t fetch_run(const Job &job, std::vector<Place> &chain, size_t first, Fetched &out);

  const std::shared_ptr<Writer> writer_;
  const std::shared_ptr<disk::Log> log_;
  const size_t queue_blocks_;
  const uint64_t fork_generation_;
  Writer::LaneKept kept_;  // keeps the lane while the threads may write to its slots

  std::mutex mutex_;
  std::condition_variable work_, progress_;
  std::deque<BlockName> spills_;
  bool spilling_ = false;
  uint64_t ticket_ = 0, in_log_ = 0;  // blocks handed to the log that it has not settled
  std::deque<std::shared_ptr<Job>> fetches_;
  std::shared_ptr<Job> fetching_;
  std::vector<Fetched> finished_;
  BackingStats stats_;
  bool closing_ = false, stop_ = false;
  size_t threads_alive_ = 0;
  std::vector<std::thread> threads_;
};

}  // namespace gft
