// Additive increase, multiplicative decrease: when steps with stores are slower than the usual step by more than allowed, the
// rate falls by a quarter; when they are not, it grows by a sixteenth. It falls behind rather than slow the engine.
#include "pace.h"

#include <algorithm>
#include <cmath>

namespace gft {
namespace {

constexpr double kLowest = 16e6;         // bytes per second: enough to end some day
constexpr double kBurst = 0.01;          // seconds of the rate that may be saved up
constexpr double kWeight = 0.125;        // of the newest step in an average
constexpr double kLongest = 60;          // a step longer than this is a pause and says nothing
constexpr double kCeiling = 1e12;        // bytes per second: as good as no limit
constexpr double kDrift = 0.002;         // the mark follows slower steps that much, for when no step is free of stores

}  // namespace

void Pace::refill(double now) {
  if (rate_ <= 0) return;
  double gained = std::clamp(now - last_, 0.0, 1.0) * rate_;
  tokens_ = std::min(tokens_ + gained, std::max(rate_ * kBurst, 1.0));
  last_ = now;
}

double Pace::wait(double now) {
  if (rate_ <= 0) return 0;
  refill(now);
  return tokens_ >= 0 ? 0 : std::min(-tokens_ / rate_, 1.0);
}

void Pace::spend(double now, uint64_t bytes) {
  spent_since_step_ += static_cast<double>(bytes);
  if (rate_ <= 0) return;
  refill(now);
  // A debt: one batch may be larger than what is there, the next one waits for it.
  tokens_ -= static_cast<double>(bytes);
}

void Pace::step(double now, double seconds) {
  if (!(seconds > 0) || seconds > kLongest) return;
  double spent = spent_since_step_;
  spent_since_step_ = 0;
  double span = std::clamp(now - last_step_, seconds, kLongest);
  last_step_ = now;
  if (rules_.slowdown <= 0) return;
  if (spent <= 0) {
    usual_ = usual_ <= 0 ? seconds : usual_ + kWeight * (seconds - usual_);
    return;
  }
  recent_rate_ = recent_rate_ <= 0 ? spent / span : recent_rate_ + kWeight * (spent / span - recent_rate_);
  busy_ = busy_ <= 0 ? seconds : busy_ + kWeight * (seconds - busy_);
  if (usual_ <= 0) usual_ = seconds;
  double top = rules_.rate > 0 ? rules_.rate : kCeiling;
  if (busy_ > usual_ * (1 + rules_.slowdown)) {
    double from = rate_ > 0 ? std::min(rate_, std::max(recent_rate_, kLowest)) : std::max(recent_rate_, kLowest);
    rate_ = std::clamp(from * 0.75, std::min(kLowest, top), top);
    usual_ += kDrift * (busy_ - usual_);
    return;
  }
  usual_ = std::min(usual_, busy_);
  if (rate_ > 0) {
    rate_ = std::min(rate_ * (1 + 1.0 / 16), top);
    if (rules_.rate <= 0 && rate_ >= kCeiling) rate_ = 0;
  }
}

}  // namespace gft
