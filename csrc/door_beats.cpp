// The door's heartbeat half: translates between gft_beats.h and watch/{beats,hang_watch,judge}.h.
// One short body per function; the promises are in the header.
#include "gft_beats.h"

#include <unistd.h>

#include <cmath>

#include "door.h"
#include "door_watch.h"
#include "watch/beats.h"
#include "watch/hang_watch.h"

using gft::behind_wall;
using namespace gft::watch;

struct gft_beat {
  std::unique_ptr<Beat> beat;
};
struct gft_hang_watch {
  std::unique_ptr<HangWatch> watch;
};
struct gft_judge {
  Judge judge;
  History history{};
};

namespace {

int64_t nanoseconds(double seconds) {
  return std::isfinite(seconds) ? static_cast<int64_t>(std::min(std::max(seconds, -1e9), 1e9) * 1e9) : int64_t{1'000'000'000} * 1'000'000'000;
}

int64_t limit(const char *name, double seconds) {
  if (!(seconds > 0 && seconds <= 1e6)) gft::fail(GFT_INVALID, "%s is %g s; it must be above 0 and at most 1e6", name, seconds);
  return nanoseconds(seconds);
}

JudgeRules judge_rules(const gft_hang_rules &from) {
  JudgeRules out;
  out.after_ns = limit("after", from.after_s);
  out.floor_ns = limit("floor", from.floor_s);
  out.unknown_ns = limit("unknown", from.unknown_s);
  out.silent_ns = limit("silent", from.silent_s);
  out.known = std::max<uint32_t>(from.known_steps, 1);
  return out;
}

}  // namespace

gft_status gft_beats_make(const char *path, uint32_t ranks) {
  return behind_wall([&] { Beats::open(path, ranks); });
}

gft_status gft_beat_open(const char *path, uint32_t ranks, uint32_t rank, double tick_seconds, gft_beat **out) {
  return behind_wall(
      [&] { *out = new gft_beat{std::make_unique<Beat>(Beats::open(path, ranks), rank, tick_seconds)}; });
}

void gft_beat_free(gft_beat *beat) { delete beat; }
void gft_beat_begin(gft_beat *beat, uint32_t kind, uint64_t step) { beat->beat->begin(kind, step); }
void gft_beat_end(gft_beat *beat) { beat->beat->end(); }
void gft_beat_busy(gft_beat *beat, double limit_seconds) { beat->beat->busy(limit_seconds); }
void gft_beat_idle(gft_beat *beat) { beat->beat->idle(); }
void gft_beat_leave(gft_beat *beat) { beat->beat->leave(); }
uint64_t gft_beat_steps(gft_beat *beat) { return beat->beat->steps(); }
int gft_beat_ours(gft_beat *beat) { return beat->beat->ours(); }

uint64_t gft_beat_device_word(gft_beat *beat, uint64_t *page, uint64_t *page_bytes) {
  const auto word = reinterpret_cast<uint64_t>(&beat->beat->device_step());
  *page_bytes = static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
  *page = word / *page_bytes * *page_bytes;
  return word;
}

gft_status gft_beats_look(const char *path, gft_beat_callback each, void *context) {
  return behind_wall([&] {
    if (access(path, F_OK) != 0) gft::fail(GFT_NOT_FOUND, "there is no heartbeat file %s", path);
    const auto beats = Beats::open(path, 1);
    for (uint32_t rank = 0; rank < beats->ranks(); ++rank) {
      const Slot &slot = beats->slot(rank);
      const uint32_t pid = slot.pid.load(std::memory_order_acquire);
      if (pid == 0) continue;
      const gft_beat_state state{rank, slot.phase.load(std::memory_order_acquire), slot.kind, pid, slot.step,
                                 slot.device_step, slot.began_ns, slot.tick_ns};
      each(context, &state);
    }
  });
}

void gft_hang_defaults(gft_hang_rules *out) {
  const HangRules rules;
  *out = {1e-9 * static_cast<double>(rules.judge.after_ns),
          1e-9 * static_cast<double>(rules.judge.floor_ns),
          1e-9 * static_cast<double>(rules.judge.unknown_ns),
          1e-9 * static_cast<double>(rules.judge.silent_ns),
          rules.no_step_seconds,
          rules.poll_seconds,
          rules.judge.known,
          rules.slow_steps};
}

gft_status gft_hang_watch_start(gft_watch_queue *queue, const char *path, uint32_t ranks, const gft_hang_rules *rules,
                                gft_hang_watch **out) {
  return behind_wall([&] {
    HangRules own;
    own.judge = judge_rules(*rules);
    own.poll_seconds = rules->poll_s;
    own.no_step_seconds = static_cast<double>(limit("no_step", rules->no_step_s)) / 1e9;
    own.slow_steps = std::max<uint32_t>(rules->slow_steps, 1);
    *out = new gft_hang_watch{std::make_unique<HangWatch>(queue->queue, Beats::open(path, ranks), own)};
  });
}

void gft_hang_watch_free(gft_hang_watch *watch) { delete watch; }
void gft_hang_watch_expect(gft_hang_watch *watch, int work) { watch->watch->expect(work != 0); }

gft_status gft_judge_create(const gft_hang_rules *rules, gft_judge **out) {
  return behind_wall([&] { *out = new gft_judge{Judge(judge_rules(*rules))}; });
}

void gft_judge_free(gft_judge *judge) { delete judge; }

void gft_judge_learn(gft_judge *judge, uint32_t kind, double seconds) { judge->history.learn(kind, nanoseconds(seconds)); }

gft_status gft_judge_look(gft_judge *judge, double now_s, double most_s, const gft_seen *seen, double stolen_s, int *verdict,
                          const char **cause, double *limit_s) {
  return behind_wall([&] {
    if (seen->phase > 4) gft::fail(GFT_INVALID, "phase %u; it must be between 0 and 4", seen->phase);
    const Seen own{static_cast<Phase>(seen->phase), seen->step,    nanoseconds(seen->began_s), seen->kind,
                   nanoseconds(seen->limit_s),      nanoseconds(seen->tick_s), seen->device_step};
    const int64_t stolen = nanoseconds(stolen_s);
    const Opinion opinion =
        judge->judge.look(nanoseconds(now_s), nanoseconds(most_s), own, judge->history, [stolen] { return stolen; });
    *verdict = opinion.kind;
    *cause = opinion.cause;
    *limit_s = 1e-9 * static_cast<double>(opinion.limit_ns);
  });
}

double gft_judge_usual(gft_judge *judge, uint32_t kind) {
  Seen seen;
  seen.kind = kind;
  return 1e-9 * static_cast<double>(judge->judge.usual(seen, judge->history));
}
