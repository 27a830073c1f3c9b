// What a source of faults noticed, as one record on its way to Python: plain data, no judgement.
// Sources (NVML events, the poll, the kernel log, the tracepoint) fill it in; the queue carries it; Python makes a Reading of it.
#pragma once

#include <cstdint>
#include <ctime>
#include <string>
#include <utility>
#include <vector>

namespace gft::watch {

struct Record {
  const char *source = "";  // "nvml_event", "nvml_poll", "kernel_log", "tracepoint", "queue": static storage
  const char *what = "";    // kind of observation, e.g. "xid", "event", "gpu_lost", "overflow": static storage
  int64_t at_ns = 0;        // CLOCK_MONOTONIC when it was seen first
  int64_t last_ns = 0;      // ... and last, where a source folded equal ones together
  uint64_t count = 1;       // how many were folded together
  uint64_t serial = 0;      // identity within the source (sequence number), 0: none
  int index = -1;           // NVML's index of the GPU, -1: unknown
  int64_t code = -1;        // XID, SXid, event bit, recovery action ...; -1: none
  int gi = -1, ci = -1;     // MIG instances, -1: not attributed
  int64_t pid = -1;         // process named by the source, in the kernel's own numbering; -1: none
  std::string bdf, uuid;    // names of the device as far as known; bdf as "0000:9b:00"
  std::string text;         // the source's own words, bounded by the source
  std::vector<std::pair<const char *, std::string>> facts;
};

inline int64_t now_ns() noexcept {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * 1'000'000'000LL + now.tv_nsec;
}

}  // namespace gft::watch
