// The judge of judge.h. Uneasy begins at what is usual; from there on, time spent waiting for a processor does not count.
#include "judge.h"

#include <algorithm>

namespace gft::watch {

int64_t Judge::usual(const Seen &seen, const History &history) const {
  return history.count(seen.kind) >= rules_.known ? history.quantile(seen.kind, 0.999) : 0;
}

Opinion Judge::look(int64_t now_ns, int64_t most_ns, const Seen &seen, const History &history,
                    const std::function<int64_t()> &stolen) {
  // Times come from memory that others write: nothing here may overflow or go backwards.
  int64_t passed = last_ns_ ? std::clamp<int64_t>(now_ns - last_ns_, 0, most_ns) : 0;
  last_ns_ = now_ns;
  clock_ns_ += passed;
  bool fresh = seen.step != step_ || seen.phase != phase_ || seen.began_ns != began_ns_;
  if (fresh) {
    step_ = seen.step;
    phase_ = seen.phase;
    began_ns_ = seen.began_ns;
    since_ = clock_ns_ - std::clamp<int64_t>(now_ns - seen.began_ns, 0, passed);
    uneasy_since_ = -1;
  }
  if (seen.tick_ns != tick_ns_) {
    tick_ns_ = seen.tick_ns;
    tick_since_ = clock_ns_;
  }
  if (seen.device_step && !device_) device_ = std::make_unique<History>();
  if (seen.device_step != device_step_ || seen.device_step >= seen.step) {
    if (device_ && device_step_ && seen.device_step != device_step_) device_->learn(device_kind_, clock_ns_ - device_since_);
    device_step_ = seen.device_step;
    device_kind_ = seen.kind;
    device_since_ = clock_ns_;
  }
  if (seen.phase == Phase::kEmpty || seen.phase == Phase::kLeft || seen.phase > Phase::kLeft) return {};

  const int64_t silent = clock_ns_ - tick_since_, elapsed = clock_ns_ - since_;
  int64_t usual_ns = usual(seen, history);
  Opinion worst;
  auto consider = [&](const char *cause, int64_t took, int64_t uneasy_from, int64_t limit) {
    if (worst.kind == Opinion::kHung || took < uneasy_from) return;
    Opinion opinion = weigh(cause, took, limit, uneasy_from, stolen);
    if (opinion.kind >= worst.kind) worst = opinion;
  };
  if (seen.phase == Phase::kStep) {
    int64_t limit = usual_ns ? std::max(usual_ns + rules_.after_ns, rules_.floor_ns) : rules_.unknown_ns;
    consider("step", elapsed, usual_ns ? limit - rules_.after_ns * 4 / 5 : limit * 4 / 5, limit);
  } else if (seen.phase == Phase::kBusy) {
    int64_t limit = std::max<int64_t>(seen.limit_ns, rules_.floor_ns);
    consider("busy", elapsed, limit - rules_.after_ns * 4 / 5, limit);
  }
  if (seen.device_step && seen.device_step < seen.step) {
    const bool known = device_->count(device_kind_) >= rules_.known;
    int64_t limit = known ? std::max(device_->quantile(device_kind_, 0.999) + rules_.after_ns, rules_.floor_ns) : rules_.unknown_ns;
    consider("device", clock_ns_ - device_since_, known ? limit - rules_.after_ns * 4 / 5 : limit * 4 / 5, limit);
  }
  consider("silent", silent, rules_.silent_ns / 4, rules_.silent_ns);
  if (worst.kind == Opinion::kFine) uneasy_since_ = -1;
  return worst;
}

Opinion Judge::weigh(const char *cause, int64_t elapsed, int64_t limit, int64_t uneasy_from,
                     const std::function<int64_t()> &stolen) {
  const int64_t stolen_ns = stolen();
  if (uneasy_since_ < 0) {
    uneasy_since_ = clock_ns_;
    stolen_at_ = stolen_ns;
  }
  const int64_t since = clock_ns_ - uneasy_since_;
  int64_t forgiven = std::clamp<int64_t>(stolen_ns - stolen_at_, 0, since * 4 / 5);
  elapsed = std::max(elapsed - forgiven, uneasy_from);
  return {elapsed >= limit ? Opinion::kHung : Opinion::kUneasy, cause, elapsed, limit};
}

}  // namespace gft::watch
