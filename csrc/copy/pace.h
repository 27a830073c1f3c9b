// How fast stores may go: a token bucket whose rate follows the engine's step time. Loads are never held back.
// Pure: time comes in as an argument, so that the same history gives the same decisions.
#pragma once

#include <cstdint>

namespace gft {

struct PaceRules {
  double rate = 0;      // bytes per second at most; 0: no limit
  double slowdown = 0;  // how much longer a step may take (0.01: one percent); 0: step times do not matter
};

class Pace {
 public:
  Pace() = default;
  explicit Pace(PaceRules rules) : rules_(rules) {}

  // Stores may begin at `wait` seconds from now; 0: now.
  double wait(double now);
  void spend(double now, uint64_t bytes);
  // A step ended that took `seconds`. Steps during which nothing was stored set the mark for the others.
  void step(double now, double seconds);

  double rate() const { return rate_; }  // in force; 0: no limit
  double usual_step() const { return usual_; }

 private:
  void refill(double now);

  PaceRules rules_;
  double rate_ = rules_.rate, tokens_ = 0, last_ = 0;
  double usual_ = 0, busy_ = 0;  // moving averages: steps without and with stores
  double spent_since_step_ = 0, recent_rate_ = 0, last_step_ = 0;
};

}  // namespace gft
