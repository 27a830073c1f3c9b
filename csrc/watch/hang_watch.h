// Watches every rank of a heartbeat file from outside and tells the queue who hangs, who is slow, who is gone, who is fine again.
// Runs in the serving process, or in any worker that wants to know about its peers.
#pragma once

#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "beats.h"
#include "judge.h"
#include "looker.h"
#include "process.h"
#include "queue.h"

namespace gft::watch {

struct HangRules {
  JudgeRules judge;
  double poll_seconds = 0.02;
  double no_step_seconds = 60;  // work is waiting (see expect) and no rank begins a step: hung
  uint32_t slow_steps = 3;      // so many steps beyond what is usual, among the last 64: slow
};

class HangWatch {
 public:
  HangWatch(std::shared_ptr<Queue> queue, std::shared_ptr<Beats> beats, HangRules rules);
  ~HangWatch();  // ends the thread
  HangWatch(const HangWatch &) = delete;
  HangWatch &operator=(const HangWatch &) = delete;

  // Whether there is work that should make steps begin.
  void expect(bool work) noexcept { expected_.store(work, std::memory_order_relaxed); }

 private:
  struct Rank {
    explicit Rank(const JudgeRules &rules) : judge(rules) {}
    Judge judge;
    uint32_t pid = 0;
    uint64_t started = 0;
    uint64_t step = 0;         // last step that was seen
    std::vector<uint64_t> slow;  // steps that were beyond what is usual, the last 64 at most
    bool hung = false, gone = false;
    int64_t told_slow_ns = 0;
    int64_t next_process_look_ns = 0;
  };

  void run();
  void look(int64_t now, int64_t most);
  void look_at(uint32_t number, Rank &rank, int64_t now, int64_t most);
  void look_for_steps(int64_t passed);
  void note_slow(uint32_t number, Rank &rank, int64_t now);
  void tell(const char *what, int rank, const char *cause, const Opinion &opinion, char state);
  std::string laggards() const;
  int64_t stolen();

  const std::shared_ptr<Queue> queue_;
  const std::shared_ptr<Beats> beats_;
  const HangRules rules_;
  std::atomic<bool> expected_{false};
  std::vector<Rank> ranks_;
  int64_t waiting_ns_ = 0, last_ns_ = 0, waits_at_ns_ = 0, waits_ns_ = 0;
  ProcessorWaits waits_;
  uint64_t all_steps_ = 0;
  bool told_no_step_ = false;
  Looker looker_{"the hang watch"};
};

}  // namespace gft::watch
