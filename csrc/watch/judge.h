// Whether one rank is fine, slow or hung: a decision from what was seen of it, with time handed in. No clock, no system call.
// hang_watch.cpp looks and asks; tests ask with simulated time.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>

#include "history.h"

namespace gft::watch {

enum class Phase : uint32_t { kEmpty = 0, kIdle = 1, kStep = 2, kBusy = 3, kLeft = 4 };

// One look at a rank's words.
struct Seen {
  Phase phase = Phase::kEmpty;
  uint64_t step = 0;        // steps begun so far
  int64_t began_ns = 0;     // when the step or the announced work began
  uint32_t kind = 0;        // class of the step
  int64_t limit_ns = 0;     // of announced work
  int64_t tick_ns = 0;      // the process's own thread wrote this last: alive
  uint64_t device_step = 0; // steps that the device has finished; 0: no device writes
};

struct JudgeRules {
  int64_t after_ns = 450'000'000;       // hung: so long after what 999 of 1000 such steps took
  int64_t floor_ns = 500'000'000;       // ... but never before
  int64_t unknown_ns = 60'000'000'000;  // hung: a step of a class that is not known yet
  int64_t silent_ns = 450'000'000;      // hung: no tick for so long although the processor was to be had
  uint32_t known = 32;                  // steps after which a class is known
};

struct Opinion {
  enum Kind : uint8_t { kFine, kUneasy, kHung } kind = kFine;
  const char *cause = "";  // "step", "busy", "silent", "device": static storage
  int64_t elapsed_ns = 0;  // on the judge's clock, less what was stolen
  int64_t limit_ns = 0;    // 0: none
};

// Judges one rank. Time is counted in looks: a look that comes late (the judge itself was not run, the machine was paused) counts
// as `most_ns`, so that a stopped judge does not convict a rank that was stopped with it.
class Judge {
 public:
  explicit Judge(JudgeRules rules = {}) : rules_(rules) {}

  // `stolen`: nanoseconds for which the rank's threads have so far waited for a processor, since any fixed moment; asked only while
  // uneasy. Four fifths of the time since then may be forgiven for it, so that a real hang on a full machine is late, not missed.
  Opinion look(int64_t now_ns, int64_t most_ns, const Seen &seen, const History &history, const std::function<int64_t()> &stolen);
  // What the last look counted as a limit for this class, 0: not known.
  int64_t usual(const Seen &seen, const History &history) const;

 private:
  Opinion weigh(const char *cause, int64_t elapsed, int64_t limit, int64_t uneasy_from, const std::function<int64_t()> &stolen);

  JudgeRules rules_;
  int64_t last_ns_ = 0, clock_ns_ = 0;  // the judge's own clock
  uint64_t step_ = 0;
  Phase phase_ = Phase::kEmpty;
  int64_t began_ns_ = 0, since_ = 0;    // on the judge's clock: when this step or work was first seen
  int64_t tick_ns_ = 0, tick_since_ = 0;
  uint64_t device_step_ = 0;
  uint32_t device_kind_ = 0;
  int64_t device_since_ = 0;
  // What the device usually takes between two of its marks: the host, which only queues work, does not know it.
  std::unique_ptr<History> device_;
  int64_t uneasy_since_ = -1, stolen_at_ = 0;
};

}  // namespace gft::watch
