// What the mass fault programs share: seeded cases per kind, a watchdog that names the case, and the counts as one line of
// JSON. A wrong byte that was accepted, a crash and a hang all end the program with kind, seed and case on stderr.
#pragma once

#include <signal.h>
#include <time.h>

#include <algorithm>
#include <functional>
#include <map>

#include "../../native/programs/support.h"

namespace mass {

struct Kind {
  const char *name;
  std::function<void(Random &)> strike;
  bool mild = false;  // what it hits is there twice, or a shortcut: every answer may stay right
};

// Where we are, for the handlers; plain words, written before anything can go wrong.
inline const char *now_kind = "";
inline unsigned long long now_seed, now_case;

inline void give_up(const char *what) {
  std::fprintf(stderr, "%s: kind %s, seed %llu, case %llu; last error: %s\n", what, now_kind, now_seed, now_case,
               gft_last_error());
  std::_Exit(3);
}
inline void on_signal(int number) { give_up(number == SIGALRM ? "HANG" : "CRASH"); }
// A fuzzer finds out what a digest is compared with and puts it in: a forger, whose bytes may be accepted but break nothing.
inline bool forger = false;
inline void accepted(const char *how) {
  if (!forger) give_up((std::string("ACCEPTED by ") + how).c_str());
}

// What came of one case: a fault may hit bytes that nobody looks at, or that say the same as before.
enum class End { unharmed, noticed };

inline double seconds() {
  timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_nsec) * 1e-9;
}

// PROGRAM CASES SEED [KIND CASE]: spreads the cases over the kinds; with KIND and CASE repeats just that one.
inline int run(int argc, char **argv, const std::vector<Kind> &kinds, const std::function<void()> &restore,
               const std::function<End(Random &)> &judge) {
  unsigned long long cases = argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 1000;
  now_seed = argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 1;
  for (int number : {SIGALRM, SIGSEGV, SIGBUS, SIGABRT, SIGFPE, SIGILL}) signal(number, on_signal);
  double started = seconds();
  std::string json;
  bool all_noticed = true;
  for (size_t k = 0; k < kinds.size(); ++k) {
    if (argc > 4 && std::strcmp(argv[3], kinds[k].name) != 0) continue;
    now_kind = kinds[k].name;
    unsigned long long share = cases / kinds.size() + (k < cases % kinds.size()), noticed = 0, done = 0;
    for (unsigned long long i = 0; i < share || argc > 4; ++i) {
      if (argc > 4) i = std::strtoull(argv[4], nullptr, 10);
      now_case = i;
      Random random{(now_seed * 1000003 + k) * 0x9e3779b97f4a7c15 + i};
      alarm(30);
      restore();
      kinds[k].strike(random);
      noticed += judge(random) == End::noticed;
      ++done;
      if (argc > 4) break;
    }
    bool idle = done > 20 && noticed == 0 && !kinds[k].mild;
    all_noticed &= !idle;
    if (idle) std::fprintf(stderr, "kind %s was never noticed: it tests nothing\n", now_kind);
    json += std::string(json.empty() ? "" : ", ") + "\"" + now_kind + "\": {\"cases\": " + std::to_string(done) +
            ", \"noticed\": " + std::to_string(noticed) + (kinds[k].mild ? ", \"mild\": true}" : "}");
  }
  alarm(0);
  std::printf("{\"seed\": %llu, \"seconds\": %.1f, \"accepted\": 0, \"kinds\": {%s}}\n", now_seed, seconds() - started,
              json.c_str());
  return all_noticed ? 0 : 1;
}

}  // namespace mass
