// The looking half of the hang detector: reads the slots and /proc, asks judge.h, tells the queue what changed.
// It adds the evidence that tells a hang's causes apart: stopped process, laggards of a collective, time stolen by a full machine.
#include "hang_watch.h"

#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "../support/fail.h"
#include "process.h"

namespace gft::watch {
namespace {

std::string milliseconds(int64_t ns) { return std::to_string(ns / 1'000'000); }

bool counts(Phase phase) { return phase == Phase::kIdle || phase == Phase::kStep || phase == Phase::kBusy; }

Phase phase_of(const Slot &slot) { return static_cast<Phase>(slot.phase.load(std::memory_order_acquire)); }

Seen seen_in(const Slot &slot) {
  Seen out;
  out.phase = phase_of(slot);
  out.step = slot.step.load(std::memory_order_relaxed);
  out.began_ns = slot.began_ns.load(std::memory_order_relaxed);
  out.kind = slot.kind.load(std::memory_order_relaxed);
  out.limit_ns = slot.limit_ns.load(std::memory_order_relaxed);
  out.tick_ns = slot.tick_ns.load(std::memory_order_relaxed);
  out.device_step = slot.device_step.load(std::memory_order_relaxed);
  return out;
}

}  // namespace

HangWatch::HangWatch(std::shared_ptr<Queue> queue, std::shared_ptr<Beats> beats, HangRules rules)
    : queue_(std::move(queue)), beats_(std::move(beats)), rules_(rules) {
  if (!(rules.poll_seconds >= 0.001 && rules.poll_seconds <= 10))
    fail(GFT_INVALID, "a look every %g s; it must be between 0.001 and 10", rules.poll_seconds);
  for (uint32_t i = 0; i < beats_->ranks(); ++i) ranks_.emplace_back(rules.judge);
  looker_.start([this] { run(); });
}

HangWatch::~HangWatch() { looker_.end(); }

void HangWatch::run() {
  struct pollfd waiting = {looker_.ending(), POLLIN, 0};
  const auto pause = static_cast<int>(std::max(1.0, rules_.poll_seconds * 1000));
  const auto most = static_cast<int64_t>(rules_.poll_seconds * 2e9);
  do {
    try {
      look(now_ns(), most);
    } catch (...) {  // no memory: the next look tries again
    }
  } while (poll(&waiting, 1, pause) <= 0);
}

void HangWatch::look(int64_t now, int64_t most) {
  const int64_t passed = last_ns_ ? std::clamp<int64_t>(now - last_ns_, 0, most) : 0;
  last_ns_ = now;
  for (uint32_t i = 0; i < ranks_.size(); ++i) look_at(i, ranks_[i], now, most);
  look_for_steps(passed);
}

void HangWatch::look_at(uint32_t number, Rank &rank, int64_t now, int64_t most) {
  const Slot &slot = beats_->slot(number);
  const Seen seen = seen_in(slot);
  const uint32_t pid = slot.pid.load(std::memory_order_acquire);
  const uint64_t started = slot.started.load(std::memory_order_relaxed);
  if (pid != rank.pid || started != rank.started) {  // another process took the rank over
    rank = Rank(rules_.judge);
    rank.pid = pid;
    rank.started = started;
  }
  if (rank.gone || !counts(seen.phase)) {
    rank.hung = false;
    return;
  }
  if (now >= rank.next_process_look_ns) {
    rank.next_process_look_ns = now + 100'000'000;
    if (!process_state(pid, started).there && counts(phase_of(slot))) {
      rank.gone = true;
      tell("gone", static_cast<int>(number), "exit", {}, 'X');
      return;
    }
  }
  const Opinion opinion = rank.judge.look(now, most, seen, slot.history, [this] { return stolen(); });
  rank.step = seen.step;
  if (opinion.kind == Opinion::kUneasy && (rank.slow.empty() || rank.slow.back() != rank.step)) note_slow(number, rank, now);
  if (opinion.kind == Opinion::kHung && !rank.hung) {
    rank.hung = true;
    const char state = process_state(pid, started).state;
    tell("hang", static_cast<int>(number), state == 'T' || state == 't' ? "stopped" : opinion.cause, opinion, state);
  } else if (opinion.kind == Opinion::kFine && rank.hung) {
    rank.hung = false;
    tell("fine", static_cast<int>(number), "", opinion, '?');
  }
}

void HangWatch::note_slow(uint32_t number, Rank &rank, int64_t now) {
  constexpr int64_t kAgain = 10'000'000'000;  // slow ranks are told at most so often
  rank.slow.push_back(rank.step);
  while (rank.slow.size() > 64 || rank.slow.front() + 64 < rank.step) rank.slow.erase(rank.slow.begin());
  if (rank.slow.size() < rules_.slow_steps || (rank.told_slow_ns && now - rank.told_slow_ns < kAgain)) return;
  rank.told_slow_ns = now;
  tell("slow", static_cast<int>(number), "step", {}, '?');
}

void HangWatch::look_for_steps(int64_t passed) {
  uint64_t steps = 0;
  bool idle = false, other = false;
  for (uint32_t i = 0; i < ranks_.size(); ++i) {
    if (ranks_[i].gone) continue;
    const Phase phase = phase_of(beats_->slot(i));
    steps += ranks_[i].step;
    idle |= phase == Phase::kIdle;
    other |= phase == Phase::kStep || phase == Phase::kBusy;
  }
  if (!expected_.load(std::memory_order_relaxed) || !idle || other || steps != all_steps_) {
    all_steps_ = steps;
    waiting_ns_ = 0;
    told_no_step_ = false;
    return;
  }
  waiting_ns_ += passed;
  const auto limit = static_cast<int64_t>(rules_.no_step_seconds * 1e9);
  if (waiting_ns_ < limit || told_no_step_) return;
  told_no_step_ = true;
  tell("hang", -1, "no_step", {Opinion::kHung, "no_step", waiting_ns_, limit}, '?');
}

// Ranks that have begun fewer steps than the furthest one: those whom a collective waits for.
std::string HangWatch::laggards() const {
  uint64_t furthest = 0;
  for (const Rank &rank : ranks_) furthest = std::max(furthest, rank.step);
  std::string out;
  for (uint32_t i = 0; i < ranks_.size(); ++i)
    if (ranks_[i].pid && ranks_[i].step < furthest) out += (out.empty() ? "" : ",") + std::to_string(i);
  return out;
}

// One starved rank makes all of its group wait.
int64_t HangWatch::stolen() {
  if (waits_at_ns_ != last_ns_) {  // once per look
    waits_at_ns_ = last_ns_;
    std::vector<uint32_t> pids;
    for (const Rank &rank : ranks_)
      if (rank.pid && !rank.gone) pids.push_back(rank.pid);
    waits_ns_ = waits_.look(pids);
  }
  return waits_ns_;
}

void HangWatch::tell(const char *what, int number, const char *cause, const Opinion &opinion, char state) {
  Record record;
  record.source = "heartbeat";
  record.what = what;
  record.at_ns = record.last_ns = now_ns();
  if (number >= 0) {
    const Rank &rank = ranks_[static_cast<size_t>(number)];
    record.pid = rank.pid;
    record.facts.emplace_back("shard", std::to_string(number));
    record.facts.emplace_back("step", std::to_string(rank.step));
  }
  record.facts.emplace_back("cause", cause);
  if (opinion.limit_ns) {
    record.facts.emplace_back("elapsed_ms", milliseconds(opinion.elapsed_ns));
    record.facts.emplace_back("limit_ms", milliseconds(opinion.limit_ns));
  }
  if (state != '?') record.facts.emplace_back("process_state", std::string(1, state));
  if (std::string late = laggards(); !late.empty()) record.facts.emplace_back("laggards", late);
  queue_->push(std::move(record));
}

}  // namespace gft::watch
